"""Training on Ray: spaCy's own loop in every worker, each on its stripe of the corpus.

The workers take the same steps (`batcher.in_step`), add up their gradients before each update
(`PackedPipe.finish_update`) and put their predictions together to score them, so that all come to
the same parameters and decisions. The first worker logs and saves, as a training by itself would;
what it saves is what all start from again when one of them dies.
"""

import shutil
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result
from spacy.training.initialize import init_nlp
from spacy.training.loop import train as train_nlp
from thinc.api import Config, require_gpu

from zero_copy import workers
from zero_copy.corpus import stripe
from zero_copy.errors import UserError
from zero_copy.state import FILE, resumable, unfinished
from zero_copy.store import read

RAY_FOLDER = ".ray"
LOG = "training.log"
# Workers look for it, to make sure that they see the folder that the driver sees.
MARKER = "marker"


class Setting(NamedTuple):
    """What every worker is told.

    config (str): The training config, with all that has been changed in it.
    output (Path): Folder for checkpoints and state, the same on all machines.
    gpu (bool): Whether to train on GPUs.
    threads (int): Threads of each worker.
    mark (str): What the marker says.
    """

    config: str
    output: Path
    gpu: bool
    threads: int
    mark: str


def train(
    config: Config,
    output: Path,
    *,
    count: int,
    gpu: bool = False,
    threads: int = 1,
    resume: bool = False,
    failures: int = 3,
    write: Callable[[str], Any] = sys.stdout.write,
) -> None:
    """Train with several workers, and start them again from the last state when one dies.

    config (Config): A training config that reads packed corpora.
    output (Path): Folder for model-best, model-last and the state; all machines must see it.
    count (int): How many workers.
    gpu (bool): Whether each has a GPU.
    threads (int): Threads of each.
    resume (bool): Whether to go on from the state in the folder.
    failures (int): How often workers may die.
    write (Callable[[str], Any]): Gets what the first worker prints.
    RAISES (UserError): If something is wrong with the config, a corpus or the folder, or the
        workers can't be started or go on dying.
    """
    check_resources(count, gpu, threads)
    output = output.resolve()
    folder = output / RAY_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log, mark = folder / LOG, uuid.uuid4().hex
    log.write_text("", encoding="utf8")
    (folder / MARKER).write_text(mark, encoding="utf8")
    if not resume:
        (output / FILE).unlink(missing_ok=True)
    # The workers resume in any case: they may have been started again.
    wrapped = resumable(config, output / FILE, resume=True)
    setting = Setting(wrapped.to_str(interpolate=False), output, gpu, threads, mark)
    trainer = TorchTrainer(
        work,  # type: ignore[arg-type]
        train_loop_config={"setting": setting},
        # Gradients go between GPUs, all else between hosts.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=count, use_gpu=gpu, resources_per_worker=resources(gpu, threads)
        ),
        run_config=RunConfig(
            name=mark,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=failures),
        ),
    )
    with following(log, write):
        try:
            result: Result = trainer.fit()  # type: ignore[assignment]
        except TrainingFailedError as error:
            raise UserError("The training has failed", _cause(error)) from error
    shutil.rmtree(folder, ignore_errors=True)
    if result.return_value:
        raise UserError(*result.return_value)


def resources(gpu: bool, threads: int) -> dict[str, float]:
    """What Ray reserves for a worker.

    gpu (bool): Whether it has a GPU.
    threads (int): Its threads.
    RETURNS (Dict[str, float]): By Ray's names.
    """
    return {"CPU": threads, "GPU": 1} if gpu else {"CPU": threads}


def check_resources(count: int, gpu: bool, threads: int) -> None:
    """Refuse more workers than a cluster has room for, for which Ray would wait forever.

    count (int): How many workers.
    gpu (bool): Whether each needs a GPU.
    threads (int): Threads of each.
    RAISES (UserError): If there are too few cores or GPUs.
    """
    there = ray.cluster_resources()
    for name, each in resources(gpu, threads).items():
        if there.get(name, 0) < count * each:
            raise UserError(
                f"{count} workers need {count * each:g} {name}, and Ray has {there.get(name, 0):g}",
                "Train with fewer workers or threads, or wait for the cluster to have grown.",
            )


def check_corpora(paths: list[Path], count: int) -> None:
    """Refuse more workers than a corpus has documents.

    paths (List[Path]): Packed corpora.
    count (int): How many workers.
    RAISES (UserError): If there are too few documents, or a corpus can't be read.
    """
    for path in paths:
        stripe(read(path), 0, count)


def check_folder(folder: Path) -> None:
    """Make sure that a folder can be written to.

    folder (Path): The folder; it is made.
    RAISES (UserError): If it is an address of cloud storage, or can't be written to.
    """
    if ":/" in str(folder):
        raise UserError(
            f"{folder} is no folder",
            "Checkpoints are replaced in one step, which cloud storage can't. Give a folder that "
            "all machines have mounted.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"Can't write to {folder}: {error.strerror}",
            "Give a folder that can be written to, and that all machines have mounted.",
        ) from error


def work(config: dict[str, Any]) -> tuple[str, str] | None:
    """What a worker does.

    config (Dict[str, Any]): The setting.
    RETURNS (Optional[Tuple[str, str]]): What is wrong with the input, and what to do; restarting
        would not mend it. None if all went well.
    """
    import functions  # noqa: F401  registers what the config names

    setting: Setting = config["setting"]
    torch.set_num_threads(setting.threads)
    try:
        _train(setting)
    except UserError as error:
        return str(error.title), str(error.desc)
    return None


def _train(setting: Setting) -> None:
    marker = setting.output / RAY_FOLDER / MARKER
    if not marker.exists() or marker.read_text(encoding="utf8") != setting.mark:
        raise UserError(
            f"{socket.gethostname()} does not see the folder {setting.output} of the driver",
            "Give a folder on storage that all machines have mounted under the same name.",
        )
    device = -1
    if setting.gpu:
        device = torch.cuda.current_device()
        require_gpu(device)
    is_first = workers.rank() == 0
    nlp = _all_or_none(
        lambda: init_nlp(Config().from_str(setting.config, interpolate=False), use_gpu=device)
    )
    log = marker.with_name(LOG)
    with (
        unfinished(setting.output) if is_first else nullcontext() as folder,
        log.open("a", encoding="utf8", buffering=1) if is_first else StringIO() as printed,
    ):
        train_nlp(nlp, folder, use_gpu=device, stdout=printed, stderr=printed)


def _all_or_none(make: Callable[[], Any]) -> Any:
    """Make something in every worker; if one can't, none goes on, for they would wait for it."""
    made, problem = None, None
    try:
        made = make()
    except UserError as error:
        problem = (str(error.title), str(error.desc))
    problems = [each for each in workers.gather(problem) if each]
    if problems:
        raise UserError(*problems[0])
    return made


@contextmanager
def following(log: Path, write: Callable[[str], Any]) -> Iterator[None]:
    """Show what is appended to a file, as long as it lasts.

    log (Path): The file.
    write (Callable[[str], Any]): Gets the lines.
    """
    is_over = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf8") as file:
            while True:
                last = is_over.wait(0.2)
                write(file.read())
                if last:
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _cause(error: TrainingFailedError) -> str:
    """The last line of what a worker, or Ray's own process, has died of."""
    failures = getattr(error, "worker_failures", {})
    lines = [f"worker {rank}: {_last_line(each)}" for rank, each in sorted(failures.items())]
    return "\n".join(lines) or _last_line(error)


def _last_line(error: Exception) -> str:
    return str(error).strip().split("\n")[-1]
