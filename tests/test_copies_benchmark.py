"""The benchmark of copies, as far as it goes without a GPU."""

from pathlib import Path

import pytest

import copies
from conftest import save_corpus
from copies import missed_copies, per_step
from forking import run_script
from loop import Training
from zero_copy.training import why_no_gpu
from zero_copy.transfers import Transfers

SCRIPT = Path(copies.__file__)
KNOWN = Transfers(2, 8000, 2, 12, 2, 2, 4, 4, 1e-5, 1e-3)


@pytest.mark.skipif(why_no_gpu() is None, reason="There is a GPU")
def test_without_a_gpu_it_says_so():
    done = run_script(SCRIPT)
    assert done.returncode == 1
    assert "Copies can only be counted on a GPU" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_all_of_what_is_known_must_be_seen():
    assert missed_copies(KNOWN) is None
    for name in ("to_device", "to_device_bytes", "to_host", "to_host_bytes", "waits"):
        missed = KNOWN._replace(**{name: getattr(KNOWN, name) // 2})
        assert missed_copies(missed) is not None, name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    lengths = [200] * 30
    return save_corpus(tmp_path_factory.mktemp("corpus"), {"train": lengths, "dev": lengths})


@pytest.mark.parametrize("side", ["zero_copy", "stock"])
def test_bytes_of_the_corpus_are_those_beside_the_numbers(corpus, monkeypatch, side):
    """On a CPU nothing is copied; here it is said that the numbers were, and 7 bytes a step."""

    def watched(work):
        work()
        documents = 3 * 10 if side == "zero_copy" else 0
        return KNOWN._replace(to_device_bytes=8 * documents + 21)

    monkeypatch.setattr(copies, "watched", watched)
    monkeypatch.setattr(copies, "WARM_UP", 2)
    settings = {"training.batcher.size": 2000, "training.batcher.tolerance": 0.0}
    figures = per_step(Training(side, "bow", corpus, **settings), 3)
    assert figures["corpus_bytes"] == (7 if side == "zero_copy" else None)
    assert figures["documents"] == 10
    assert figures["waits"] == pytest.approx(2 / 3)
