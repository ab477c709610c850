"""What a service counts of itself, in the form that Prometheus reads.

Several workers add up what they count in files, in the folder that PROMETHEUS_MULTIPROC_DIR names.
"""

import os
import re
from pathlib import Path
from time import perf_counter

from fastapi import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Any other path would be a label that never goes away.
PATHS = ("/classify", "/labels", "/health", "/metrics")

REQUESTS = Counter("zero_copy_requests", "Requests answered", ["path", "status"])
REQUEST_SECONDS = Histogram("zero_copy_request_seconds", "Time to answer a request", ["path"])
TEXTS = Counter("zero_copy_texts", "Texts answered")
FAILED_TEXTS = Counter("zero_copy_failed_texts", "Texts that made the pipeline fail")
BATCH_TEXTS = Histogram(
    "zero_copy_batch_texts", "Texts in a batch", buckets=[2**power for power in range(10)]
)
BATCH_SECONDS = Histogram("zero_copy_batch_seconds", "Time that the pipeline took for a batch")
WAITING_TEXTS = Gauge("zero_copy_waiting_texts", "Texts in the queue", multiprocess_mode="livesum")


class Measured:
    """Counts requests by path and status, and their time.

    app (ASGIApp): The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        start = perf_counter()

        async def send_noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            REQUESTS.labels(path, status).inc()
            REQUEST_SECONDS.labels(path).observe(perf_counter() - start)


def observe_batch(texts: int, seconds: float, waiting: int) -> None:
    """Count a batch.

    texts (int): Its texts.
    seconds (float): How long the pipeline took.
    waiting (int): Texts that are in the queue now.
    """
    BATCH_TEXTS.observe(texts)
    BATCH_SECONDS.observe(seconds)
    WAITING_TEXTS.set(waiting)


def write_metrics() -> Response:
    """Answer with everything that was counted, by all workers.

    RETURNS (Response): The metrics.
    """
    registry = REGISTRY
    if FOLDER in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def forget_dead_workers() -> None:
    """Leave out of the queue's length what workers that are gone had in theirs."""
    for path in Path(os.environ.get(FOLDER, os.devnull)).glob("gauge_live*.db"):
        number = int(re.findall(r"\d+", path.stem)[-1])
        if number != os.getpid() and not _is_alive(number):
            multiprocess.mark_process_dead(number)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
