"""`spacy train` as a user runs it, and the stock pipeline that it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import spacy
from spacy.util import load_config

from conftest import random_lengths, save_corpus
from forking import run_script
from zero_copy.export import stock_config

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
# So that no process finds this project's code by way of pytest's own path.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    sizes = {"train": 60, "dev": 20, "test": 20}
    lengths = {
        name: random_lengths(39, size, seed) for seed, (name, size) in enumerate(sizes.items())
    }
    return save_corpus(tmp_path_factory.mktemp("corpus"), lengths)


def run(*command, **settings) -> subprocess.CompletedProcess:
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True} | settings
    return subprocess.run([sys.executable, *map(str, command)], **settings)


def spacy_train(
    config: Path, corpus: Path, output: Path, *options, ending="safetensors", **settings
):
    command = ["-m", "spacy", "train", config, "--code", ROOT / "scripts" / "functions.py"]
    for split in ("train", "dev"):
        command += [f"--paths.{split}", corpus / f"{split}.{ending}"]
    steps = ["--training.max_steps", 20, "--training.eval_frequency", 10]
    return run_script(*command, "--output", output, *steps, *options, **settings)


def plain(text: str) -> str:
    """Output on one line, as a terminal's width has no say in it."""
    return " ".join(text.split())


@pytest.fixture(scope="module", params=["bow", "cnn", "ensemble"])
def trained(request, corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp(request.param)
    done = spacy_train(CONFIGS / f"{request.param}.cfg", corpus, output, cwd=output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CATS_MICRO_F" in done.stdout
    return output / "model-best"


def test_nothing_of_this_project_is_left(trained):
    for path in trained.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"zero_copy" not in content, path
            assert b"safetensors" not in content, path
    config = load_config(trained / "config.cfg")
    assert config["corpora"]["train"]["@readers"] == "spacy.Corpus.v1"
    assert config["training"]["batcher"]["@batchers"] == "spacy.batch_by_words.v1"


def test_fresh_process_in_another_folder_scores_what_training_said(trained, corpus, tmp_path):
    output = tmp_path / "metrics.json"
    done = run(
        *("-m", "spacy", "evaluate", trained, corpus / "dev.spacy", "--output", output),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads((trained / "meta.json").read_text(encoding="utf8"))["performance"]
    scores = json.loads(output.read_text(encoding="utf8"))
    for key in ("cats_micro_f", "cats_macro_f"):
        assert scores[key] == pytest.approx(said[key], abs=1e-6)
    assert all(isinstance(value, float) for key, value in said.items() if key.endswith("_loss"))


def test_stock_process_has_none_of_our_modules(trained, tmp_path):
    code = (
        f"import sys, spacy; nlp = spacy.load({str(trained)!r}); doc = nlp('wheat and ships');"
        "print(sorted(doc.cats)); print([name for name in sys.modules if 'zero_copy' in name]);"
        "print(sorted({type(pipe).__module__.split('.')[0] for _, pipe in nlp.pipeline}))"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.stdout.split("\n")[:3] == ["['grain', 'ship', 'trade']", "[]", "['spacy']"], (
        done.stdout + done.stderr
    )


def test_stock_training_goes_on_from_the_exported_config(trained, corpus, tmp_path):
    """The config in the pipeline is one that stock `spacy train` takes."""
    done = run_script(
        *("-m", "spacy", "train", trained / "config.cfg", "--output", tmp_path),
        *("--paths.train", corpus / "train.spacy", "--paths.dev", corpus / "dev.spacy"),
        *("--training.max_steps", 1),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_paths_in_the_exported_config_are_those_of_the_sources():
    config = load_config(
        CONFIGS / "cnn.cfg",
        overrides={"paths.train": "a/train.safetensors", "paths.dev": "b.spacy"},
    )
    stock = stock_config(config).interpolate()
    assert stock["corpora"]["train"]["path"] == "a/train.spacy"
    assert stock["corpora"]["dev"]["path"] == "b.spacy"


def test_memory_of_a_streamed_corpus_is_no_setting_of_spacys_reader():
    config = load_config(CONFIGS / "cnn.cfg", overrides={"corpora.train.memory": "8GB"})
    reader = stock_config(config)["corpora"]["train"]
    assert reader["@readers"] == "spacy.Corpus.v1"
    assert "memory" not in reader


def test_same_seed_same_pipeline(corpus, tmp_path):
    for name in ("first", "second"):
        done = spacy_train(CONFIGS / "cnn.cfg", corpus, tmp_path / name)
        assert done.returncode == 0, done.stderr
    files = [tmp_path / name / "model-last" / "textcat" / "model" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("max_epochs", [-1, 2])
def test_epochs(corpus, tmp_path, max_epochs):
    done = spacy_train(CONFIGS / "bow.cfg", corpus, tmp_path, "--training.max_epochs", max_epochs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "model-best" / "meta.json").exists()


def test_our_components_train_from_docs(corpus, tmp_path):
    """With spaCy's reader and batcher the same factories are spaCy's own components."""
    config = load_config(CONFIGS / "stock" / "ensemble.cfg")
    for component in config["components"].values():
        component["factory"] = f"zero_copy_{component['factory']}"
    config["training"]["before_to_disk"] = {"@callbacks": "zero_copy.to_stock.v1"}
    config.to_disk(tmp_path / "ordinary.cfg")
    done = spacy_train(tmp_path / "ordinary.cfg", corpus, tmp_path / "out", ending="spacy")
    assert done.returncode == 0, done.stdout + done.stderr
    assert spacy.load(tmp_path / "out" / "model-best")("wheat").cats


def test_weights_of_classes_stay_behind(corpus, tmp_path):
    """They are the training's; the pipeline is a stock one, and its config trains without them."""
    settings = {"class_weights": "balanced", "label_smoothing": 0.1}
    options = [f"--components.textcat.{name}={value}" for name, value in settings.items()]
    done = spacy_train(CONFIGS / "bow.cfg", corpus, tmp_path / "out", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    config = load_config(tmp_path / "out" / "model-best" / "config.cfg")
    assert not set(settings) & set(config["components"]["textcat"])
    assert spacy.load(tmp_path / "out" / "model-best")("wheat").cats
    done = spacy_train(
        *(CONFIGS / "bow.cfg", corpus, tmp_path / "refused"),
        *("--components.textcat.class_weights", '{"none": 2.0}'),
    )
    assert done.returncode == 1
    assert "weight for 'none', which is no label" in plain(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


def test_console_script(corpus, tmp_path):
    script = Path(sys.executable).with_name("spacy")
    done = subprocess.run(
        [
            *(script, "train", CONFIGS / "bow.cfg", "--code", ROOT / "scripts" / "functions.py"),
            *("--paths.train", corpus / "train.safetensors", "--training.max_steps", "2"),
            *("--paths.dev", corpus / "dev.safetensors", "--output", tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def train_script(config, corpus, output, *options, **settings):
    script = ROOT / "scripts" / "train.py"
    return run_script(script, config, corpus, output, "--gpu-id", "auto", *options, **settings)


def test_train_script_says_the_device_and_passes_settings_on(corpus, tmp_path):
    done = train_script(
        CONFIGS / "bow.cfg", corpus, tmp_path / "out", "--training.max_steps", 3, "--seed", 7
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Training on " in done.stdout
    config = load_config(tmp_path / "out" / "model-best" / "config.cfg")
    assert config["training"]["max_steps"] == 3
    assert config["system"]["seed"] == 7


def test_train_script_trains_stock_configs_from_docs(corpus, tmp_path):
    done = train_script(
        CONFIGS / "stock" / "bow.cfg", corpus, tmp_path / "out", "--training.max_steps", 2
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_unknown_config_lists_those_there_are(corpus, tmp_path):
    done = train_script(CONFIGS / "none.cfg", corpus, tmp_path / "out")
    assert done.returncode == 1
    assert "bigrams, bow, cnn, " in plain(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


def test_missing_corpus_names_the_command(tmp_path):
    done = train_script(CONFIGS / "cnn.cfg", tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "project run pack" in plain(done.stdout)


def test_impossible_gpu(corpus, tmp_path):
    done = train_script(CONFIGS / "cnn.cfg", corpus, tmp_path / "out", "--gpu-id", "99")
    assert done.returncode == 1
    assert "GPU 99 can't be used" in plain(done.stdout)


@pytest.mark.parametrize("script", [True, False], ids=["script", "spacy-train"])
def test_refused_corpus_is_one_message(corpus, tmp_path, script):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.safetensors").write_bytes(b"nonsense")
    if script:
        done = train_script(CONFIGS / "bow.cfg", tmp_path, tmp_path / "out")
    else:
        done = spacy_train(CONFIGS / "bow.cfg", tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "is cut off, or no .safetensors file" in plain(done.stdout)
    assert "Traceback" not in done.stdout + done.stderr


def test_ctrl_c_leaves_pipelines_whole(corpus, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "train.py", CONFIGS / "bow.cfg", corpus, tmp_path]
    process = subprocess.Popen(
        [*map(str, command), "--training.max_steps", "1000000", "--training.patience", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        # A shell's background jobs, these tests perhaps among them, are started deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "model-best" / "meta.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output + errors
    assert spacy.load(tmp_path / "model-last")("wheat").cats
    assert spacy.load(tmp_path / "model-best")("wheat").cats
