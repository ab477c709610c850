"""The page that shows a comparison: report.html, which stands alone, report.md and report.json."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy
import srsly
from markupsafe import Markup

from zero_copy import plots
from zero_copy.baselines import EPOCHS, LEARN_RATE
from zero_copy.compare import Setting, fit_missing
from zero_copy.files import publish, staging
from zero_copy.machine import describe_machine
from zero_copy.predictions import Predictions, read_docs, read_predictions
from zero_copy.rendering import render
from zero_copy.results import (
    SIDES,
    Result,
    Row,
    Task,
    advise,
    check_twins,
    choose,
    find_tasks,
    summarize_task,
)

MOST_WRONG_TEXTS = 10
MOST_CONFUSIONS = 15
LONGEST_EXCERPT = 400

METHOD = (
    (
        "accuracy and macro F",
        "Of model-best, loaded with spacy.load in a process of its own that knows nothing of this "
        "project, on the test set, as spacy evaluate counts them. Accuracy is micro F: with one "
        "label a text, the share that is right. Mean and, with several seeds, standard deviation.",
    ),
    (
        "training, words/s",
        "The words of the steps between two evaluations over their time, median over the training "
        "without its beginning. Neither evaluations nor saving are in it.",
    ),
    (
        "training in all, time to best",
        "Wall time of the command scripts/train.py, from its start, with Python's imports and the "
        "initialization: to its end, and to the evaluation that model-best is from.",
    ),
    (
        "evaluation of dev",
        "From the last step before an evaluation to when spaCy begins to save, less the time of a "
        "step; median over the training.",
    ),
    ("size", "All files of model-best."),
    (
        "memory",
        "Host: the most resident memory of the training process, with what it maps of the corpus. "
        "Device: the most that torch's allocator had given out at a time, CuPy's share included.",
    ),
    (
        "copies and waits a step",
        "On a GPU: copies between host and device, and calls that wait for a stream or an event, "
        "as the profiler saw them in ten steps of the same training; whatever asked for them.",
    ),
    (
        "which to take",
        "Of the variants within one standard error of the best on dev, the one that trains "
        "fastest (the one-standard-error rule, Breiman et al. 1984). The test set has no say. "
        "Where there are several seeds, labels, confusions and wrong texts are those of the seed "
        "with the best dev score.",
    ),
    (
        "baselines",
        "Fitted on train and dev together, as they choose nothing on dev; words/s are those of one "
        "pass over the texts in the time of fitting. TF-IDF + linear SVM: scikit-learn's "
        "TfidfVectorizer(sublinear_tf=True) and LinearSVC(random_state=0), one against the rest. "
        f"fastText: {EPOCHS} epochs, learning rate {LEARN_RATE}, words only.",
    ),
    (
        "what can disturb it",
        "Runs follow one another on one machine, a twin right after its variant. Anything else "
        "that the machine does meanwhile falls on one of them: leave it alone, or take more seeds.",
    ),
)

Report = dict[str, Any]


def make_report(results: list[Result], setting: Setting, failures: dict[str, str]) -> Report:
    """Put together what a comparison came to, as JSON takes it.

    results (List[Result]): Results of runs.
    setting (Setting): What the runs share.
    failures (Dict[str, str]): What went wrong, by the name of the run.
    RETURNS (Dict[str, Any]): The report.
    RAISES (UserError): If twins have different labels.
    """
    check_twins(results)
    tasks = [make_task(results, task, setting) for task in find_tasks(results)]
    return {
        "dataset": setting.corpus.name,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "advice": tasks[0]["advice"],
        "machine": describe_machine(),
        "devices": sorted({result["device"] for result in results}),
        "overrides": sorted({" ".join(result["overrides"]) for result in results} - {""}),
        "tasks": tasks,
        "failures": failures,
        "runs": results,
    }


def make_task(results: list[Result], task: Task, setting: Setting) -> dict[str, Any]:
    """The part of a report on one task.

    results (List[Result]): Results of runs.
    task (Task): The task.
    setting (Setting): What the runs share.
    RETURNS (Dict[str, Any]): Its table, which variant to take, and what that one gets wrong.
    """
    rows = summarize_task(results, task)
    baselines, missing = fit_missing(task, setting)
    taken, _, _ = choose(rows)
    run = _best_seed(results, taken)
    path = setting.work / run["name"] / "predictions.safetensors"
    (predictions,) = (
        it
        for it in read_predictions(path)
        if (it.split, it.classifier) == ("test", taken["classifier"])
    )
    return {
        "labels": list(task.labels),
        "multi_label": task.multi_label,
        "advice": advise(rows, baselines, task),
        "taken": taken["variant"],
        "taken_run": run["name"],
        "rows": rows,
        "baselines": [_baseline_row(baseline) for baseline in baselines],
        "not_installed": missing,
        "scores_by_label": scores_by_label(run["classifiers"][taken["classifier"]], predictions),
        "confusion": confusion_matrix(predictions, task.labels),
        "wrong": wrong_texts(predictions, setting.corpus / "test.spacy"),
    }


def _best_seed(results: list[Result], row: Row) -> Result:
    seeds = [
        result
        for result in results
        if (result["variant"], result["side"]) == (row["variant"], row["side"])
    ]
    return max(seeds, key=lambda it: it["classifiers"][row["classifier"]]["dev"]["micro_f"])


def _baseline_row(baseline: Result) -> dict[str, Any]:
    (classifier,) = baseline["classifiers"].values()
    return {
        "name": baseline["name"],
        "accuracy": classifier["test"]["micro_f"],
        "macro_f": classifier["test"]["macro_f"],
        "words_per_second": baseline["words_per_second"],
        "train_seconds": baseline["train_seconds"],
    }


def scores_by_label(classifier: dict[str, Any], predictions: Predictions) -> list[dict[str, Any]]:
    """How well each label is found.

    classifier (Dict[str, Any]): A classifier's part of a result.
    predictions (Predictions): Its predictions for the test set.
    RETURNS (List[Dict[str, Any]]): Precision, recall, F and number of texts of
        each label, the most frequent first.
    """
    counts = (predictions.truths == 1).sum(0).tolist()
    scores = classifier["test"]["f_per_type"]
    table: list[dict[str, Any]] = [
        {"label": label, "texts": count, **scores[label]}
        for label, count in zip(predictions.labels, counts, strict=True)
    ]
    return sorted(table, key=lambda row: (-row["texts"], row["label"]))


def confusion_matrix(predictions: Predictions, labels: tuple[str, ...]) -> list[list[int]] | None:
    """How often texts of one label were taken for another.

    predictions (Predictions): Predictions for the test set.
    labels (Tuple[str, ...]): The labels, in the order wanted.
    RETURNS (Optional[List[List[int]]]): A row a right label, a column a predicted one; None where
        a text may have several labels.
    """
    if not predictions.is_exclusive:
        return None
    order = numpy.asarray([labels.index(label) for label in predictions.labels])
    matrix = numpy.zeros((len(labels), len(labels)), "int64")
    right = order[(predictions.truths == 1).argmax(1)]
    numpy.add.at(matrix, (right, order[predictions.scores.argmax(1)]), 1)
    return matrix.tolist()


def confusions(matrix: list[list[int]], labels: list[str]) -> list[dict[str, Any]]:
    """What is confused most often.

    matrix (List[List[int]]): As of `confusion_matrix`.
    labels (List[str]): The labels, in the same order.
    RETURNS (List[Dict[str, Any]]): Right and predicted label, and the number of texts.
    """
    found: list[dict[str, Any]] = [
        {"right": labels[row], "predicted": labels[column], "texts": texts}
        for row, counts in enumerate(matrix)
        for column, texts in enumerate(counts)
        if texts and row != column
    ]
    return sorted(found, key=lambda it: -it["texts"])[:MOST_CONFUSIONS]


def wrong_texts(predictions: Predictions, path: Path) -> list[dict[str, Any]]:
    """The texts that a classifier got wrong with most confidence.

    predictions (Predictions): Predictions for the test set.
    path (Path): The test set, a `.spacy` file.
    RETURNS (List[Dict[str, Any]]): For each the right and predicted labels, the score of the
        prediction that is most wrong, the number of the text, and how it begins.
    """
    right = predictions.truths == 1
    if predictions.settings["multi_label"]:
        predicted = predictions.scores >= predictions.settings["threshold"]
        known = predictions.truths <= 1
        confidence = numpy.abs(predictions.scores - right) * ((predicted != right) & known)
    else:
        predicted = numpy.zeros_like(right)
        numpy.put_along_axis(predicted, predictions.scores.argmax(1)[:, None], True, axis=1)
        confidence = predictions.scores * (predicted & ~right)
    worst = numpy.argsort(-confidence.max(1), kind="stable")[:MOST_WRONG_TEXTS]
    worst = worst[confidence.max(1)[worst] > 0]
    texts = {
        number: doc.text
        for number, doc in enumerate(read_docs(path))
        if number in set(worst.tolist())
    }

    def names(row: numpy.ndarray) -> list[str]:
        return [label for label, it in zip(predictions.labels, row, strict=True) if it]

    return [
        {
            "number": number,
            "right": names(right[number]),
            "predicted": names(predicted[number]),
            "confidence": float(confidence[number].max()),
            "text": excerpt(texts[number]),
        }
        for number in worst.tolist()
    ]


def excerpt(text: str) -> str:
    """How a text begins.

    text (str): The text.
    RETURNS (str): At most LONGEST_EXCERPT letters of it, in one line.
    """
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_EXCERPT else line[: LONGEST_EXCERPT - 1] + "…"


def write_report(report: Report, folder: Path) -> None:
    """Write report.html, report.md and report.json, all or none.

    report (Dict[str, Any]): The report.
    folder (Path): Where to write them; it is made if it is missing.
    RAISES (OSError): If a file can't be written.
    """
    drawn = [draw_task(report, task) for task in report["tasks"]]
    facts = report | {"plots": drawn, "sides": SIDES, "method": METHOD}
    with staging(folder) as temporary:
        srsly.write_json(temporary / "report.json", report)
        for name in ("report.html", "report.md"):
            page = render(name, facts, {"confusions": confusions})
            (temporary / name).write_text(page, encoding="utf8")
        publish(temporary, folder)


def draw_task(report: Report, task: dict[str, Any]) -> dict[str, Any]:
    """Draw the plots of a task.

    report (Dict[str, Any]): The report.
    task (Dict[str, Any]): Its part on the task.
    RETURNS (Dict[str, Any]): SVGs: `frontier`, `curves` by variant, `labels` and `confusion`.
    """
    points = [
        plots.Point(
            row["variant"],
            row["train_seconds"],
            row["accuracy"]["mean"],
            "ours" if row["side"] == SIDES[0] else "stock",
        )
        for row in task["rows"]
    ]
    points += [
        plots.Point(row["name"], row["train_seconds"], row["accuracy"], "other")
        for row in task["baselines"]
    ]
    variants = dict.fromkeys(row["variant"] for row in task["rows"])
    curves = {variant: _curves(report["runs"], variant) for variant in variants}
    everything = [curve for some in curves.values() for curve in some]
    by_label = task["scores_by_label"]
    svgs: dict[str, Any] = {
        "frontier": plots.plot_frontier(points),
        "curves": {name: plots.plot_curves(some, everything) for name, some in curves.items()},
        "labels": plots.plot_label_scores(
            [row["label"] for row in by_label],
            [row["f"] for row in by_label],
            [row["texts"] for row in by_label],
        ),
        "confusion": None,
    }
    if task["confusion"]:
        matrix = numpy.asarray(task["confusion"])
        svgs["confusion"] = plots.plot_confusion(matrix, task["labels"])
    return {
        name: {key: Markup(it) for key, it in svg.items()} if isinstance(svg, dict) else _safe(svg)
        for name, svg in svgs.items()
    }


def _safe(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # matplotlib has escaped the labels.


def _curves(runs: list[Result], variant: str) -> list[plots.Curve]:
    return [
        plots.Curve(
            [point["seconds"] for point in run["curve"]],
            [point["score"] for point in run["curve"]],
            "ours" if run["side"] == SIDES[0] else "stock",
        )
        for run in runs
        if run["variant"] == variant
    ]
