"""The service: what it takes, what it answers, and where its limits are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import spacy
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer

from zero_copy import metrics
from zero_copy.classifying import Classifier
from zero_copy.errors import UserError
from zero_copy.gathering import Gatherer, Lane, QueueFullError
from zero_copy.limits import Limits

RETRY_SECONDS = "1"


class Settings(BaseModel):
    """What a service is told when it starts.

    model (str): Folder or package of the pipeline.
    gpu_id (int): GPU, or -1 for the CPU.
    warm_up (Optional[Path]): A `.spacy` file with texts like those to come.
    memory_zones (bool): Whether to forget the words of every batch.
    lanes (int): How many batches are worked on at a time, each with a pipeline of its own.
    window_ms (float): Milliseconds that a text waits for others to come.
    batch_texts (int): The most texts in a batch.
    batch_chars (int): The most characters in a batch of several texts.
    max_waiting (int): The most texts in the queue.
    max_texts (int): The most texts in a request.
    max_chars (int): The most characters in a text.
    max_body (int): The most bytes in the body of a request.
    timeout (float): Seconds after which a request is given up.
    """

    model: str
    gpu_id: int = -1
    warm_up: Path | None = None
    memory_zones: bool = True
    lanes: int = 2
    window_ms: float = 3.0
    batch_texts: int = 64
    batch_chars: int = 50_000
    max_waiting: int = 4096
    max_texts: int = 1000
    max_chars: int = 100_000
    max_body: int = 8 * 2**20
    timeout: float = 30.0


class Result(BaseModel):
    """The answer to a text: its categories and scores; or its index, and why there are none."""

    categories: list[str] = Field([], description="What the text is")
    scores: dict[str, float] = Field({}, description="The score of every label, from 0 to 1")
    index: int | None = Field(None, description="Number of the text from 0 on, if it failed")
    error: str | None = Field(None, description="What went wrong with it")


class Results(BaseModel):
    """The answers to the texts of a request, in their order."""

    results: list[Result]


class Labels(BaseModel):
    """What a text classifier tells apart."""

    labels: list[str]
    exclusive: bool = Field(description="Whether a text has only one of them")
    threshold: float = Field(description="The least score that makes a label a category")


class Health(BaseModel):
    """How the service is."""

    status: str = Field(description="ok; or stuck, when no batch has ended in time")
    pipeline: str
    version: str
    spacy: str
    waiting_texts: int


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Invalid(BaseModel):
    """What is wrong with a field of a request."""

    loc: list[str | int] = Field(description="Where: body, texts and the number of a text, say")
    msg: str
    type: str


class InvalidFields(BaseModel):
    """What is wrong with a request."""

    detail: list[Invalid]


def check_limits(settings: Settings) -> None:
    """Check that the limits leave room for each other.

    settings (Settings): The settings.
    RAISES (UserError): If a request that is not too large would never find room.
    """
    if settings.max_texts > settings.max_waiting:
        raise UserError(
            f"A request may have {settings.max_texts:,} texts, the queue only "
            f"{settings.max_waiting:,}",
            "Lower --max-texts, or raise --max-waiting.",
        )


def load_lanes(settings: Settings) -> list[Lane]:
    """Load the pipeline once for each lane.

    settings (Settings): The settings.
    RETURNS (List[Lane]): The lanes, loaded.
    RAISES (UserError): If the pipeline can't be loaded.
    """
    load = partial(
        Classifier.load,
        settings.model,
        settings.gpu_id,
        settings.warm_up,
        settings.memory_zones,
    )
    lanes = [Lane(load) for _ in range(settings.lanes)]
    for lane in lanes:
        _ = lane.classifier
    return lanes


def create_app(settings: Settings) -> FastAPI:
    """Load the pipeline, and make the service.

    settings (Settings): The settings.
    RETURNS (FastAPI): The service.
    RAISES (UserError): If the pipeline can't be loaded.
    """
    lanes = load_lanes(settings)
    meta = lanes[0].classifier.nlp.meta

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics.forget_dead_workers()
        async with Gatherer(
            lanes,
            window=settings.window_ms / 1000,
            batch_texts=settings.batch_texts,
            batch_chars=settings.batch_chars,
            capacity=settings.max_waiting,
            observe=metrics.observe_batch,
        ) as app.state.gatherer:
            yield

    app = FastAPI(
        title=f"{meta['lang']}_{meta['name']}",
        version=meta["version"],
        description=meta.get("description") or "Classifies texts with a spaCy pipeline.",
        lifespan=lifespan,
    )
    app.add_middleware(Limits, max_body=settings.max_body, timeout=settings.timeout)
    app.add_middleware(metrics.Measured)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    add_routes(app, lanes, settings)
    return app


def add_routes(app: FastAPI, lanes: list[Lane], settings: Settings) -> None:
    """Add what can be asked of the service.

    app (FastAPI): The service.
    lanes (List[Lane]): The lanes.
    settings (Settings): The settings.
    """
    components = lanes[0].classifier.components
    Text = Annotated[str, StringConstraints(max_length=settings.max_chars)]
    Texts = create_model(
        "Texts",
        __doc__="Texts to classify.",
        __config__=ConfigDict(
            extra="forbid",
            json_schema_extra={"examples": [{"texts": ["the bank raised its prime rate"]}]},
        ),
        texts=(list[Text], Field(min_length=1, max_length=settings.max_texts)),
    )

    @app.post(
        "/classify",
        response_model=Results,
        response_model_exclude_unset=True,
        responses={
            413: {"model": Problem, "description": "The body is too large"},
            422: {"model": InvalidFields, "description": "A field is invalid"},
            503: {"model": Problem, "description": "The queue is full"},
            504: {"model": Problem, "description": "It took too long"},
        },
    )
    async def classify(request: Texts) -> dict[str, Any]:  # type: ignore[valid-type]
        """Categories and scores of each text, in order. A text that makes the pipeline fail has an
        `error` and its `index` instead; the others are answered all the same."""
        texts: list[str] = request.texts  # type: ignore[attr-defined]
        try:
            answers = await app.state.gatherer.classify(texts)
        except QueueFullError:
            words = f"More than {settings.max_waiting:,} texts would be waiting; try again later"
            raise HTTPException(503, words, {"Retry-After": RETRY_SECONDS}) from None
        failed = [index for index, answer in enumerate(answers) if "error" in answer]
        metrics.TEXTS.inc(len(texts))
        metrics.FAILED_TEXTS.inc(len(failed))
        for index in failed:
            answers[index] = {"index": index, **answers[index]}
        return {"results": answers}

    @app.get("/labels")
    async def labels() -> dict[str, Labels]:
        """The labels of each text classifier in the pipeline."""
        return {
            name: Labels(
                labels=list(component.labels),
                exclusive=not isinstance(component, MultiLabel_TextCategorizer),
                threshold=component.cfg["threshold"],
            )
            for name, component in components.items()
        }

    @app.get("/health", responses={503: {"model": Health, "description": "The service is stuck"}})
    async def health(response: Response) -> Health:
        """Whether the service works: no text may keep every lane for longer than the time limit."""
        longest = perf_counter() - settings.timeout
        is_stuck = all(lane.busy_since and lane.busy_since < longest for lane in lanes)
        response.status_code = 503 if is_stuck else 200
        return Health(
            status="stuck" if is_stuck else "ok",
            pipeline=app.title,
            version=app.version,
            spacy=spacy.__version__,
            waiting_texts=app.state.gatherer.waiting,
        )

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return metrics.write_metrics()


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Say which field is invalid, without repeating what stood in it.

    request (Request): The request.
    error (Exception): FastAPI's error.
    RETURNS (JSONResponse): The answer, with status 422.
    """
    assert isinstance(error, RequestValidationError)
    fields = [{key: it[key] for key in ("loc", "msg", "type")} for it in error.errors()]
    return JSONResponse({"detail": fields}, 422)
