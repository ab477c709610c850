"""Trainings that are killed, resumed, and compared with one that was not."""

import itertools
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from safetensors.torch import load_file, save_file
from spacy.util import load_config

from conftest import save_corpus
from zero_copy import state
from zero_copy.errors import UserError
from zero_copy.state import FILE, keeps_state, random_state, read_header, set_random_state

ROOT = Path(__file__).parent.parent
QUICK = {
    "training.max_steps": 50,
    "training.eval_frequency": 10,
    "training.optimizer.learn_rate.warmup_steps": 5,
    "training.batcher.size": 60,
}
# `shared` has two components of which one listens to the other, dropout, averages and a schedule.
CONFIG = "shared"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Few enough documents for several epochs, so that training ends in the middle of one."""
    lengths = [9, 30, 4, 1, 50, 17, 8] * 6
    return save_corpus(tmp_path_factory.mktemp("corpus"), {"train": lengths, "dev": lengths})


def command(corpus: Path, output: Path, *options: str, config: str = CONFIG) -> list[str]:
    quick = [word for name, value in QUICK.items() for word in (f"--{name}", str(value))]
    script, path = ROOT / "scripts" / "train.py", ROOT / "configs" / f"{config}.cfg"
    return [sys.executable, *map(str, (script, path, corpus, output)), *quick, *options]


def train(corpus: Path, output: Path, *options: str, config: str = CONFIG) -> str:
    """Train to the end; returns what was printed."""
    call = command(corpus, output, *options, config=config)
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(printed: str) -> list[list[str]]:
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("E  "))
    return [line.split() for line in itertools.takewhile(lambda x: "✔" not in x, lines[start:])]


def kill_when(call: list[str], is_time: Callable[[], bool]) -> None:
    """Start a training and kill it as `kill -9` does."""
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not is_time():
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def same_files(one: Path, other: Path) -> bool:
    """Whether two pipelines are equal, byte by byte."""
    names = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (one, other)
    ]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


def same_states(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one / FILE), load_file(other / FILE)
    rest, other_rest = (read_header(folder / FILE) for folder in (one, other))
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[key], theirs[key]) for key in ours)
        and rest.random == other_rest.random
    )


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> tuple[Path, str]:
    """A training that was not killed."""
    output = tmp_path_factory.mktemp("whole")
    return output, train(corpus, output)


@pytest.mark.slow
def test_killed_at_random_and_while_writing_it_ends_the_same(corpus, whole, tmp_path):
    unfinished, moments = tmp_path / ".unfinished", random.Random()
    call = command(corpus, tmp_path, "--resume")

    def written(pattern: str) -> Callable[[], bool]:
        def is_time() -> bool:
            assert (tmp_path / "model-best").exists() or not (tmp_path / FILE).exists()
            return any(tmp_path.glob(pattern))

        return is_time

    def later(seconds: float) -> Callable[[], bool]:
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    kill_when(call, written(f".{FILE}.*"))  # while the first state is written
    saving = written(".unfinished/model-last/textcat/model")
    kill_when(call, lambda: saving() and (tmp_path / FILE).exists())
    spacy.load(tmp_path / "model-best")
    step = read_header(tmp_path / FILE).step
    kill_when(call, lambda: read_header(tmp_path / FILE).step > step)
    kill_when(call, later(moments.uniform(0.0, 6.0)))
    spacy.load(tmp_path / "model-best")
    printed = train(corpus, tmp_path, "--resume")
    assert table(printed) == table(whole[1])
    assert same_states(tmp_path, whole[0])
    assert same_files(tmp_path / "model-last", whole[0] / "model-last")
    assert same_files(tmp_path / "model-best", whole[0] / "model-best")
    assert not unfinished.exists()


@pytest.mark.slow
def test_a_streamed_training_goes_on_in_the_same_order(corpus, tmp_path):
    memory = ["--corpora.train.memory", "2KB", "--corpora.dev.memory", "2KB"]
    uninterrupted = train(corpus, tmp_path / "whole", *memory)
    output = tmp_path / "killed"

    def is_half_done() -> bool:
        return (output / FILE).exists() and read_header(output / FILE).step >= 20

    kill_when(command(corpus, output, "--resume", *memory), is_half_done)
    printed = train(corpus, output, "--resume", *memory)
    assert "Resuming after step" in printed
    assert table(printed) == table(uninterrupted)
    assert same_states(output, tmp_path / "whole")
    assert same_files(output / "model-last", tmp_path / "whole" / "model-last")


@pytest.mark.slow
def test_the_state_of_another_training_is_refused_by_name(corpus, whole, tmp_path):
    def refusal(*options: str, data: Path = corpus, config: str = CONFIG) -> str:
        call = command(data, tmp_path, "--resume", *options, config=config)
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    (tmp_path / FILE).write_bytes((whole[0] / FILE).read_bytes())
    assert "training.dropout was 0.1, and is 0.5" in refusal("--training.dropout", "0.5")
    other = tmp_path / "other"
    other.mkdir()
    for source in corpus.glob("*.safetensors"):
        (other / source.name).write_bytes(source.read_bytes())
    (other / "dev.safetensors").write_bytes((corpus / "train.safetensors").read_bytes())
    assert "the dev corpus has other contents" in refusal(data=other)
    (tmp_path / FILE).write_bytes((whole[0] / FILE).read_bytes()[:-100])
    assert "is cut off" in refusal()


def header_of(whole: tuple[Path, str]) -> state.Header:
    return read_header(whole[0] / FILE)


def test_another_version_is_refused_by_name(whole, tmp_path):
    header = header_of(whole)
    older = header.model_copy(update={"versions": header.versions | {"torch": "1.0"}})
    with pytest.raises(UserError, match=r"torch was 1\.0, and is"):
        state.check(Path("state"), older, header)
    more = header.model_copy(update={"workers": 4})
    with pytest.raises(UserError, match="workers was 4, and is 1"):
        state.check(Path("state"), more, header)
    save_file({"weights": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no state of a training"):
        read_header(tmp_path / "other.safetensors")


def test_stock_trainings_are_refused_and_keep_no_state(corpus, tmp_path):
    assert keeps_state(load_config(ROOT / "configs" / "cnn.cfg"))
    assert not keeps_state(load_config(ROOT / "configs" / "stock" / "cnn.cfg"))


def test_random_states_come_back():
    before = random_state()

    def draw() -> tuple:
        return random.random(), numpy.random.random(), float(torch.rand(1))

    drawn = draw()
    set_random_state(before)
    assert draw() == drawn
