"""The report: its tables, its advice, and a page that stands alone."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import srsly
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import save_docs
from zero_copy import plots
from zero_copy.compare import Setting, fit_missing, summarize_predictions
from zero_copy.errors import UserError
from zero_copy.formats import count, megabytes, percent, short_time
from zero_copy.predictions import Predictions, save_predictions
from zero_copy.report import confusion_matrix, confusions, make_report, write_report, wrong_texts
from zero_copy.results import Task, advise, check_twins, choose, find_tasks, summarize_task

LABELS = ["a", "b|<i>$x$</i>", "c"]


def predictions(scores: list, right: list, **settings) -> Predictions:
    """Predictions of exclusive classes, unless the settings say otherwise."""
    truths = numpy.zeros((len(right), len(LABELS)), "uint8")
    for row, labels in enumerate(right):
        truths[row, labels] = 1
    defaults = {"labels": LABELS, "multi_label": False, "threshold": 0.0, "positive_label": None}
    return Predictions(
        "test", "textcat", defaults | settings, numpy.asarray(scores, "float32"), truths
    )


FOUR = predictions(
    [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]], [[0], [1], [2], [1]]
)


def result(variant: str, side: str = "zero_copy", seed: int = 0, **changes) -> dict:
    """A run's result, as `train_run` makes it."""
    score = changes.pop("score", 0.9)
    labels = changes.pop("labels", LABELS)
    part = {"documents": 400, "micro_f": score, "macro_f": score / 2}
    part["f_per_type"] = {label: {"p": score, "r": score, "f": score} for label in labels}
    classifier = {"labels": labels, "multi_label": False, "threshold": 0.0}
    made = {
        "name": f"{variant}-{side}-{seed}",
        **{"variant": variant, "side": side, "seed": seed, "device": "CPU", "overrides": []},
        "curve": [
            {"seconds": 5.0, "step": 0, "score": 0.5},
            {"seconds": 9.0, "step": 9, "score": 0.9},
        ],
        **{"words_per_second": 1000.0, "train_seconds": 10.0, "best_seconds": 9.0},
        **{"evaluation_seconds": 0.5, "size_bytes": 2**20, "peak_host_bytes": 2**28},
        **{"peak_device_bytes": None, "copies_per_step": None, "waits_per_step": None},
        "classifiers": {"textcat": classifier | {"dev": dict(part), "test": dict(part)}},
    }
    return made | changes


@pytest.fixture
def setting(tmp_path, nlp) -> Setting:
    """A corpus of four texts and the predictions of FOUR for two variants."""
    corpus, work = tmp_path / "letters", tmp_path / "work"
    corpus.mkdir()
    for split in ("train", "dev", "test"):
        docs = [nlp.make_doc(text) for text in ("an a", "some b", "one <b> & c", "a long b")]
        for doc, row in zip(docs, FOUR.truths, strict=True):
            doc.cats = {name: float(it) for name, it in zip(LABELS, row, strict=True)}
        save_docs(corpus / f"{split}.spacy", docs)
    for name in ("bow-zero_copy-0", "bow-stock-0", "cnn-zero_copy-0"):
        (work / name).mkdir(parents=True)
        save_predictions(work / name / "predictions.safetensors", FOUR)
    return Setting(corpus, work)


RESULTS = [
    result("bow"),
    result("bow", "stock", train_seconds=80.0, words_per_second=100.0),
    result("cnn", train_seconds=30.0, score=0.8),
]


class Page(HTMLParser):
    """Collects what a page would load, and its tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not value.startswith(("data:", "#")):
                self.loaded.append(value)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(setting, tmp_path) -> Path:
    report = make_report(RESULTS, setting, {"vectors-stock-0": "No <vectors>"})
    write_report(report, tmp_path / "report")
    return tmp_path / "report"


def test_page_stands_alone(page):
    text = (page / "report.html").read_text(encoding="utf8")
    parsed = Page()
    parsed.feed(text)
    assert parsed.loaded == []
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert text.count("<svg") == text.count("</svg>") == 5  # frontier, two curves, labels, matrix
    assert "prefers-color-scheme: dark" in text
    for colour in plots.COLOURS.values():
        assert colour not in text  # all of them have become the page's own


def test_page_escapes_what_comes_from_the_data(page):
    text = (page / "report.html").read_text(encoding="utf8")
    for raw in ("<i>$x$", "one <b>", "No <vectors>"):
        assert raw not in text
    assert "one &lt;b&gt; &amp; c" in text
    assert "No &lt;vectors&gt;" in text


def test_all_three_files_say_the_same(page):
    report = srsly.read_json(page / "report.json")
    advice = report["advice"][0]
    assert advice == "Take bow: 90.0 % of the test texts right, trained in 10 s."
    for name in ("report.html", "report.md"):
        text = (page / name).read_text(encoding="utf8")
        assert advice in text
        for figure in ("90.00", "1,000", "cnn", "TF-IDF + linear SVM", "10.0\u00d7"):
            assert figure in text
    assert sorted(path.name for path in page.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_tables_of_markdown_are_whole(page):
    lines = (page / "report.md").read_text(encoding="utf8").splitlines()
    width = None
    for line in lines:
        columns = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert width is None or columns in (None, width), line
        width = columns
    assert "its stock twin" in "\n".join(lines)


def test_device_columns_only_with_a_device(setting, tmp_path):
    runs = [
        it | {"peak_device_bytes": 2**30, "copies_per_step": 1.0, "waits_per_step": 0.0}
        for it in RESULTS
    ]
    for name, results in (("without", RESULTS), ("with", runs)):
        write_report(make_report(results, setting, {}), tmp_path / name)
        for ending in ("md", "html"):
            text = (tmp_path / name / f"report.{ending}").read_text(encoding="utf8")
            head = text[: text.index("How it was measured")]
            assert ("waits" in head) == (name == "with")


def test_ratios_are_to_the_twin():
    ours, stock, other = summarize_task(RESULTS, find_tasks(RESULTS)[0])
    assert (ours["side"], stock["side"], other["variant"]) == ("zero_copy", "stock", "cnn")
    assert ours["ratios"]["words_per_second"] == pytest.approx(10)
    assert ours["ratios"]["train_seconds"] == pytest.approx(8)
    assert stock["ratios"] == other["ratios"] == {}


def test_mean_and_deviation_are_over_seeds():
    runs = [result("bow", seed=seed, score=score) for seed, score in enumerate((0.8, 0.9))]
    (row,) = summarize_task(runs, find_tasks(runs)[0])
    assert row["accuracy"]["mean"] == pytest.approx(0.85)
    assert row["accuracy"]["sd"] == pytest.approx(0.0707, abs=1e-4)
    assert percent(row["accuracy"]) == "85.00 ± 7.07"


def test_twins_with_different_labels_are_refused():
    twin = result("bow", "stock", labels=[*LABELS, "d"])
    with pytest.raises(UserError, match="Only one of them has: d"):
        check_twins([result("bow"), twin])


def test_tasks_are_told_apart_by_their_labels():
    both = result("shared")
    classifier = both["classifiers"]["textcat"] | {"labels": ["x", "y"], "multi_label": True}
    both["classifiers"]["groups"] = classifier
    first, second = find_tasks([both, *RESULTS])
    assert first == Task(tuple(sorted(LABELS)), False)
    assert second == Task(("x", "y"), True)
    (row,) = summarize_task([both, *RESULTS], second)
    assert (row["variant"], row["classifier"], row["classifiers"]) == ("shared", "groups", 2)


def rows_of(*figures: tuple[float, float]) -> list[dict]:
    runs = [
        result(f"v{number}", score=score, train_seconds=seconds)
        for number, (score, seconds) in enumerate(figures)
    ]
    return summarize_task(runs, find_tasks(runs)[0])


@pytest.mark.parametrize(
    ("figures", "taken", "said"),
    [
        ([(0.900, 10)], "v0", "only variant"),
        ([(0.900, 10), (0.880, 20)], "v0", "the fastest to train"),
        ([(0.900, 20), (0.800, 10)], "v0", "worse there by more than"),
        ([(0.900, 20), (0.890, 10)], "v1", "v0 is 1.0 points better"),
    ],
)
def test_fastest_within_one_standard_error_of_the_best_is_taken(figures, taken, said):
    rows = rows_of(*figures)
    assert choose(rows)[0]["variant"] == taken
    words = " ".join(advise(rows, [], Task(tuple(LABELS), False)))
    assert words.startswith(f"Take {taken}: ")
    assert said in words


def test_best_on_test_is_told_and_has_no_say():
    runs = [result("v0", score=0.9), result("v1", score=0.9, train_seconds=20.0)]
    runs[1]["classifiers"]["textcat"]["test"]["micro_f"] = 0.95
    rows = summarize_task(runs, find_tasks(runs)[0])
    taken, best, _ = choose(rows)
    assert taken["variant"] == best["variant"] == "v0"
    words = " ".join(advise(rows, [], Task(tuple(LABELS), False)))
    assert "On test, which has no say, v1 is best with 95.0 %." in words


def test_better_baseline_is_told(setting):
    task = Task(tuple(LABELS), False)
    rows = rows_of((0.2, 10))
    baselines, missing = fit_missing(task, setting)
    assert {it["name"] for it in baselines} >= {"TF-IDF + linear SVM"}
    assert set(missing) <= {"fasttext-wheel"}
    assert "no spaCy pipeline" in " ".join(advise(rows, baselines, task))
    again, _ = fit_missing(task, setting)
    for one, other in zip(again, baselines, strict=True):
        assert one["train_seconds"] == pytest.approx(other["train_seconds"])  # not fitted again


def test_confusion_matrix_counts_every_text():
    matrix = confusion_matrix(FOUR, ("c", *LABELS[:2]))
    assert matrix == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert confusions(matrix, ["c", *LABELS[:2]])[0]["texts"] == 1
    assert sum(it["texts"] for it in confusions(matrix, ["c", *LABELS[:2]])) == 2


def test_no_confusion_matrix_of_several_labels_a_text():
    several = predictions([[0.9, 0.8, 0.0]], [[0, 1]], multi_label=True, threshold=0.5)
    assert confusion_matrix(several, tuple(LABELS)) is None


def test_wrong_texts_come_by_confidence(setting):
    first, second = wrong_texts(FOUR, setting.corpus / "test.spacy")
    assert (first["text"], first["right"], first["predicted"]) == (
        "one <b> & c",
        ["c"],
        [LABELS[1]],
    )
    assert first["confidence"] == pytest.approx(0.8)
    assert (second["number"], second["predicted"]) == (3, ["a"])


def test_wrong_texts_of_several_labels(setting):
    scores = [[0.9, 0.8, 0.0], [0.1, 0.6, 0.9], [0.2, 0.1, 0.6], [0.1, 0.1, 0.1]]
    several = predictions(scores, [[0, 1], [1], [2], [1]], multi_label=True, threshold=0.5)
    wrong = wrong_texts(several, setting.corpus / "test.spacy")
    assert [it["number"] for it in wrong] == [1, 3]
    assert wrong[0]["predicted"] == [LABELS[1], "c"]
    assert wrong[1]["predicted"] == []
    assert wrong[1]["confidence"] == pytest.approx(0.9)


def test_saved_predictions_score_alike(tmp_path):
    save_predictions(tmp_path / "p.safetensors", FOUR)
    scores = summarize_predictions(tmp_path / "p.safetensors")["textcat"]["test"]
    assert scores["micro_f"] == pytest.approx(0.5)
    assert scores["documents"] == 4


POINTS = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=20)


@given(POINTS)
@settings(deadline=None)
def test_frontier_is_what_nothing_beats(pairs):
    points = [plots.Point("", seconds, accuracy, "ours") for seconds, accuracy in pairs]
    front = plots.frontier(points)
    for point in points:
        beaten = any(
            other.seconds <= point.seconds
            and other.accuracy >= point.accuracy
            and (other.seconds, other.accuracy) != (point.seconds, point.accuracy)
            for other in points
        )
        assert (point in front) != beaten


@pytest.mark.parametrize("labels", [2, 52])
def test_plots_of_few_and_many_labels(labels):
    names = [f"label {number}" for number in range(labels)]
    svg = plots.plot_confusion(numpy.eye(labels, dtype="int64"), names)
    assert svg.startswith("<svg")
    assert svg.count("<image") == 1
    assert f"label {labels - 1}" in svg
    assert plots.plot_label_scores(names, [0.5] * labels, [7] * labels).count("50 (7)") >= labels


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0094, "9.4 ms"),
        (0.354, "0.35 s"),
        (12.4, "12 s"),
        (119, "119 s"),
        (150, "2.5 min"),
        (7200, "2 h"),
    ],
)
def test_times_are_short(seconds, words):
    assert short_time(seconds) == words


def test_figures_that_are_not_there_are_empty():
    assert percent(None) == count(None) == megabytes(None) == ""
    assert (count(906_812), megabytes(1369 * 2**20)) == ("907,000", "1,369")
