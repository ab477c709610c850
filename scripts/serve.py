"""Serve a trained pipeline over HTTP."""

import os
import signal
import sys
from functools import partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from wasabi import msg

import functions  # noqa: F401  registers what a pipeline's config may name
from zero_copy import metrics
from zero_copy.errors import UserError, exit_on_error
from zero_copy.serving import Settings, check_limits, create_app, load_lanes
from zero_copy.training import choose_gpu

SETTINGS = "ZERO_COPY_SERVICE"
DEFAULTS = Settings(model="")
# A worker that says nothing for so long is replaced; while it loads, it says nothing.
START_SECONDS = 120


def main(
    model: str = typer.Argument(..., help="Folder or package of the pipeline"),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; 0.0.0.0 for all"),
    port: int = typer.Option(8000, help="Port to listen at"),
    workers: int = typer.Option(1, min=1, help="Processes, each with its own pipelines"),
    gpu_id: str = typer.Option("auto", help="GPU, -1 for the CPU, or auto"),
    warm_up: Path | None = typer.Option(None, help=".spacy file of texts like those to come"),
    lanes: int = typer.Option(DEFAULTS.lanes, min=1, help="Batches at a time in a process"),
    window_ms: float = typer.Option(
        DEFAULTS.window_ms, min=0, help="Milliseconds that a text waits for others"
    ),
    batch_texts: int = typer.Option(DEFAULTS.batch_texts, min=1, help="Most texts in a batch"),
    batch_chars: int = typer.Option(DEFAULTS.batch_chars, min=1, help="Most characters in one"),
    max_waiting: int = typer.Option(DEFAULTS.max_waiting, min=1, help="Most texts in the queue"),
    max_texts: int = typer.Option(DEFAULTS.max_texts, min=1, help="Most texts in a request"),
    max_chars: int = typer.Option(DEFAULTS.max_chars, min=1, help="Most characters in a text"),
    max_body: int = typer.Option(DEFAULTS.max_body, min=1, help="Most bytes in a request"),
    timeout: float = typer.Option(DEFAULTS.timeout, min=0.1, help="Seconds for a request"),
    memory_zones: bool = typer.Option(
        True, help="Forget the words of every batch; without it, memory grows"
    ),
) -> None:
    """Limits are those of a process. SIGTERM and Ctrl-C end it when all requests are answered."""
    with exit_on_error():
        device, reason = choose_gpu(gpu_id)
    settings = Settings(
        model=model,
        gpu_id=device,
        warm_up=warm_up,
        lanes=lanes,
        window_ms=window_ms,
        batch_texts=batch_texts,
        batch_chars=batch_chars,
        max_waiting=max_waiting,
        max_texts=max_texts,
        max_chars=max_chars,
        max_body=max_body,
        timeout=timeout,
        memory_zones=memory_zones,
    )
    # uvicorn ends by the signal that asked for it, which would not look like success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with exit_on_error(), TemporaryDirectory() as folder:
        check_limits(settings)
        msg.info(f"Serving on {reason}")
        listen = partial(
            uvicorn.run,
            host=host,
            port=port,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=ceil(timeout),
            timeout_worker_healthcheck=START_SECONDS,
        )
        if workers == 1:
            listen(create_app(settings))
        else:
            # What is wrong with the pipeline is said here once, and not by every worker.
            load_lanes(settings.model_copy(update={"lanes": 1, "gpu_id": -1}))
            os.environ.setdefault(metrics.FOLDER, folder)
            os.environ[SETTINGS] = settings.model_dump_json()
            listen("serve:create_worker", factory=True, workers=workers)


def create_worker() -> FastAPI:
    """The service in one of several processes, which uvicorn has started."""
    try:
        return create_app(Settings.model_validate_json(os.environ[SETTINGS]))
    except UserError as error:
        msg.fail(error.title, error.desc)
        sys.exit(STARTUP_FAILURE)  # or uvicorn would start it again


if __name__ == "__main__":
    typer.run(main)
