"""Every config against its stock twin: scores, losses, gradients, and the pipeline it leaves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import spacy
import srsly
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus as StockCorpus
from spacy.training.initialize import init_nlp
from spacy.util import load_config

from conftest import LABELS, TWO_TASKS, random_docs, save_docs
from test_layers import gradients, randomize
from zero_copy import lowering, store
from zero_copy.corpus import Corpus
from zero_copy.export import to_stock
from zero_copy.packaging import code_files
from zero_copy.vectors import make_vectors

CONFIGS = Path(__file__).parent.parent / "configs"
# Those of transformers are in test_transformer.py.
NAMES = sorted(path.stem for path in CONFIGS.glob("*.cfg") if "transformer" not in path.stem)
GROUPS = ("goods", "transport")
TEXT = "U.S. wheat and ships, cos of the port"
# Loads pipelines with nothing of this project but the files named, and says how they classify.
LOAD = """
import json, runpy, sys
import spacy
for line in sys.stdin:
    text, folder, *code = json.loads(line)
    for path in code:
        runpy.run_path(path)
    cats = spacy.load(folder)(text).cats
    ours = [name for name in sys.modules if name.startswith("zero_copy")]
    print(json.dumps([cats, ours]), flush=True)
"""


def with_groups(doc: Doc) -> Doc:
    """A document for two tasks: its label, and the group that the label belongs to."""
    group = "transport" if doc.cats["ship"] else "goods"
    doc.cats |= {name: float(name == group) for name in GROUPS}
    return doc


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[bool, Path]:
    """A corpus of one task and one of two, with word vectors, by whether they are two."""
    folders = {}
    for is_two in (False, True):
        folder = tmp_path_factory.mktemp("corpus")
        docs = random_docs(spacy.blank("en"), [7, 1, 30, 2, 90, 1, 13, 40])
        save_docs(folder / "train.spacy", [with_groups(doc) if is_two else doc for doc in docs])
        store.pack(folder / "train.spacy", folder / "train.safetensors")
        folders[is_two] = folder
    folder = folders[False]
    make_vectors(folder / "train.safetensors", folder / "vectors", dim=8, epochs=1, threads=1)
    labels = folders[True] / "labels"
    labels.mkdir()
    srsly.write_json(labels / "textcat.json", LABELS)
    srsly.write_json(labels / "groups.json", GROUPS)
    return folders


def make(path: Path, corpora: dict[bool, Path], ending: str) -> Language:
    """Initialize the pipeline of a config as training does, and randomize its parameters."""
    folder = corpora[path.stem in TWO_TASKS]
    corpus = str(folder / f"train{ending}")
    overrides = {"paths.train": corpus, "paths.dev": corpus}
    paths = load_config(path)["paths"]
    overrides |= {"paths.labels": str(folder / "labels")} if "labels" in paths else {}
    if "vectors" in paths:
        overrides["paths.vectors"] = str(corpora[False] / "vectors")
    nlp = init_nlp(load_config(path, overrides, interpolate=False))
    for _, component in nlp.pipeline:
        # Small, as softmax is certain where scores are large. With another seed the maximum over
        # two pieces or tokens may be so close that rounding decides which of them is the larger.
        randomize(component.model, seed=1, scale=0.2)
        for module in (shim._model for layer in component.model.walk() for shim in layer.shims):
            for layer in module.modules():
                if isinstance(layer, torch.nn.Dropout):
                    layer.p = 0.0  # nlp.update's rate does not reach it
    return nlp


@pytest.fixture(scope="module", params=NAMES)
def twins(request, corpora) -> tuple[str, Language, Language]:
    """The name of a config, and its pipeline and that of its twin with the same parameters."""
    ours = make(CONFIGS / f"{request.param}.cfg", corpora, ".safetensors")
    return request.param, ours, make(CONFIGS / "stock" / f"{request.param}.cfg", corpora, ".spacy")


@pytest.mark.parametrize("per_type", [True, False])
def test_losses_and_gradients_are_those_of_the_twin(twins, corpora, monkeypatch, per_type):
    """With rows for types as on a CPU, and with rows for tokens as on a GPU."""
    monkeypatch.setattr(lowering, "rows_per_type", lambda device: per_type)
    name, ours, stock = twins
    folder = corpora[name in TWO_TASKS]
    losses, expected_losses = {}, {}
    ours.update([*Corpus(folder / "train.safetensors")(ours)], losses=losses, sgd=False)
    examples = [*StockCorpus(folder / "train.spacy")(stock)]
    stock.update(examples, losses=expected_losses, sgd=False)
    for key, loss in expected_losses.items():
        assert float(losses[key]) == pytest.approx(loss, rel=1e-4), key
    for component in ours.pipe_names:
        for label, gradient, expected in gradients(
            stock.get_pipe(component), ours.get_pipe(component)
        ):
            largest = numpy.abs(expected).max()
            assert largest > 0, f"{component} {label}: no gradient, nothing is shown"
            message = f"{component} {label}"
            numpy.testing.assert_allclose(gradient, expected, 1e-4, 1e-5 * largest, err_msg=message)


@pytest.mark.parametrize("per_type", [True, False])
def test_scores_are_those_of_the_twin(twins, corpora, monkeypatch, per_type):
    monkeypatch.setattr(lowering, "rows_per_type", lambda device: per_type)
    name, ours, stock = twins
    folder = corpora[name in TWO_TASKS]
    found = ours.evaluate([*Corpus(folder / "train.safetensors")(ours)])
    expected = stock.evaluate([*StockCorpus(folder / "train.spacy")(stock)])
    for key in ("cats_macro_auc", "cats_micro_f", "cats_macro_f"):
        assert found[key] == pytest.approx(expected[key]), key
    cats, twin = ours(TEXT).cats, stock(TEXT).cats
    assert cats == pytest.approx(twin, rel=1e-4, abs=1e-5)
    assert len({round(score, 3) for score in cats.values()}) > 1


@pytest.fixture(scope="module")
def stock_process(tmp_path_factory) -> Iterator[subprocess.Popen]:
    """A process in another folder that has no way to find this project."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen(
        [sys.executable, "-c", LOAD],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def test_saved_pipeline_loads_with_spacy_alone(twins, stock_process, tmp_path):
    """Without the library: at most with a file of one's own that registers the architecture."""
    _, ours, stock = twins
    saved = to_stock(ours)
    saved.to_disk(tmp_path / "model")
    code = [shutil.copy(path, tmp_path) for path in code_files(saved.config)]
    request = json.dumps([TEXT, *map(str, (tmp_path / "model", *code))])
    stock_process.stdin.write(request + "\n")
    stock_process.stdin.flush()
    cats, modules = json.loads(stock_process.stdout.readline())
    assert cats == pytest.approx(stock(TEXT).cats, rel=1e-4, abs=1e-5)
    assert not modules
