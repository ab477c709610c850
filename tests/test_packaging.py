"""Pipelines with architectures of one's own: they go anywhere with the one file that they need."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import srsly
from spacy.util import load_config

from conftest import random_lengths, save_corpus
from forking import run_script
from zero_copy.errors import UserError
from zero_copy.export import stock_config
from zero_copy.packaging import SCRIPTS, code_files, load_pipeline_config
from zero_copy.vectors import make_vectors

ROOT = Path(__file__).parent.parent
# So that no process finds this project's code by way of pytest's own path.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
FILES = {"torch": "torch_head", "custom_embedding": "custom_embedding"}


def run(*command, **settings) -> subprocess.CompletedProcess:
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True} | settings
    return subprocess.run([sys.executable, *map(str, command)], **settings)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    lengths = {"train": random_lengths(39, 60), "dev": random_lengths(39, 20, 1)}
    folder = save_corpus(tmp_path_factory.mktemp("corpus"), lengths)
    make_vectors(folder / "train.safetensors", folder / "vectors", dim=8, epochs=1)
    return folder


@pytest.fixture(scope="module", params=FILES)
def trained(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp(request.param)
    done = run_script(
        *(ROOT / "scripts" / "train.py", ROOT / "configs" / f"{request.param}.cfg", corpus, output),
        *("--gpu-id", -1, "--training.max_steps", 4, "--training.eval_frequency", 2),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return FILES[request.param], output / "model-best"


def test_loads_in_a_fresh_process_with_one_file(trained, tmp_path):
    name, pipeline = trained
    (tmp_path / f"{name}.py").write_bytes((SCRIPTS / f"{name}.py").read_bytes())
    code = (
        f"import sys, spacy, {name}; nlp = spacy.load({str(pipeline)!r});"
        "print(sorted(nlp('wheat and ships').cats));"
        "print([name for name in sys.modules if 'zero_copy' in name])"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.stdout.split("\n")[:2] == ["['grain', 'ship', 'trade']", "[]"], done.stderr


def test_scores_what_training_said(trained, corpus):
    name, pipeline = trained
    done = run(
        *("-m", "spacy", "evaluate", pipeline, corpus / "dev.spacy"),
        *("--code", SCRIPTS / f"{name}.py", "--output", pipeline.parent / "metrics.json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = srsly.read_json(pipeline / "meta.json")["performance"]
    scores = srsly.read_json(pipeline.parent / "metrics.json")
    for key in ("cats_micro_f", "cats_macro_f"):
        assert scores[key] == pytest.approx(said[key], abs=1e-6)


def test_wheel_holds_the_file_and_runs_without_this_project(trained, tmp_path):
    name, pipeline = trained
    done = run(SCRIPTS / "package.py", pipeline, tmp_path / "out", "--name", "mine")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").rglob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "en_mine" / f"{name}.py").exists()
    metadata = next((tmp_path / "site").rglob("METADATA")).read_text(encoding="utf8")
    assert ("Requires-Dist: torch" in metadata) == (name == "torch_head")
    code = (
        "import sys; sys.path.insert(0, 'site'); import en_mine; nlp = en_mine.load();"
        "print(sorted(nlp('wheat').cats), 'zero_copy' in sys.modules)"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "['grain', 'ship', 'trade'] False", done.stderr


def test_without_vectors_training_says_what_to_run(corpus, tmp_path):
    for split in ("train", "dev"):
        for ending in ("spacy", "safetensors"):
            name = f"{split}.{ending}"
            (tmp_path / name).write_bytes((corpus / name).read_bytes())
    arguments = (ROOT / "configs" / "vectors.cfg", tmp_path, tmp_path / "out", "--gpu-id", -1)
    done = run_script(SCRIPTS / "train.py", *arguments)
    assert done.returncode == 1
    assert "project run vectors" in " ".join(done.stdout.split())
    command = ["-m", "spacy", "train", ROOT / "configs" / "vectors.cfg"]
    for split in ("train", "dev"):
        command += [f"--paths.{split}", tmp_path / f"{split}.safetensors"]
    done = run_script(*command, "--code", SCRIPTS / "functions.py")
    assert done.returncode == 1
    assert "project run vectors" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("config", "files"),
    [("cnn", []), ("torch", ["torch_head.py"]), ("custom_embedding", ["custom_embedding.py"])],
)
def test_files_that_a_pipeline_needs(config, files):
    exported = stock_config(load_config(ROOT / "configs" / f"{config}.cfg"))
    assert code_files(exported) == [SCRIPTS / name for name in files]


def test_unknown_function_and_missing_pipeline(tmp_path):
    config = load_config(ROOT / "configs" / "torch.cfg")
    config["components"]["textcat"]["model"]["@architectures"] = "my.Lost.v1"
    with pytest.raises(UserError, match=r"needs my\.Lost\.v1"):
        code_files(stock_config(config))
    with pytest.raises(UserError, match="There is no pipeline"):
        load_pipeline_config(tmp_path)
