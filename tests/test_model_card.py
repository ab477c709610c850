"""The card says what is known, and no more than that."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
import spacy
import srsly
from spacy.training import Corpus

from conftest import random_docs, save_docs
from zero_copy import store
from zero_copy.compare import corpus_digest
from zero_copy.model_card import (
    count_split,
    describe_corpus,
    find_comparison,
    find_scores,
    gather_facts,
    make_meta,
    missing_facts,
    write_card,
)
from zero_copy.training import record_training

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "farm"
    folder.mkdir()
    nlp = spacy.blank("en")
    for seed, split in enumerate(("train", "dev", "test")):
        lengths = numpy.random.default_rng(seed).integers(1, 20, 30)
        save_docs(folder / f"{split}.spacy", random_docs(nlp, lengths, seed))
    store.pack(folder / "train.spacy", folder / "train.safetensors")
    return folder


@pytest.fixture
def metrics(pipeline, corpus, tmp_path) -> Path:
    """What evaluate and compare write."""
    nlp = spacy.load(pipeline)
    srsly.write_json(tmp_path / "bow.json", nlp.evaluate(Corpus(corpus / "test.spacy")(nlp)))
    row = {
        "variant": "bow",
        "side": "zero_copy",
        "seeds": [0, 1, 2],
        "accuracy": {"mean": 0.9689, "sd": 0.0021},
        "macro_f": {"mean": 0.88, "sd": 0.01},
        "words_per_second": 907_000.0,
        "ratios": {"words_per_second": 10.8},
    }
    training = srsly.read_json(ROOT / "benchmarks/results/train_speed-amd-epyc-2-cores.json")
    report = {
        "machine": training["bow"]["machine"],
        "tasks": [{"rows": [row]}],
        "runs": [{"corpus": corpus_digest(corpus)}],
    }
    srsly.write_json(tmp_path / "report.json", report)
    return tmp_path


def test_card_of_all_that_is_known(pipeline, corpus, metrics, tmp_path):
    facts = gather_facts(pipeline, corpus, metrics, "bow")
    assert list(missing_facts(facts).values()) == ["train"]
    facts["meta"]["performance"] = {"textcat_loss": 0.4}
    meta = make_meta(facts)
    card = meta["notes"]
    assert "accuracy (micro F) 96.89 ± 0.21 %" in card
    assert "with 3 seeds" in card
    assert "10.8 times as many" in card
    assert "[components.textcat.model]" in card
    scores = srsly.read_json(metrics / "bow.json")
    for label, row in scores["cats_f_per_type"].items():
        assert re.search(rf"\| {label} \| \d+ \| .* {100 * row['f']:.2f} \|", card)
    assert meta["performance"]["cats_micro_f"] == scores["cats_micro_f"]
    assert all(name.startswith("cats_") for name in meta["performance"])
    assert meta["description"] == "Tells 3 categories of texts apart, trained on farm."


def test_card_of_a_pipeline_that_nothing_is_known_about(pipeline, tmp_path):
    facts = gather_facts(pipeline, tmp_path / "no", tmp_path / "none", "bow")
    assert list(missing_facts(facts).values()) == ["train", "evaluate", "compare"]
    card = write_card(facts)
    assert "flatter" in card
    assert "not recorded" in card
    assert "### Data" not in card


def test_training_is_recorded_beside_the_pipeline(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "configs/my config.cfg"])
    folder = tmp_path / "model-best"
    folder.mkdir()
    for name in ("meta.json", "config.cfg"):
        (folder / name).write_bytes((pipeline / name).read_bytes())
    record_training(tmp_path, "CPU", 30.2)
    card = write_card(gather_facts(folder, tmp_path / "no", tmp_path / "none", "bow"))
    assert "python scripts/train.py 'configs/my config.cfg'" in card
    assert "30 s in all, on CPU: " in card
    assert f"spaCy {spacy.__version__}" in card


def test_split_is_counted_alike_packed_or_not(corpus, tmp_path):
    (tmp_path / "train.spacy").write_bytes((corpus / "train.spacy").read_bytes())
    counted = count_split(tmp_path, "train")
    assert counted == count_split(corpus, "train")
    assert counted["texts"] == sum(counted["labels"].values()) == 30


def test_scores_of_an_older_pipeline_are_left_out(pipeline, metrics):
    assert find_scores(pipeline, metrics / "bow.json")
    before = (pipeline / "meta.json").stat().st_mtime - 10
    os.utime(metrics / "bow.json", (before, before))
    assert find_scores(pipeline, metrics / "bow.json") is None


def test_comparison_on_another_corpus_is_left_out(corpus, metrics):
    assert find_comparison(corpus, metrics / "report.json", "bow")
    assert find_comparison(corpus, metrics / "report.json", "cnn") is None
    report = srsly.read_json(metrics / "report.json")
    srsly.write_json(metrics / "report.json", report | {"runs": [{"corpus": "another"}]})
    assert find_comparison(corpus, metrics / "report.json", "bow") is None


def test_corpus_is_described_by_the_project():
    described = describe_corpus(ROOT / "project.yml", "r8")
    assert len(described) == 2
    assert "Reuters" in described[0]
    assert describe_corpus(ROOT / "project.yml", "mine") == []


def test_wheel_installs_and_loads_in_a_clean_environment(pipeline, corpus, metrics, tmp_path):
    output = tmp_path / "packages"
    stale = output / "en_farm-1.2.3" / "README.md"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier build")
    command = [sys.executable, ROOT / "scripts" / "package.py", pipeline, output, "--name", "farm"]
    command += ["--version", "1.2.3", "--corpus", corpus, "--metrics", metrics, "--config", "bow"]
    done = subprocess.run(
        [*map(str, command), "--license", "MIT"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = output.rglob("*.whl")
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    (site,) = (tmp_path / "clean").rglob("site-packages")
    # Of all that this environment has only its packages, spaCy among them: not this project.
    (site / "spacy.pth").write_text(str(Path(spacy.__file__).parent.parent))
    code = (
        "import spacy, sys; nlp = spacy.load('en_farm');"
        "print(sorted(nlp('wheat').cats), nlp.meta['version'], 'zero_copy' in sys.modules)"
    )
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.stdout.strip() == "['grain', 'ship', 'trade'] 1.2.3 False", done.stderr
    described = next(site.glob("en_farm-1.2.3.dist-info/METADATA")).read_text(encoding="utf8")
    assert "Requires-Dist: spacy" in described
    for readme in (described, stale.read_text(encoding="utf8")):
        assert "accuracy (micro F) 96.89 ± 0.21 %" in readme
        assert "earlier build" not in readme
