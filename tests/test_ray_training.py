"""Training on Ray, with a worker killed; what is wrong with a setting, said before Ray starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import spacy

pytest.importorskip("ray", reason="Ray is an extra: pip install -r requirements-ray.txt")

from conftest import random_docs, save_docs
from test_state import CONFIG, QUICK, ROOT, same_files, same_states, table
from zero_copy import ray_cluster, ray_training, store
from zero_copy.errors import UserError
from zero_copy.state import FILE, read_header

WORKERS, STEPS = 2, 100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, split in enumerate(("train", "dev")):
        docs = random_docs(spacy.blank("en"), [9, 30, 4, 1, 50, 17, 8] * 12, seed)
        store.pack(save_docs(folder / f"{split}.spacy", docs), folder / f"{split}.safetensors")
    return folder


def command(corpus: Path, output: Path, *options: str) -> list[str]:
    # Enough steps to be killed twice.
    longer = QUICK | {"training.max_steps": STEPS}
    quick = [word for name, value in longer.items() for word in (f"--{name}", str(value))]
    script, path = ROOT / "scripts" / "train_ray.py", ROOT / "configs" / f"{CONFIG}.cfg"
    call = [sys.executable, *map(str, (script, path, corpus, output))]
    return [*call, "--workers", str(WORKERS), "--gpu-id", "-1", *quick, *options]


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process has started, directly or not, and what they run."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found: dict[int, str] = {}
    for child in map(int, children.read_text().split() if children.exists() else ()):
        arguments = Path(f"/proc/{child}/cmdline")
        if arguments.exists():
            found[child] = arguments.read_bytes().decode("utf8", "replace")
        found |= descendants(child)
    return found


def train_and_kill(corpus: Path, output: Path) -> None:
    """Kill a worker, and when training goes on all of it."""
    process = subprocess.Popen(command(corpus, output), stdout=subprocess.DEVNULL)

    def wait_for(step: int) -> int:
        while not (output / FILE).exists() or read_header(output / FILE).step < step:
            assert process.poll() is None
            time.sleep(0.005)
        return read_header(output / FILE).step

    step = wait_for(10)
    started = descendants(process.pid)
    workers = [pid for pid, arguments in started.items() if "RayTrainWorker" in arguments]
    assert len(workers) == WORKERS
    os.kill(workers[numpy.random.default_rng().integers(WORKERS)], signal.SIGKILL)
    assert wait_for(step + 1) < STEPS
    started |= descendants(process.pid)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        time.sleep(0.05)


def test_nothing_changes_if_a_worker_dies_and_then_all(corpus, tmp_path):
    done = subprocess.run(command(corpus, tmp_path / "a"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    train_and_kill(corpus, tmp_path / "b")
    call = command(corpus, tmp_path / "b", "--resume")
    resumed = subprocess.run(call, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    rows = table(done.stdout)
    assert [int(row[1]) for row in rows[2:]] == [*range(0, STEPS + 1, 10)]
    assert table(resumed.stdout) == rows
    assert same_states(tmp_path / "a", tmp_path / "b")
    for name in ("model-best", "model-last"):
        assert same_files(tmp_path / "a" / name, tmp_path / "b" / name)
    nlp = spacy.load(tmp_path / "b" / "model-best")
    assert "zero_copy" not in str(nlp.config)
    assert set(nlp("wheat").cats) == {"grain", "ship", "trade"}


def test_more_workers_than_documents_are_refused(corpus, tmp_path):
    call = command(corpus, tmp_path, "--workers", "100")
    done = subprocess.run(call, capture_output=True, text=True)
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert "84 documents for 100 workers" in printed
    assert "Traceback" not in printed


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Can't write to"):
        ray_training.check_folder(tmp_path / "file" / "output")
    with pytest.raises(UserError, match="is no folder"):
        ray_training.check_folder(Path("s3://bucket/training"))


def test_a_ray_that_cannot_start_is_one_message():
    with (
        pytest.raises(UserError, match="Can't reach Ray at"),
        ray_cluster.started("nowhere:6379", 1),
    ):
        pass
