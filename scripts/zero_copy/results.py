"""What the runs of a comparison say together: means over seeds, ratios to twins, which to take."""

from collections import Counter
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from zero_copy.errors import UserError
from zero_copy.formats import short_time

SIDES = ("zero_copy", "stock")
# Figures of a run that do not depend on the classifier.
COSTS = (
    "words_per_second",
    "train_seconds",
    "best_seconds",
    "evaluation_seconds",
    "size_bytes",
    "peak_host_bytes",
    "peak_device_bytes",
    "copies_per_step",
    "waits_per_step",
)
# Of these the ratio to the twin is taken, such that more is better.
RATIOS = {
    "words_per_second": 1,
    "train_seconds": -1,
    "best_seconds": -1,
    "evaluation_seconds": -1,
    "peak_host_bytes": -1,
    "peak_device_bytes": -1,
}

Result = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a classifier is to tell apart. Only classifiers with the same task can be compared.

    labels (Tuple[str, ...]): The labels, sorted.
    multi_label (bool): Whether a text may have several of them.
    """

    labels: tuple[str, ...]
    multi_label: bool


def task_of(classifier: dict[str, Any]) -> Task:
    """The task of a classifier.

    classifier (Dict[str, Any]): A classifier's part of a result.
    RETURNS (Task): What it tells apart.
    """
    return Task(tuple(sorted(classifier["labels"])), classifier["multi_label"])


def find_tasks(results: list[Result]) -> list[Task]:
    """The tasks of all runs.

    results (List[Result]): Results of runs.
    RETURNS (List[Task]): The tasks; first the one that most runs have, of those the one with most
        labels.
    """
    counts = Counter(
        task_of(classifier) for result in results for classifier in result["classifiers"].values()
    )
    return sorted(counts, key=lambda task: (-counts[task], -len(task.labels), task.labels))


def check_twins(results: list[Result]) -> None:
    """Check that twins have the same classifiers, with the same labels.

    results (List[Result]): Results of runs.
    RAISES (UserError): If they have not, naming the labels that one of them lacks.
    """
    first: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for result in results:
        for name, classifier in result["classifiers"].items():
            labels = set(classifier["labels"])
            other, known = first.setdefault((result["variant"], name), (result["name"], labels))
            if labels != known:
                raise UserError(
                    f"{other} and {result['name']} differ in the labels of {name!r}",
                    f"Only one of them has: {', '.join(sorted(labels ^ known))}. Give both configs "
                    "the same labels in [initialize.components].",
                )


def summarize_task(results: list[Result], task: Task) -> list[Row]:
    """A row for each variant and side that has a classifier for the task.

    results (List[Result]): Results of runs.
    task (Task): The task.
    RETURNS (List[Row]): The best on test first, a twin after its variant.
    """
    rows = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        chosen = [result for result in results if result["variant"] == variant]
        for name in _classifiers_for(chosen[0], task):
            sides = [
                _summarize([result for result in chosen if result["side"] == side], name)
                for side in SIDES
                if any(result["side"] == side for result in chosen)
            ]
            if len(sides) == len(SIDES):
                sides[0]["ratios"] = _ratios(*sides)
            rows.append(sides)
    rows.sort(key=lambda sides: -sides[0]["accuracy"]["mean"])
    return [row for sides in rows for row in sides]


def _classifiers_for(result: Result, task: Task) -> list[str]:
    return [name for name, it in result["classifiers"].items() if task_of(it) == task]


def _summarize(results: list[Result], classifier: str) -> Row:
    parts = [result["classifiers"][classifier] for result in results]
    return {
        "variant": results[0]["variant"],
        "side": results[0]["side"],
        "classifier": classifier,
        "classifiers": len(results[0]["classifiers"]),
        "seeds": [result["seed"] for result in results],
        "device": results[0]["device"],
        "accuracy": _spread([part["test"]["micro_f"] for part in parts]),
        "macro_f": _spread([part["test"]["macro_f"] for part in parts]),
        "dev_accuracy": _spread([part["dev"]["micro_f"] for part in parts]),
        "dev_documents": parts[0]["dev"]["documents"],
        **{name: _mean([result[name] for result in results]) for name in COSTS},
        "ratios": {},
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _ratios(ours: Row, stock: Row) -> dict[str, float]:
    return {
        name: (ours[name] / stock[name]) ** sign
        for name, sign in RATIOS.items()
        if ours[name] and stock[name]
    }


def choose(rows: list[Row]) -> tuple[Row, Row, float]:
    """Choose a variant by the one-standard-error rule (Breiman et al. 1984).

    The test set has no say, or its score would no longer be one of unseen texts.

    rows (List[Row]): A task's rows.
    RETURNS (Tuple[Row, Row, float]): Of the variants within one standard error of the best on dev
        the one that trains fastest; the best on dev; and the standard error.
    """
    ours = [row for row in rows if row["side"] == SIDES[0]]
    best = max(ours, key=lambda row: (row["dev_accuracy"]["mean"], -row["train_seconds"]))
    share = best["dev_accuracy"]["mean"]
    error = sqrt(share * (1 - share) / best["dev_documents"])
    close = [row for row in ours if row["dev_accuracy"]["mean"] >= share - error]
    return min(close, key=lambda row: row["train_seconds"]), best, error


def advise(rows: list[Row], baselines: list[Result], task: Task) -> list[str]:
    """Say which variant to take, and why.

    rows (List[Row]): A task's rows.
    baselines (List[Result]): Results of baselines for the task.
    task (Task): The task.
    RETURNS (List[str]): A few sentences, the first of which starts with "Take".
    """
    taken, best, error = choose(rows)
    score = taken["accuracy"]["mean"]
    what = "micro F on test" if task.multi_label else "of the test texts right"
    seconds = short_time(taken["train_seconds"])
    words = [f"Take {taken['variant']}: {100 * score:.1f} % {what}, trained in {seconds}."]
    others = [row for row in rows if row["side"] == SIDES[0] and row is not taken]
    texts = f"{best['dev_documents']:,} texts"
    if not others:
        words.append("It is the only variant that was trained.")
    elif taken is not best:
        gap = best["dev_accuracy"]["mean"] - taken["dev_accuracy"]["mean"]
        times = best["train_seconds"] / taken["train_seconds"]
        words.append(
            f"On dev {best['variant']} is {100 * gap:.1f} points better, which is less than the "
            f"standard error of {texts} ({100 * error:.1f} points), and takes {times:.1f} times as "
            "long."
        )
    elif all(row["train_seconds"] > taken["train_seconds"] for row in others):
        words.append("It is the best on dev, and the fastest to train.")
    else:
        words.append(
            "It is the best on dev, and what trains faster is worse there by more than the "
            f"standard error of {texts} ({100 * error:.1f} points)."
        )
    on_test = max(rows, key=lambda row: (row["side"] == SIDES[0], row["accuracy"]["mean"]))
    if on_test["accuracy"]["mean"] > score:
        reached = f"{100 * on_test['accuracy']['mean']:.1f} %"
        words.append(f"On test, which has no say, {on_test['variant']} is best with {reached}.")
    if "train_seconds" in taken["ratios"]:
        words.append(f"Its stock twin takes {taken['ratios']['train_seconds']:.1f} times as long.")
    for baseline in baselines:
        (classifier,) = baseline["classifiers"].values()
        if classifier["test"]["micro_f"] > score:
            reached = f"{100 * classifier['test']['micro_f']:.1f} %"
            words.append(f"{baseline['name']}, which is no spaCy pipeline, reaches {reached}.")
    return words
