"""Training on Ray, with a worker killed; what is wrong with a setting, said before Ray starts."""

import subprocess
import sys
import time
from pathlib import Path

import numpy
import psutil
import pytest
import spacy

pytest.importorskip("ray", reason="Ray is an extra: pip install -r requirements-ray.txt")

from conftest import save_corpus
from test_state import CONFIG, QUICK, ROOT, same_files, same_states, table
from zero_copy import ray_cluster, ray_training
from zero_copy.errors import UserError
from zero_copy.state import FILE, read_header

pytestmark = pytest.mark.extra
WORKERS, STEPS = 2, 100


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    lengths = [9, 30, 4, 1, 50, 17, 8] * 12
    return save_corpus(tmp_path_factory.mktemp("corpus"), {"train": lengths, "dev": lengths})


def command(corpus: Path, output: Path, *options: str) -> list[str]:
    # Enough steps to be killed twice.
    longer = QUICK | {"training.max_steps": STEPS}
    quick = [word for name, value in longer.items() for word in (f"--{name}", str(value))]
    script, path = ROOT / "scripts" / "train_ray.py", ROOT / "configs" / f"{CONFIG}.cfg"
    call = [sys.executable, *map(str, (script, path, corpus, output))]
    return [*call, "--workers", str(WORKERS), "--gpu-id", "-1", *quick, *options]


def is_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in argument for argument in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def train_and_kill(corpus: Path, output: Path) -> None:
    """Kill a worker, and when training goes on all of it."""
    process = psutil.Popen(command(corpus, output), stdout=subprocess.DEVNULL)

    def wait_for(step: int) -> int:
        while not (output / FILE).exists() or read_header(output / FILE).step < step:
            assert process.poll() is None
            time.sleep(0.005)
        return read_header(output / FILE).step

    step = wait_for(10)
    started = process.children(recursive=True)
    workers = [each for each in started if is_worker(each)]
    assert len(workers) == WORKERS
    workers[numpy.random.default_rng().integers(WORKERS)].kill()
    assert wait_for(step + 1) < STEPS
    started += process.children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(started)


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
