"""Connecting to Ray, and what it runs beside training: tokenizers on all machines."""

import logging
import os
import socket
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from zero_copy.docbins import EncodedDocs
from zero_copy.errors import UserError
from zero_copy.processes import ITEMS_AHEAD
from zero_copy.tokenizing import Chunk, Encoder


@contextmanager
def started(address: str | None, cpus: int) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine, and leave it at the end.

    address (Optional[str]): Address of the cluster; None for that of `ray job submit` or, if there
        is none, this machine.
    cpus (int): Cores that are needed; a machine by itself is taken to have as many at least.
    RAISES (UserError): If Ray can't start or the cluster can't be reached.
    """
    on_cluster = address or os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = (
        {"address": on_cluster}
        if on_cluster
        else {
            "address": "local",
            "num_cpus": max(cpus, os.cpu_count() or 1),
            "include_dashboard": False,
        }
    )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Paths are as they were given, and Ray would start workers in a folder of their own.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # A cluster's workers are told of the folder of the script; those of this machine look here.
    known = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, known))
    try:
        if on_cluster and ":" in on_cluster:
            _reach(on_cluster)
        ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        where = f"reach Ray at {on_cluster}" if on_cluster else "start Ray on this machine"
        raise UserError(f"Can't {where}", str(error).strip().split("\n")[0]) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Make sure that somebody listens, for whom Ray would wait a minute.

    RAISES (OSError): If nobody does.
    """
    host, _, port = address.split("://")[-1].rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def cores() -> int:
    """How many cores Ray has, on all machines together."""
    return int(ray.cluster_resources().get("CPU", 1))


def has_gpus() -> bool:
    """Whether a machine of Ray's has a GPU that it lends."""
    return ray.cluster_resources().get("GPU", 0) > 0


def tokenize(
    chunks: Iterable[Chunk], lang: str, processes: int
) -> Generator[tuple[Chunk, EncodedDocs], None, None]:
    """Tokenize chunks of texts on all machines, as `tokenizing.tokenize` does on one.

    chunks (Iterable[Chunk]): The chunks; only a few are read ahead.
    lang (str): The language, as in `spacy.blank`.
    processes (int): How many processes tokenize.
    YIELDS (Tuple[Chunk, EncodedDocs]): The chunks in the same order, and their documents.
    RAISES (UserError): If the language has no tokenizer here, or processes go on dying.
    """
    try:
        Encoder(lang)
    except ImportError as error:
        raise UserError(f"There is no tokenizer for the language '{lang}'", str(error)) from error
    # What a chunk becomes depends on it alone, so that it can be encoded again elsewhere.
    remote = ray.remote(num_cpus=1, max_restarts=3, max_task_retries=3)(Encoder)
    encoders: list[Any] = [remote.remote(lang) for _ in range(processes)]
    free = cycle(encoders)
    running: deque[tuple[Chunk, Any]] = deque()
    try:
        for chunk in chunks:
            running.append((chunk, next(free).__call__.remote(chunk.texts)))
            if len(running) > ITEMS_AHEAD * processes:
                done, encoded = running.popleft()
                yield done, ray.get(encoded)
        for done, encoded in running:
            yield done, ray.get(encoded)
    except RayError as error:
        raise UserError(
            "A process that tokenizes has died",
            "Most often the memory was full: try again with a smaller --n-process.",
        ) from error
    finally:
        for encoder in encoders:
            ray.kill(encoder)
