"""The workflow as a user runs it, on data of one's own, and cloned as a template."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import spacy
import srsly

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
TOPICS = {"5": ["good", "great", "fine"], "1": ["bad", "awful", "poor"], "3": ["so", "average"]}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "spacy", "project", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )


def plain(done: subprocess.CompletedProcess) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A fork of the template with a file of reviews in assets/."""
    folder = tmp_path_factory.mktemp("fork") / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    text = (ROOT / "project.yml").read_text(encoding="utf8")
    (folder / "project.yml").write_text(text, encoding="utf8")
    config = folder / "configs" / "bow.cfg"
    short = config.read_text(encoding="utf8")
    quick = {"max_steps": 60, "eval_frequency": 20, "warmup_steps": 5, "initial_rate": 0.05}
    for name, value in quick.items():
        short = re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", short)
    config.write_text(short, encoding="utf8")
    order = numpy.random.default_rng(0)
    (folder / "assets" / "reviews").mkdir(parents=True)
    path = folder / "assets" / "reviews" / "train.csv"
    with path.open("w", encoding="utf8", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["stars", "review"])
        for number in range(300):
            stars = list(TOPICS)[number % 3]
            words = order.choice([*TOPICS[stars], "the", "hotel", "was"], 8)
            rows.writerow([stars, " ".join(words) + f", {number}"])
    return folder


OPTIONS = (
    *(".", "--vars.dataset", "reviews", "--vars.config", "bow"),
    *("--vars.text_column", "review", "--vars.label_column", "stars"),
)


def test_own_data_from_csv_to_scores(project):
    done = run(project, "run", "all", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    for split in ("train", "dev", "test"):
        assert (project / "corpus" / "reviews" / f"{split}.spacy").exists()
    scores = srsly.read_json(project / "metrics" / "reviews" / "bow.json")
    assert scores["cats_micro_f"] > 0.95
    nlp = spacy.load(project / "training" / "reviews" / "bow" / "model-best")
    cats = nlp("the hotel was awful, poor and bad").cats
    assert max(cats, key=cats.__getitem__) == "1"


def test_running_again_skips_what_is_up_to_date(project):
    """Needs the test before it."""
    model = project / "training" / "reviews" / "bow" / "model-best" / "meta.json"
    before = model.stat().st_mtime_ns
    done = run(project, "run", "all", *OPTIONS)
    assert done.returncode == 0
    for command in ("convert", "pack", "train", "evaluate"):
        assert f"Skipping '{command}': nothing changed" in plain(done)
    assert model.stat().st_mtime_ns == before


@pytest.mark.parametrize("command", ["debug", "train"])
def test_unknown_config_lists_those_there_are(project, command):
    """Needs the corpus of the first test."""
    done = run(project, "run", command, ".", *OPTIONS[1:3], "--vars.config", "none")
    assert done.returncode == 1
    assert "bigrams, bow, cnn, " in plain(done)
    assert "Traceback" not in plain(done)


def test_unknown_data_set(project):
    done = run(project, "run", "download", ".", "--vars.dataset", "nothing")
    assert done.returncode == 1
    assert "20newsgroups" in plain(done)
    assert "Traceback" not in plain(done)


def test_package_builds_a_wheel(project):
    """Needs the pipeline of the first test."""
    done = run(project, "run", "package", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((project / "packages").rglob("en_zero_copy_textcat-0.1.0-py3-none-any.whl"))


def test_clean_leaves_the_assets(project):
    """Needs the first test; the last of this file that does."""
    assert run(project, "run", "clean", *OPTIONS).returncode == 0
    assert not (project / "training" / "reviews").exists()
    assert not (project / "corpus" / "reviews").exists()
    assert (project / "assets" / "reviews" / "train.csv").exists()


def test_repository_can_be_cloned_as_a_template(tmp_path):
    branch = subprocess.run(
        ["git", "branch", "--show-current"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    done = run(tmp_path, "clone", ".", "mine", "--repo", str(ROOT), "--branch", branch or "main")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mine" / "project.yml").exists()


def test_document_is_up_to_date(tmp_path):
    """The command reference of the README is what `spacy project document` writes."""
    shutil.copy(ROOT / "project.yml", tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    done = run(tmp_path, "document", "--output", "README.md")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "README.md").read_text(encoding="utf8")
    assert written == (ROOT / "README.md").read_text(encoding="utf8")


def test_assets_of_the_workflow_have_immutable_addresses_and_checksums():
    project = srsly.read_yaml(ROOT / "project.yml")
    for asset in project["assets"]:
        assert len(asset["checksum"]) == 32
        assert "/main/" not in asset["url"]
        assert "/master/" not in asset["url"]
    json.dumps(project)
