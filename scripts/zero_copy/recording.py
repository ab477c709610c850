"""Measures a training from inside spaCy's loop, by what the loop calls anyway.

A logger hears of every step, and the `before_to_disk` callback of the end of every evaluation.
Both pass on to those of the config, and take themselves out of it before anything is saved.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import IO, Any

import spacy
import srsly
import torch
from spacy.language import Language
from thinc.api import Config

from zero_copy.machine import peak_memory
from zero_copy.transfers import FIRST_STEP, STEPS, TransferCounter

LogStep = Callable[[dict[str, Any] | None], None]
Logger = Callable[[Language, IO, IO], tuple[LogStep, Callable[[], None]]]
ToDisk = Callable[[Language], Language]


def with_recording(config: Config, path: Path) -> Config:
    """A training config whose training is recorded.

    config (Config): A training config, its variables not interpolated.
    path (Path): The JSONL file to write: a row an evaluation, and a last one.
    RETURNS (Config): The same training, recorded.
    """
    recorded = config.copy()
    training = recorded["training"]
    recording: dict[str, Any] = {"@loggers": "zero_copy.RecordingLogger.v1", "path": str(path)}
    training["logger"] = recording | {"logger": training["logger"]}
    callback: dict[str, Any] = {"@callbacks": "zero_copy.note_evaluation.v1"}
    training["before_to_disk"] = callback | {"callback": training.get("before_to_disk")}
    return recorded


def without_recording(config: Config) -> None:
    """Take out of a config what `with_recording` put there.

    config (Config): The config, changed in place.
    """
    training = config["training"]
    training["logger"] = training["logger"]["logger"]
    training["before_to_disk"] = training["before_to_disk"]["callback"]


@dataclass
class Recording:
    """The clocks of a training that goes on.

    last (float): When the last step was over and done with, saving included.
    evaluated (Optional[float]): When the evaluation of this step was over, if there was one.
    steps (int): Steps without an evaluation since the last one.
    seconds (float): The time that they took.
    transfers (TransferCounter): Copies and waits.
    """

    last: float = field(default_factory=perf_counter)
    evaluated: float | None = None
    steps: int = 0
    seconds: float = 0.0
    transfers: TransferCounter = field(default_factory=TransferCounter)

    def end_step(self) -> None:
        """Note the end of a step without an evaluation."""
        now = perf_counter()
        self.steps += 1
        self.seconds += now - self.last
        self.last = now

    def end_evaluation(self) -> dict[str, float | int | None]:
        """Note the end of a step with an evaluation.

        RETURNS (Dict[str, Union[float, int, None]]): Steps since the last evaluation and their
            seconds, neither with this step; the seconds of this evaluation, without the step that
            goes before it, and of saving. Those that are not known are None.
        """
        now = perf_counter()
        evaluated = now if self.evaluated is None else self.evaluated
        step_seconds = self.seconds / self.steps if self.steps else None
        row = {
            "steps": self.steps,
            "step_seconds": self.seconds,
            "evaluation_seconds": (
                None if step_seconds is None else max(evaluated - self.last - step_seconds, 0.0)
            ),
            "saving_seconds": now - evaluated,
        }
        self.steps, self.seconds, self.evaluated = 0, 0.0, None
        self.last = perf_counter()
        return row


# The logger and the callback are made apart from each other; a process trains once at a time.
_recordings: list[Recording] = []


@spacy.registry.callbacks("zero_copy.note_evaluation.v1")
def create_note_evaluation(callback: ToDisk | None = None) -> ToDisk:
    """Note that an evaluation is over, of which spaCy tells nobody else before it saves.

    callback (Optional[Callable[[Language], Language]]): The callback to go on with.
    RETURNS (Callable[[Language], Language]): The callback for `before_to_disk`.
    """

    def note_evaluation(nlp: Language) -> Language:
        for recording in _recordings:
            recording.evaluated = perf_counter()
        return nlp if callback is None else callback(nlp)

    return note_evaluation


@spacy.registry.loggers("zero_copy.RecordingLogger.v1")
def create_recording_logger(path: str, logger: Logger) -> Logger:
    """Log as another logger does, and record times, words, scores and memory in a file.

    path (str): The JSONL file to append to.
    logger (Callable): The logger to go on with.
    RETURNS (Callable): The logger.
    """

    def setup(nlp: Language, stdout: IO, stderr: IO) -> tuple[LogStep, Callable[[], None]]:
        without_recording(nlp.config)
        frequency = nlp.config.interpolate()["training"]["eval_frequency"]
        log, finalize = logger(nlp, stdout, stderr)
        recording = Recording()
        _recordings.append(recording)

        def log_step(info: dict[str, Any] | None) -> None:
            log(info)
            if info is None:
                if (recording.steps + 2) % frequency == 0:
                    _wait()  # The next step evaluates, and would wait for all those before it.
                recording.end_step()
                if frequency > FIRST_STEP + STEPS:  # An evaluation in between would count, too.
                    recording.transfers()
                return
            _wait()
            row = {
                "time": time.time(),
                **{name: info[name] for name in ("epoch", "step", "words", "score")},
            }
            _append(Path(path), row | recording.end_evaluation())

        def finish() -> None:
            finalize()
            _recordings.remove(recording)
            _append(Path(path), _last_row(recording.transfers))

        return log_step, finish

    return setup


def _last_row(transfers: TransferCounter) -> dict[str, float | int | None]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "peak_host_bytes": peak_memory(),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if used else None,
        "copies_per_step": transfers.copies,
        "waits_per_step": transfers.waits,
    }


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf8") as file:
        file.write(srsly.json_dumps(row) + "\n")


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def summarize_recording(rows: list[dict[str, Any]], start: float) -> dict[str, Any]:
    """What a recording tells of a training.

    rows (List[Dict[str, Any]]): The rows of the file.
    start (float): When the training's process was started, in seconds since the epoch.
    RETURNS (Dict[str, Any]): The curve of scores over time, the time to the best score, the
        steady speed, the evaluation's time, memory, copies and waits.
    """
    *evaluations, last = rows
    best = max(evaluations, key=lambda row: (row["score"], -row["step"]))
    return {
        "curve": [
            {"seconds": row["time"] - start, "step": row["step"], "score": row["score"]}
            for row in evaluations
        ],
        "best_step": best["step"],
        "best_seconds": best["time"] - start,
        "words_per_second": _steady_speed(evaluations),
        "evaluation_seconds": _median(row["evaluation_seconds"] for row in evaluations),
        "saving_seconds": _median(row["saving_seconds"] for row in evaluations),
        **last,
    }


def _steady_speed(evaluations: list[dict[str, Any]]) -> float | None:
    """Words per second between evaluations, the median; the first time is to warm up."""
    speeds = []
    for before, row in pairwise(evaluations):
        if row["steps"]:
            # The words of a single step are not known: those of the step that evaluates, which
            # is left out, are taken to be as many as the others'.
            words = (row["words"] - before["words"]) * row["steps"] / (row["steps"] + 1)
            speeds.append(words / row["step_seconds"])
    return _median(speeds[1:] if len(speeds) > 1 else speeds)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
