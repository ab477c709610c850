"""The loop that is written out ends where `spacy train` ends."""

from pathlib import Path

import pytest

from forking import run_script
from test_export import CONFIGS, ROOT, corpus, plain, spacy_train

__all__ = ["corpus"]  # a fixture
SCRIPT = ROOT / "scripts" / "train_loop.py"


def files(folder: Path) -> dict[str, bytes]:
    """What was saved, but for the scores that `spacy train` notes in the meta data."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "meta.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def loop(config: Path, corpus: Path, output: Path, *options):
    paths = ("--paths.train", corpus / "train.safetensors", "--paths.dev")
    return run_script(
        *(SCRIPT, config, output, *paths, corpus / "dev.safetensors"),
        *("--training.max_steps", 20, "--training.eval_frequency", 10, *options),
    )


OPTIONS = {
    "bow": ("--training.max_epochs", 2, "--training.batcher.size", 300),
    "ensemble": ("--system.seed", 3, "--training.patience", 8),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_result_is_that_of_spacy_train(corpus, tmp_path, name):
    config, options = CONFIGS / f"{name}.cfg", OPTIONS[name]
    done = spacy_train(config, corpus, tmp_path / "stock", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    done = loop(config, corpus, tmp_path / "own", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on dev" in done.stdout
    expected = files(tmp_path / "stock" / "model-best")
    assert files(tmp_path / "own" / "model-best") == expected
    assert any(name.endswith("model") for name in expected)


def test_it_is_short():
    assert len(SCRIPT.read_text(encoding="utf8").splitlines()) <= 60


def test_missing_corpus_is_told_in_one_message(tmp_path):
    done = loop(CONFIGS / "bow.cfg", tmp_path, tmp_path / "own")
    assert done.returncode == 1
    assert "There is no packed corpus" in plain(done.stdout + done.stderr)
    assert "Traceback" not in done.stderr
