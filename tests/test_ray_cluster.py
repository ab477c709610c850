"""Tokenizing on Ray: the same documents in the same order as without it."""

import csv
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install -r requirements-ray.txt")

from conftest import WORDS
from zero_copy import ray_cluster
from zero_copy.errors import UserError
from zero_copy.tokenizing import Chunk, tokenize

pytestmark = pytest.mark.extra
CONVERT = Path(__file__).parent.parent / "scripts" / "convert.py"


def test_two_actors_give_what_one_process_gives():
    texts = [[f"{word} number {number}, isn't it?" for word in WORDS] for number in range(40)]
    chunks = [Chunk("train", each, array("I", [0] * len(each)), 0) for each in texts]
    with ray_cluster.started(None, 2):
        done = list(ray_cluster.tokenize(iter(chunks), "en", 2))
        with pytest.raises(UserError, match="no tokenizer for the language 'xyz'"):
            list(ray_cluster.tokenize(iter(chunks), "xyz", 2))
    assert done == list(tokenize(chunks, "en", 1))


def test_command_writes_the_same_files(tmp_path):
    with (tmp_path / "train.csv").open("w", encoding="utf8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["text", "label"])
        rows.writerows(
            [f"{word} {number}", "ab"[number % 2]] for number in range(30) for word in WORDS
        )
    for options in ((), ("--ray",)):
        output = tmp_path / f"corpus{len(options)}"
        call = [sys.executable, str(CONVERT), str(tmp_path / "train.csv"), str(output), *options]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for split in ("train", "dev", "test"):
        one, other = (tmp_path / f"corpus{n}" / f"{split}.spacy" for n in (0, 1))
        assert one.read_bytes() == other.read_bytes()
