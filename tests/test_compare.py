"""Comparisons: planned, interrupted, gone on with, and true to what the pipelines score."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import spacy
import srsly
from spacy.training import Corpus
from thinc.api import Config
from typer.testing import CliRunner

from compare import app
from conftest import save_docs
from zero_copy import store
from zero_copy.compare import (
    Run,
    Setting,
    check_corpus,
    corpus_digest,
    find_result,
    find_results,
    only_one,
    plan_runs,
    run_fingerprint,
    train_missing,
)
from zero_copy.errors import UserError
from zero_copy.predictions import read_docs, read_predictions, read_truths

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
TOPICS = {"grain": ["wheat", "corn"], "ship": ["port", "vessel"], "trade": ["tariff", "deficit"]}
SHORT = ("--training.max_steps", "40", "--training.eval_frequency", "10")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Texts of a few words that tell their topic, most of the time."""
    folder = tmp_path_factory.mktemp("corpus") / "topics"
    folder.mkdir()
    nlp, order = spacy.blank("en"), numpy.random.default_rng(0)
    for split, size in (("train", 300), ("dev", 60), ("test", 90)):
        docs = []
        for number in range(size):
            topic = list(TOPICS)[number % 3]
            told = topic if order.random() < 0.9 else "grain"
            doc = nlp.make_doc(" ".join(order.choice([*TOPICS[told], "the", "said", "of"], 12)))
            doc.cats = {name: float(name == topic) for name in TOPICS}
            docs.append(doc)
        source = save_docs(folder / f"{split}.spacy", docs)
        if split != "test":
            store.pack(source, source.with_suffix(".safetensors"))
    return folder


OPTIONS = ("--configs", str(CONFIGS))


def command(corpus: Path, folder: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "scripts" / "compare.py"), "run", str(corpus), *arguments),
        *(*OPTIONS, "--gpu-id", "-1"),
        *("--work", str(folder / "work"), "--output", str(folder / "report")),
    ]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def compared(corpus, tmp_path_factory) -> Path:
    """A folder with a comparison of bow and its twin."""
    folder = tmp_path_factory.mktemp("compared")
    done = run(command(corpus, folder, "bow", "--twins", "on", *SHORT), folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_report_and_runs_are_there(compared):
    made = srsly.read_json(compared / "report" / "report.json")
    assert [result["name"] for result in made["runs"]] == ["bow-zero_copy-0", "bow-stock-0"]
    assert made["advice"][0].startswith("Take bow: ")
    assert [row["side"] for row in made["tasks"][0]["rows"]] == ["zero_copy", "stock"]
    assert made["tasks"][0]["rows"][0]["ratios"]["words_per_second"] > 0
    assert made["tasks"][0]["baselines"][0]["accuracy"] > 0.8
    page = (compared / "report" / "report.html").read_text(encoding="utf8")
    assert "bow" in page
    assert "# Text classifiers on topics" in (compared / "report" / "report.md").read_text()
    assert not list((compared / "work").glob(".unfinished-*"))
    assert not list((compared / "work").glob("*/model-last"))


@pytest.mark.parametrize("name", ["bow-zero_copy-0", "bow-stock-0"])
def test_scores_are_those_of_spacy_evaluate(compared, corpus, name):
    nlp = spacy.load(compared / "work" / name / "model-best")
    result = srsly.read_json(compared / "work" / name / "result.json")
    for split in ("dev", "test"):
        scores = nlp.evaluate(Corpus(corpus / f"{split}.spacy")(nlp))
        found = result["classifiers"]["textcat"][split]
        assert found["micro_f"] == pytest.approx(scores["cats_micro_f"], abs=1e-9)
        assert found["macro_f"] == pytest.approx(scores["cats_macro_f"], abs=1e-9)
        for label, prf in scores["cats_f_per_type"].items():
            assert found["f_per_type"][label] == pytest.approx(prf)


def test_best_score_is_that_of_the_saved_pipeline(compared):
    for result in find_all(compared):
        best = max(point["score"] for point in result["curve"])
        assert result["classifiers"]["textcat"]["dev"]["micro_f"] == pytest.approx(best)
        assert 0 < result["best_seconds"] <= result["train_seconds"]
        assert result["words_per_second"] > 0
        assert result["evaluation_seconds"] > 0
        assert result["peak_host_bytes"] > 10**8
        assert result["peak_device_bytes"] is None


def find_all(compared: Path) -> list[dict]:
    return [srsly.read_json(path) for path in (compared / "work").glob("bow*/result.json")]


def test_saved_pipeline_knows_nothing_of_the_recording(compared):
    for name in ("bow-zero_copy-0", "bow-stock-0"):
        path = compared / "work" / name / "model-best" / "config.cfg"
        assert "zero_copy" not in path.read_text(encoding="utf8")
        training = Config().from_disk(path, interpolate=False)["training"]
        assert training["logger"] == {"@loggers": "spacy.ConsoleLogger.v1", "progress_bar": False}
        assert training["before_to_disk"] is None


def test_what_is_there_is_kept(compared, corpus):
    """Needs the comparison; adds a config to it."""
    before = {path: path.stat().st_mtime_ns for path in compared.glob("work/bow*/result.json")}
    done = run(command(corpus, compared, "bow", "--twins", "on", *SHORT), compared)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("(kept)") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_killed_comparison_goes_on(corpus, tmp_path):
    arguments = command(corpus, tmp_path, "bow", "--seeds", "2", *SHORT)
    work = tmp_path / "work"
    process = subprocess.Popen(arguments, cwd=tmp_path, start_new_session=True)
    try:
        wait_for(lambda: (work / "bow-zero_copy-0" / "result.json").exists(), process)
        wait_for(lambda: any(work.glob(".unfinished-*/bow-zero_copy-1/*.jsonl")), process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert any(work.glob(".unfinished-*"))
    assert not (work / "bow-zero_copy-1").exists()
    first = (work / "bow-zero_copy-0" / "result.json").stat().st_mtime_ns
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (work / "bow-zero_copy-0" / "result.json").stat().st_mtime_ns == first
    assert (work / "bow-zero_copy-1" / "model-best" / "meta.json").exists()
    assert not any(work.glob(".unfinished-*"))
    (row,) = srsly.read_json(tmp_path / "report" / "report.json")["tasks"][0]["rows"]
    assert row["seeds"] == [0, 1]
    assert row["accuracy"]["sd"] is not None


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("It took too long")


def test_run_that_fails_leaves_the_others(corpus, tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    good = (CONFIGS / "bow.cfg").read_text(encoding="utf8")
    (configs / "good.cfg").write_text(good, encoding="utf8")
    bad = good.replace("spacy.TextCatBOW.v3", "spacy.Nothing.v3")
    (configs / "bad.cfg").write_text(bad, encoding="utf8")
    setting = Setting(corpus, tmp_path / "work", "-1", SHORT)
    told = []
    results, failures = train_missing(
        plan_runs(["bad", "good"], configs, seeds=1, twins=False),
        setting,
        lambda *_: None,
        lambda run, result, was_there: told.append((run.name, was_there)),
    )
    assert [result["variant"] for result in results] == ["good"]
    assert told == [("good-zero_copy-0", False)]
    assert list(failures) == ["bad-zero_copy-0"]
    assert "spacy.Nothing.v3" in failures["bad-zero_copy-0"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["good-zero_copy-0"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bow nothing"], "bow, "),
        (["bow", "--twins", "maybe"], "Use on or off"),
        (["bow", "--seeds", "0"], "nothing to compare"),
        ([""], "nothing to compare"),
        (["bow", "--gpu-id", "seven"], "gpu_id is 'seven'"),
    ],
)
def test_bad_input_is_one_message(corpus, tmp_path, arguments, said):
    work = ["--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, ["run", str(corpus), *arguments, *OPTIONS, *work])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit)


def test_unknown_corpus_lists_those_there_are(corpus, tmp_path):
    done = CliRunner().invoke(app, ["run", str(corpus.parent / "none"), "bow", *OPTIONS])
    assert done.exit_code == 1
    assert "there are: topics" in " ".join(done.output.split())


def test_corpus_without_a_test_set(corpus, tmp_path):
    (tmp_path / "train.spacy").touch()
    with pytest.raises(UserError, match="convert"):
        check_corpus(tmp_path)


def test_report_of_nothing(corpus, tmp_path):
    done = CliRunner().invoke(app, ["report", str(corpus), "--work", str(tmp_path / "work")])
    assert done.exit_code == 1
    assert "project run compare" in " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit)


def test_diff():
    done = CliRunner().invoke(app, ["diff", "bow", "cnn"])
    assert done.exit_code == 0
    assert "max_steps" in done.output


def test_plan_has_twins_side_by_side():
    runs = plan_runs(["bow", "cnn", "bow"], CONFIGS, seeds=2, twins=True)
    assert [run.name for run in runs] == [
        f"{variant}-{side}-{seed}"
        for variant in ("bow", "cnn")
        for seed in (0, 1)
        for side in ("zero_copy", "stock")
    ]
    assert runs[1].config == CONFIGS / "stock" / "bow.cfg"


def test_fingerprint_changes_with_what_counts(corpus, tmp_path):
    path = tmp_path / "bow.cfg"
    path.write_text((CONFIGS / "bow.cfg").read_text(encoding="utf8"), encoding="utf8")
    one = Run("bow", "zero_copy", 0, path)
    setting = Setting(corpus, tmp_path, "-1")
    prints = {
        run_fingerprint(one, setting, "a"),
        run_fingerprint(one, setting, "b"),
        run_fingerprint(replace(one, seed=1), setting, "a"),
        run_fingerprint(one, replace(setting, overrides=SHORT), "a"),
    }
    text = re.sub(r"max_steps = \d+", "max_steps = 7", path.read_text(encoding="utf8"))
    path.write_text(text, encoding="utf8")
    prints.add(run_fingerprint(one, setting, "a"))
    assert len(prints) == 5
    assert run_fingerprint(one, replace(setting, work=Path("other")), "a") in prints


@pytest.mark.parametrize(
    ("name", "file"), [("vectors", "vectors/data"), ("pretrained", "pretrained.bin")]
)
def test_fingerprint_changes_with_what_training_starts_from(tmp_path, name, file):
    prints = set()
    for content in (b"first", b"second"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
        for variant in (name, "bow"):
            one = Run(variant, "zero_copy", 0, CONFIGS / f"{variant}.cfg")
            prints.add(run_fingerprint(one, Setting(tmp_path, tmp_path, "-1"), "a"))
    assert len(prints) == 3


def test_results_of_another_corpus_are_not_found(compared, corpus):
    folder = compared / "work" / "bow-zero_copy-0"
    fingerprint = srsly.read_json(folder / "result.json")["fingerprint"]
    assert find_result(folder, fingerprint)
    assert find_result(folder, "other") is None
    setting = Setting(corpus, compared / "work")
    assert {result["name"] for result in find_results(setting)} == {
        "bow-zero_copy-0",
        "bow-stock-0",
    }


def test_digest_changes_with_the_corpus(corpus, tmp_path, nlp):
    before = corpus_digest(corpus)
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.spacy").write_bytes((corpus / f"{split}.spacy").read_bytes())
    assert corpus_digest(tmp_path) == before
    save_docs(tmp_path / "test.spacy", [nlp.make_doc("another")])
    assert corpus_digest(tmp_path) != before


def test_second_comparison_is_refused(tmp_path):
    (tmp_path / ".unfinished-1").mkdir()
    with only_one(tmp_path):
        assert not (tmp_path / ".unfinished-1").exists()
        with pytest.raises(UserError, match="at work"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass


def test_predictions_belong_to_the_texts(compared, corpus):
    path = compared / "work" / "bow-zero_copy-0" / "predictions.safetensors"
    dev, test = read_predictions(path)
    assert (dev.split, test.split) == ("dev", "test")
    assert dev.is_exclusive
    docs = list(read_docs(corpus / "test.spacy"))
    numpy.testing.assert_array_equal(test.truths, read_truths(docs, test.labels))
    nlp = spacy.load(compared / "work" / "bow-zero_copy-0" / "model-best")
    cats = nlp(docs[5].text).cats
    expected = [cats[label] for label in test.labels]
    numpy.testing.assert_allclose(test.scores[5], expected, rtol=1e-4)


def test_two_classifiers_are_two_tasks(tmp_path):
    """One pipeline tells topics apart, and whether a text is long and whether it has a port."""
    nlp, order = spacy.blank("en"), numpy.random.default_rng(0)
    corpus = tmp_path / "both"
    corpus.mkdir()
    for split, size in (("train", 200), ("dev", 40), ("test", 40)):
        docs = []
        for number in range(size):
            topic = list(TOPICS)[number % 3]
            words = order.choice([*TOPICS[topic], "the", "port"], 6 + 6 * (number % 2))
            docs.append(nlp.make_doc(" ".join(words)))
            docs[-1].cats = {name: float(name == topic) for name in TOPICS}
            docs[-1].cats |= {"long": float(number % 2), "port": float("port" in words)}
        source = save_docs(corpus / f"{split}.spacy", docs)
        if split != "test":
            store.pack(source, source.with_suffix(".safetensors"))
    config = Config().from_disk(CONFIGS / "bow.cfg", interpolate=False)
    config["nlp"]["pipeline"] = ["textcat", "traits"]
    traits = {**config["components"]["textcat"], "factory": "zero_copy_textcat_multilabel"}
    traits |= {"threshold": 0.5, "scorer": {"@scorers": "spacy.textcat_multilabel_scorer.v2"}}
    traits["model"] = {**traits["model"], "exclusive_classes": False}
    config["components"]["traits"] = traits
    config["initialize"]["components"] = {
        "textcat": {"labels": list(TOPICS)},
        "traits": {"labels": ["long", "port"]},
    }
    (tmp_path / "configs").mkdir()
    config.to_disk(tmp_path / "configs" / "two.cfg")
    arguments = [*command(corpus, tmp_path, "two", *SHORT), "--configs", str(tmp_path / "configs")]
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    topics, both = srsly.read_json(tmp_path / "report" / "report.json")["tasks"]
    assert topics["labels"] == sorted(TOPICS)
    assert (both["labels"], both["multi_label"]) == (["long", "port"], True)
    assert topics["rows"][0]["accuracy"]["mean"] > 0.8
    assert both["rows"][0]["classifier"] == "traits"
    assert both["confusion"] is None
    assert topics["baselines"][0]["accuracy"] > 0.8
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf8")
    assert "Task 2: Results, 2 labels, several a text" in text
