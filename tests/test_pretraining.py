"""A pretrained tok2vec: stock `spacy pretrain` makes it, and both twins start from it."""

import subprocess
from pathlib import Path

import numpy
import pytest
import spacy
import srsly
from spacy.language import Language
from spacy.training.initialize import init_nlp
from spacy.training.pretrain import get_tok2vec_ref
from spacy.util import load_config
from thinc.api import Config, Model

from conftest import random_lengths, save_corpus, save_docs
from forking import run_script
from zero_copy.errors import UserError
from zero_copy.pretraining import (
    PRETRAINED,
    find_pretrained,
    is_pretrained,
    make_pretrained,
    write_raw_text,
)

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
TWINS = pytest.mark.parametrize("folder", [CONFIGS, CONFIGS / "stock"], ids=["ours", "stock"])
# Several updates: the first changes nothing below the output layer, which starts as zeros.
ONCE = {"pretraining.max_epochs": 1, "pretraining.batcher.size": 200}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two small splits, and what pretraining makes of the first."""
    lengths = {"train": random_lengths(39, 40), "dev": random_lengths(39, 40, 1)}
    folder = save_corpus(tmp_path_factory.mktemp("corpus"), lengths)
    make_pretrained(CONFIGS / "stock" / "pretrained.cfg", folder / "train.spacy", folder, **ONCE)
    return folder


@pytest.fixture
def own_layer(tmp_path) -> Path:
    """A config whose pretrained layer is the classifier's own tok2vec."""
    config = load_config(CONFIGS / "cnn.cfg")
    pretrained = load_config(CONFIGS / "pretrained.cfg")
    config["paths"]["raw_text"] = None
    config["corpora"]["pretrain"] = pretrained["corpora"]["pretrain"]
    config["pretraining"] = pretrained["pretraining"]
    config["pretraining"] |= {"component": "textcat", "layer": "tok2vec"}
    config.to_disk(tmp_path / "own.cfg")
    return tmp_path / "own.cfg"


def parameters(model: Model) -> list[numpy.ndarray]:
    return [
        numpy.array(layer.get_param(name)) for layer in model.walk() for name in layer.param_names
    ]


def prepared(config: Path, corpus: Path) -> Config:
    """The config as `train` completes it."""
    ending = "spacy" if config.parent.name == "stock" else "safetensors"
    overrides = {f"paths.{split}": str(corpus / f"{split}.{ending}") for split in ("train", "dev")}
    overrides |= find_pretrained(config, corpus, overrides)
    return load_config(config, overrides)


def file_s(path: Path, config: Config) -> list[numpy.ndarray]:
    """The parameters in a file, as thinc reads them into a model that nobody has trained."""
    nlp = spacy.util.load_model_from_config(config, auto_fill=True)
    layer = get_tok2vec_ref(nlp, config["pretraining"])
    return parameters(layer.from_bytes(path.read_bytes()))


def assert_starts_from_the_file(nlp: Language, config: Config, corpus: Path) -> None:
    expected = file_s(corpus / PRETRAINED, config)
    actual = parameters(get_tok2vec_ref(nlp, config["pretraining"]))
    assert sum(array.size for array in actual) > 100_000
    for first, second in zip(actual, expected, strict=True):
        numpy.testing.assert_array_equal(first, second)


@TWINS
def test_both_twins_start_from_the_file(corpus, folder):
    config = prepared(folder / "pretrained.cfg", corpus)
    nlp = init_nlp(config)
    assert_starts_from_the_file(nlp, config, corpus)
    config["paths"]["init_tok2vec"] = None
    untrained = init_nlp(config)
    fresh = parameters(untrained.get_pipe("tok2vec").model)
    assert any(
        (first != second).any()
        for first, second in zip(fresh, parameters(nlp.get_pipe("tok2vec").model), strict=True)
    )


def test_packed_predictions_are_those_of_the_file(corpus):
    """What is lowered computes with the loaded parameters, not with those made before."""
    scores = []
    for folder in (CONFIGS, CONFIGS / "stock"):
        config = prepared(folder / "pretrained.cfg", corpus)
        nlp = init_nlp(config)
        order = numpy.random.default_rng(0)
        for layer in nlp.get_pipe("textcat").model.walk():  # else all scores are alike
            for name in layer.param_names:
                shape = layer.get_param(name).shape
                layer.set_param(name, order.normal(0, 0.3, shape).astype("float32"))
        reader = spacy.util.registry.resolve(config.interpolate()["corpora"])["dev"]
        scores.append(nlp.evaluate(list(reader(nlp))))
    for key in ("cats_micro_f", "cats_macro_auc"):
        assert scores[0][key] == pytest.approx(scores[1][key])


def test_a_layer_of_the_classifier(corpus, own_layer, tmp_path):
    texts = make_pretrained(own_layer, corpus / "train.spacy", tmp_path / "own", **ONCE)
    assert texts == 40
    for path in corpus.glob("*.safetensors"):
        (tmp_path / "own" / path.name).write_bytes(path.read_bytes())
        source = path.with_suffix(".spacy")
        (tmp_path / "own" / source.name).write_bytes(source.read_bytes())
    config = prepared(own_layer, tmp_path / "own")
    assert_starts_from_the_file(init_nlp(config), config, tmp_path / "own")


def test_pretraining_changes_the_parameters(corpus):
    """The file is that of a model which has learned, not of a fresh one."""
    first = file_s(corpus / PRETRAINED, load_config(CONFIGS / "stock" / "pretrained.cfg"))
    bias = [array for array in first if array.ndim == 2 and array.shape == (96, 3)]
    assert bias
    assert all(array.any() for array in bias)  # zeros at first


def test_nothing_but_two_files_is_left(corpus):
    made = {path.name for path in corpus.iterdir() if not path.name.startswith(("train", "dev"))}
    assert made == {"raw.jsonl", "pretrained.bin"}


def test_raw_text_is_that_of_the_documents(tmp_path, nlp):
    docs = [nlp.make_doc(text) for text in ("Wheat,  \n“é”", "ships", " ")]
    save_docs(tmp_path / "train.spacy", docs)
    assert write_raw_text(tmp_path / "train.spacy", tmp_path / "raw.jsonl", lang="en") == 2
    texts = [line["text"] for line in srsly.read_jsonl(tmp_path / "raw.jsonl")]
    assert texts == [doc.text for doc in docs[:2]]


def test_raw_text_of_a_folder(tmp_path, nlp):
    (tmp_path / "train").mkdir()
    for number, text in enumerate(("wheat", "ships")):
        save_docs(tmp_path / "train" / f"{number}.spacy", [nlp.make_doc(text)])
    assert write_raw_text(tmp_path / "train", tmp_path / "raw.jsonl", lang="en") == 2


def test_corpus_without_text_leaves_nothing_behind(tmp_path, nlp):
    save_docs(tmp_path / "train.spacy", [nlp.make_doc(" ")])
    with pytest.raises(UserError, match="holds no text"):
        make_pretrained(
            CONFIGS / "stock" / "pretrained.cfg", tmp_path / "train.spacy", tmp_path / "out", **ONCE
        )
    assert not (tmp_path / "out").exists()


@TWINS
def test_configs_that_start_from_pretrained_parameters(folder, corpus, tmp_path):
    assert not is_pretrained(folder / "ensemble.cfg")
    assert find_pretrained(folder / "ensemble.cfg", tmp_path, {}) == {}
    config = folder / "pretrained.cfg"
    with pytest.raises(UserError, match="project run pretrain"):
        find_pretrained(config, tmp_path, {})
    own = {"paths.init_tok2vec": str(corpus / PRETRAINED)}
    assert find_pretrained(config, tmp_path, own) == {}
    assert find_pretrained(config, corpus, {}) == own
    with pytest.raises(UserError, match="none at nowhere"):
        find_pretrained(config, corpus, {"paths.init_tok2vec": "nowhere"})


def test_parameters_of_another_model_are_refused(corpus, tmp_path):
    config = CONFIGS / "pretrained.cfg"
    other = {"components.tok2vec.model.encode.width": 64}
    with pytest.raises(UserError, match="does not fit component 'tok2vec'"):
        find_pretrained(config, corpus, other)
    with pytest.raises(UserError, match="does not fit component 'tok2vec'"):
        find_pretrained(config, corpus, {"components.tok2vec.model.encode.depth": 2})
    (tmp_path / PRETRAINED).write_bytes((corpus / PRETRAINED).read_bytes()[:1000])
    with pytest.raises(UserError, match="does not fit component 'tok2vec'"):
        find_pretrained(config, tmp_path, {})


def script(name: str, *arguments) -> subprocess.CompletedProcess:
    return run_script(ROOT / "scripts" / f"{name}.py", *arguments)


def test_commands(corpus, tmp_path):
    for path in corpus.iterdir():
        if path.name not in ("raw.jsonl", PRETRAINED):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    steps = ("--gpu-id", -1, "--training.max_steps", 2)
    done = script("train", CONFIGS / "pretrained.cfg", tmp_path, tmp_path / "out", *steps)
    assert done.returncode == 1
    assert "project run pretrain" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    options = ("--gpu-id", -1, "--pretraining.max_epochs", 1)
    done = script("pretrain", CONFIGS / "stock" / "pretrained.cfg", tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pretrained on 40 texts" in " ".join(done.stdout.split())
    done = script("train", CONFIGS / "pretrained.cfg", tmp_path, tmp_path / "out", *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert spacy.load(tmp_path / "out" / "model-best")("wheat").cats


def test_impossible_setting_is_one_message(corpus):
    before = (corpus / PRETRAINED).read_bytes()
    options = ("--gpu-id", -1, "--pretraining.max_epochs", "many")
    done = script("pretrain", CONFIGS / "stock" / "pretrained.cfg", corpus, *options)
    assert done.returncode == 1
    assert "max_epochs" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (corpus / PRETRAINED).read_bytes() == before


def test_a_config_without_pretraining_needs_none(corpus):
    done = script("pretrain", CONFIGS / "stock" / "bow.cfg", corpus)
    assert done.returncode == 0
    assert "nothing to make" in done.stdout
