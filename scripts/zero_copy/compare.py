"""Trains every variant, its stock twin and the baselines, and keeps what each of them came to.

Each run is a folder of its own, put in its place when all of it is there. What has been run on the
same corpus with the same config is not run again, so a comparison goes on where it was
interrupted.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from textwrap import shorten
from typing import Any

import srsly
from spacy.cli._util import parse_config_overrides
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.util import load_config

from zero_copy.baselines import BASELINES, Baseline
from zero_copy.errors import UserError
from zero_copy.files import locked, publish, staging
from zero_copy.packaging import code_files, load_pipeline_config
from zero_copy.predictions import read_predictions, save_predictions
from zero_copy.pretraining import PRETRAINED, is_pretrained
from zero_copy.recording import summarize_recording, with_recording
from zero_copy.results import SIDES, Task
from zero_copy.state import FILE as STATE
from zero_copy.training import VECTORS, choose_gpu, embeds_vectors, find_config, find_corpus

SCRIPTS = Path(__file__).parent.parent
POLL_SECONDS = 0.2
# How a message of spaCy's begins, and the last part of a traceback.
FAILURE = re.compile(r"✘ |[\w.]*(Error|Exception)\b")
LONGEST_REASON = 500
# No colours in the logs, and tracebacks whose last line says what it is.
PLAIN = {"ANSI_COLORS_DISABLED": "1", "NO_COLOR": "1", "TYPER_STANDARD_TRACEBACK": "1"}

# What is shown of a run that goes on: the share done, and words on how it stands.
Progress = Callable[[float, str], None]
Result = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training.

    variant (str): Name of the config.
    side (str): `zero_copy` or `stock`.
    seed (int): The seed.
    config (Path): The config.
    """

    variant: str
    side: str
    seed: int
    config: Path

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.variant}-{self.side}-{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    corpus (Path): Folder with train, dev and test.
    work (Path): Folder for the runs.
    gpu_id (str): As for `choose_gpu`.
    overrides (Tuple[str, ...]): Changes to the configs, as `spacy train` takes them.
    """

    corpus: Path
    work: Path
    gpu_id: str = "auto"
    overrides: tuple[str, ...] = ()


def plan_runs(variants: Sequence[str], configs: Path, seeds: int, twins: bool) -> list[Run]:
    """Lay out all trainings, a variant beside its twin.

    variants (Sequence[str]): Names of configs.
    configs (Path): The folder of configs; that of the twins is `stock` in it.
    seeds (int): How many seeds, from 0 on.
    twins (bool): Whether to train the stock twins, too.
    RETURNS (List[Run]): The runs, in their order.
    RAISES (UserError): If a config is not there, or there is nothing to train.
    """
    if not variants or seeds < 1:
        raise UserError("There is nothing to compare", "Name a config or more, and a seed or more.")
    folders = {"zero_copy": configs, "stock": configs / "stock"}
    return [
        Run(variant, side, seed, find_config(folders[side] / f"{variant}.cfg"))
        for variant in dict.fromkeys(variants)
        for seed in range(seeds)
        for side in (SIDES if twins else SIDES[:1])
    ]


def check_corpus(corpus: Path) -> None:
    """Check that a corpus is complete.

    corpus (Path): The folder.
    RAISES (UserError): If it is not there, or lacks a file, saying which command makes it.
    """
    if not corpus.is_dir():
        there = sorted(path.name for path in corpus.parent.glob("*") if path.is_dir())
        raise UserError(
            f"There is no corpus {corpus}",
            f"In {corpus.parent} there are: {', '.join(there) or 'none'}. Make it with `python -m "
            f"spacy project run all . --vars.dataset {corpus.name}`.",
        )
    for split in ("train", "dev", "test"):
        find_corpus(corpus, split, ".spacy")
    for split in ("train", "dev"):
        find_corpus(corpus, split, ".safetensors")


@contextmanager
def only_one(work: Path) -> Iterator[None]:
    """Keep a second comparison out of the same folder, and clear away what a killed one left.

    work (Path): Folder for the runs; it is made if it is missing.
    RAISES (UserError): If a comparison is at work there.
    """
    work.mkdir(parents=True, exist_ok=True)
    title = f"Another comparison is at work in {work}"
    advice = "Two at a time would spoil each other's times. Wait for it, or end it."
    with locked(work / ".lock", title, advice):
        for left in work.glob(".unfinished-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def train_missing(
    runs: Sequence[Run],
    setting: Setting,
    progress: Callable[[Run, float, str], None],
    done: Callable[[Run, Result, bool], None],
) -> tuple[list[Result], dict[str, str]]:
    """Train what has not been trained yet. A run that fails does not keep the others from theirs.

    runs (Sequence[Run]): The plan.
    setting (Setting): What all runs share.
    progress (Callable): Told of the run that goes on: the share done, and how it stands.
    done (Callable): Told the result of each run, and whether it was there already.
    RETURNS (Tuple[List[Result], Dict[str, str]]): The results, and by the name of the run what
        went wrong with those that have none.
    """
    corpus = corpus_digest(setting.corpus)
    results, failures = [], {}
    for run in runs:
        fingerprint = run_fingerprint(run, setting, corpus)
        result = find_result(setting.work / run.name, fingerprint)
        was_there = result is not None
        if result is None:
            try:
                made_from = {"fingerprint": fingerprint, "corpus": corpus}
                result = train_run(run, setting, made_from, partial(progress, run))
            except UserError as error:
                failures[run.name] = str(error)
                continue
        results.append(result)
        done(run, result, was_there)
    return results, failures


def fit_missing(task: Task, setting: Setting) -> tuple[list[Result], list[str]]:
    """Fit the baselines that have not been fitted yet.

    task (Task): What they are to tell apart.
    setting (Setting): What all runs share.
    RETURNS (Tuple[List[Result], List[str]]): The results, and the packages that are not installed.
    """
    corpus = corpus_digest(setting.corpus)
    results, missing = [], []
    for baseline in BASELINES:
        if not baseline.is_installed:
            missing.append(baseline.package)
            continue
        fingerprint = baseline_fingerprint(baseline, task, corpus)
        name = f"{baseline.folder}-{fingerprint[:8]}"  # A pipeline may have several tasks.
        result = find_result(setting.work / name, fingerprint)
        results.append(result or fit_baseline(baseline, task, setting, name, fingerprint))
    return results, missing


def find_results(setting: Setting) -> list[Result]:
    """All runs that are there, whatever their config is today.

    setting (Setting): What all runs share.
    RETURNS (List[Result]): The results from the corpus as it is now, by name.
    RAISES (UserError): If there are none.
    """
    corpus = corpus_digest(setting.corpus)
    found = [srsly.read_json(path) for path in sorted(setting.work.glob("*/result.json"))]
    results = [result for result in found if result.get("corpus") == corpus]
    if not results:
        raise UserError(
            f"Nothing has been compared on {setting.corpus} yet",
            "Run `python -m spacy project run compare` first.",
        )
    return results


def find_result(folder: Path, fingerprint: str) -> Result | None:
    """The result of a run that is over.

    folder (Path): The run's folder.
    fingerprint (str): What it must have been made from.
    RETURNS (Optional[Dict[str, Any]]): The result; None if there is none, or one of other inputs.
    """
    path = folder / "result.json"
    result = srsly.read_json(path) if path.exists() else None
    return result if result and result["fingerprint"] == fingerprint else None


def corpus_digest(corpus: Path) -> str:
    """A checksum over all of a corpus.

    corpus (Path): The folder.
    RETURNS (str): It changes when a text, a label or a split does.
    """
    splits = (corpus / f"{split}.spacy" for split in ("train", "dev", "test"))
    return _digest_files(path for split in splits for path in sorted(walk_corpus(split, FILE_TYPE)))


def _digest_files(paths: Iterable[Path]) -> str:
    digest = blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def run_fingerprint(run: Run, setting: Setting, corpus: str) -> str:
    """A checksum over what a run depends on.

    run (Run): The run.
    setting (Setting): What all runs share.
    corpus (str): The corpus's own checksum.
    RETURNS (str): It changes when the run would come out differently.
    """
    device, _ = choose_gpu(setting.gpu_id)
    parts = [run.config.read_text(encoding="utf8"), run.name, corpus, str(device)]
    prepared = _digest_files(prepared_files(run.config, setting.corpus))
    return _digest([*parts, prepared, *setting.overrides])


def prepared_files(config: Path, corpus: Path) -> list[Path]:
    """What the workflow has made of a corpus for a config to start from.

    config (Path): The config.
    corpus (Path): Folder of the corpus.
    RETURNS (List[Path]): Files of word vectors and pretrained parameters, as far as the config
        takes them and they are there.
    """
    vectors = sorted((corpus / VECTORS).rglob("*")) if embeds_vectors(config) else []
    pretrained = [corpus / PRETRAINED] if is_pretrained(config) else []
    return [path for path in (*vectors, *pretrained) if path.is_file()]


def baseline_fingerprint(baseline: Baseline, task: Task, corpus: str) -> str:
    """A checksum over what a baseline depends on.

    baseline (Baseline): The baseline.
    task (Task): What it is to tell apart.
    corpus (str): The corpus's own checksum.
    RETURNS (str): It changes when the baseline would come out differently.
    """
    return _digest([baseline.name, corpus, str(task.multi_label), *task.labels])


def _digest(parts: Sequence[str]) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def train_run(run: Run, setting: Setting, made_from: dict[str, str], progress: Progress) -> Result:
    """Train, predict dev and test with the pipeline that was saved, and keep all of it.

    run (Run): The run.
    setting (Setting): What all runs share.
    made_from (Dict[str, str]): Checksums of what the result is made from, to be kept with it.
    progress (Callable[[float, str], None]): Told the share done, and how it stands.
    RETURNS (Dict[str, Any]): The result.
    RAISES (UserError): If training or predicting fails, with what it said.
    """
    with staging(setting.work) as temporary:
        folder = temporary / run.name
        folder.mkdir()
        config = with_recording(load_config(run.config), folder / "recording.jsonl")
        config.to_disk(temporary / f"{run.variant}.cfg")
        start = time.time()
        seconds = _train(run, setting, temporary, progress)
        progress(1.0, "predicting the test set")
        _predict(run, setting, folder)
        shutil.rmtree(folder / "model-last")
        (folder / STATE).unlink(missing_ok=True)
        rows = [*srsly.read_jsonl(folder / "recording.jsonl")]
        result = {
            "name": run.name,
            "variant": run.variant,
            "side": run.side,
            "seed": run.seed,
            **made_from,
            "overrides": list(setting.overrides),
            "device": choose_gpu(setting.gpu_id)[1],
            "train_seconds": seconds,
            "size_bytes": folder_size(folder / "model-best"),
            **summarize_recording(rows, start),
            "classifiers": summarize_predictions(folder / "predictions.safetensors"),
        }
        srsly.write_json(folder / "result.json", result)
        (temporary / f"{run.variant}.cfg").unlink()
        publish(temporary, setting.work)
    return result


def _train(run: Run, setting: Setting, temporary: Path, progress: Progress) -> float:
    folder = temporary / run.name
    command = [
        str(SCRIPTS / "train.py"),
        str(temporary / f"{run.variant}.cfg"),
        str(setting.corpus),
    ]
    command += [str(folder), "--gpu-id", setting.gpu_id, "--seed", str(run.seed)]
    steps = _most_steps(run.config, setting.overrides)

    def watch() -> None:
        row = _last_row(folder / "recording.jsonl")
        if row:
            share = min(row["step"] / steps, 1.0) if steps else 0.0
            progress(share, f"step {row['step']:,}, dev {row['score']:.2%}")

    start = time.perf_counter()
    progress(0.0, "starting")
    _call([*command, *setting.overrides], folder / "training.log", f"train {run.name}", watch)
    return time.perf_counter() - start


def _predict(run: Run, setting: Setting, folder: Path) -> None:
    device, _ = choose_gpu(setting.gpu_id)
    command = [str(SCRIPTS / "predict.py"), str(folder / "model-best")]
    command += [str(setting.corpus / f"{split}.spacy") for split in ("dev", "test")]
    command += ["--output", str(folder / "predictions.safetensors"), "--gpu-id", str(device)]
    config = load_pipeline_config(folder / "model-best")
    command += [word for path in code_files(config) for word in ("--code", str(path))]
    _call(command, folder / "predicting.log", f"predict with {run.name}", lambda: None)


def _call(command: list[str], log: Path, what: str, watch: Callable[[], None]) -> None:
    with log.open("w", encoding="utf8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | PLAIN,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                watch()
        finally:
            process.kill()  # After Ctrl-C, say; one that has ended stays as it is.
            process.wait()
    if process.returncode:
        raise UserError(f"Could not {what}", _reason(log))


def _reason(log: Path) -> str:
    """The last message of a log that says what went wrong, or its last line."""
    lines = log.read_text(encoding="utf8", errors="replace").strip().splitlines() or [""]
    starts = [number for number, line in enumerate(lines) if FAILURE.match(line)]
    words = " ".join(lines[starts[-1] if starts else -1 :]).removeprefix("✘").split()
    return shorten(" ".join(words), LONGEST_REASON, placeholder=" …") or "It said nothing."


def _most_steps(config: Path, overrides: Sequence[str]) -> int:
    settings = parse_config_overrides(list(overrides))
    return load_config(config, overrides=settings)["training"]["max_steps"]


def _last_row(path: Path) -> dict[str, Any] | None:
    lines = path.read_text(encoding="utf8").splitlines() if path.exists() else []
    rows = (srsly.json_loads(line) for line in reversed(lines) if line.endswith("}"))
    return next((row for row in rows if "step" in row), None)


def fit_baseline(
    baseline: Baseline, task: Task, setting: Setting, name: str, fingerprint: str
) -> Result:
    """Fit a baseline on train and dev, predict test, and keep what it came to.

    baseline (Baseline): The baseline.
    task (Task): What it is to tell apart.
    setting (Setting): What all runs share.
    name (str): What the folder of the result is to be called.
    fingerprint (str): What the result is made from.
    RETURNS (Dict[str, Any]): The result.
    """
    with staging(setting.work) as temporary:
        folder = temporary / name
        folder.mkdir()
        predictions, seconds, words = baseline.evaluate(
            setting.corpus, task.labels, task.multi_label
        )
        save_predictions(folder / "predictions.safetensors", predictions)
        result = {
            "name": baseline.name,
            "fingerprint": fingerprint,
            "train_seconds": seconds,
            "words_per_second": words / seconds,
            "classifiers": summarize_predictions(folder / "predictions.safetensors"),
        }
        srsly.write_json(folder / "result.json", result)
        publish(temporary, setting.work)
    return result


def summarize_predictions(path: Path) -> dict[str, Any]:
    """Score predictions.

    path (Path): The `.safetensors` file of predictions.
    RETURNS (Dict[str, Any]): By classifier its settings, and by split its scores.
    """
    summary: dict[str, Any] = {}
    for predictions in read_predictions(path):
        classifier = summary.setdefault(predictions.classifier, dict(predictions.settings))
        scores = predictions.evaluate()
        classifier[predictions.split] = {
            "documents": len(predictions.scores),
            **{name: scores[f"cats_{name}"] for name in ("micro_f", "macro_f", "f_per_type")},
        }
    return summary


def folder_size(folder: Path) -> int:
    """The size of all files in a folder.

    folder (Path): The folder.
    RETURNS (int): Bytes.
    """
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
