"""Class weights and label smoothing: the same from both kinds of examples, and nothing when off."""

from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus as StockCorpus
from spacy.util import load_config_from_str
from thinc.api import Adam, Config, fix_random_seed

from conftest import LABELS, random_docs, save_docs
from test_layers import bow, reduce
from zero_copy import store
from zero_copy.configs import fill_config
from zero_copy.corpus import Corpus
from zero_copy.errors import UserError
from zero_copy.export import stock_config
from zero_copy.imbalance import Imbalance, balanced_weights
from zero_copy.store import MISSING

EXCLUSIVE, MULTI = "zero_copy_textcat", "zero_copy_textcat_multilabel"
SETTINGS: list[dict] = [
    {"class_weights": "balanced"},
    {"label_smoothing": 0.1},
    {"class_weights": {"ship": 3.0, "grain": 0.5}, "label_smoothing": 0.2},
]
MODELS = {
    EXCLUSIVE: reduce(mean=True, max=True),
    MULTI: reduce(exclusive=False, mean=True, max=True),
}


def some_docs(nlp: Language, factory: str) -> list[Doc]:
    docs = random_docs(nlp, [9, 30, 4, 1, 12, 7, 5, 3] * 2)
    if factory == MULTI:
        docs[0].cats = dict.fromkeys(LABELS, 1.0)
        docs[1].cats = dict.fromkeys(LABELS, 0.0)
        docs[2].cats = {"ship": 1.0}  # the others are not annotated
    return docs


@pytest.fixture
def pack(nlp, tmp_path):
    def pack(docs: Sequence[Doc]) -> Path:
        store.pack(save_docs(tmp_path / "train.spacy", docs), tmp_path / "train.safetensors")
        return tmp_path / "train.safetensors"

    return pack


def make(factory: str, model: dict, settings: dict) -> Language:
    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe(factory, name="textcat", config={"model": model, **settings})
    return nlp


def randomise(nlp: Language) -> None:
    """A fresh output layer is all zeros, which tells nothing of what lies below it."""
    order = numpy.random.default_rng(0)
    for layer in nlp.get_pipe("textcat").model.walk():
        for name in layer.param_names:
            shape = layer.get_param(name).shape
            layer.set_param(name, order.normal(0, 0.3, shape).astype("float32"))


def gradient(nlp: Language, examples) -> tuple[float, list[numpy.ndarray]]:
    """The loss of an update, and the parameters after a plain step along the gradient."""
    losses = nlp.update(examples, sgd=Adam(0.01, grad_clip=0.0, use_averages=False))
    component = nlp.get_pipe("textcat")
    component.flush()
    parameters = [
        numpy.array(layer.get_param(name))
        for layer in component.model.walk()
        for name in layer.param_names
    ]
    return float(losses["textcat"]), parameters


@pytest.mark.parametrize("settings", SETTINGS, ids=["balanced", "smoothing", "both"])
@pytest.mark.parametrize("factory", [EXCLUSIVE, MULTI])
def test_packed_and_ordinary_examples_take_the_same_step(nlp, pack, factory, settings):
    path = pack(some_docs(nlp, factory))
    results = []
    for reader in (Corpus(path), StockCorpus(path.with_suffix(".spacy"))):
        pipeline = make(factory, MODELS[factory], settings)
        examples = list(reader(pipeline))
        pipeline.initialize(lambda examples=examples: examples)
        randomise(pipeline)
        results.append((gradient(pipeline, examples), pipeline.get_pipe("textcat").imbalance))
    (packed, imbalance), (ordinary, other) = results
    torch.testing.assert_close(imbalance.weights, other.weights, rtol=0, atol=0)
    assert packed[0] == pytest.approx(ordinary[0], rel=1e-5)
    for first, second in zip(packed[1], ordinary[1], strict=True):
        numpy.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factory", [EXCLUSIVE, MULTI])
def test_loss_and_gradient_of_both_kinds_of_examples(nlp, pack, factory):
    """On the same scores, so that nothing but the loss can differ."""
    path = pack(some_docs(nlp, factory))
    for settings in SETTINGS:
        pipeline = make(factory, MODELS[factory], settings)
        packed = list(Corpus(path)(pipeline))
        ordinary = list(StockCorpus(path.with_suffix(".spacy"))(pipeline))
        pipeline.initialize(lambda packed=packed: packed)
        component = pipeline.get_pipe("textcat")
        scores = numpy.random.default_rng(0).random((len(ordinary), 3), "float32")
        loss, d_scores = component.packed_loss(packed[0].batch, torch.from_numpy(scores))
        assert component.get_loss(ordinary, scores)[0] == float(loss)
        numpy.testing.assert_array_equal(component.get_loss(ordinary, scores)[1], d_scores.numpy())


@pytest.mark.parametrize("factory", [EXCLUSIVE, MULTI])
def test_off_is_stock_bit_for_bit(nlp, pack, factory):
    path = pack(some_docs(nlp, factory))
    ours = make(factory, MODELS[factory], {"class_weights": None, "label_smoothing": 0.0})
    stock = make(factory.removeprefix("zero_copy_"), MODELS[factory], {})
    ordinary = list(StockCorpus(path.with_suffix(".spacy"))(ours))
    packed = list(Corpus(path)(ours))
    for pipeline in (ours, stock):
        pipeline.initialize(lambda: ordinary)
    scores = numpy.random.default_rng(0).random((len(ordinary), 3), "float32")
    expected, d_expected = stock.get_pipe("textcat").get_loss(ordinary, scores)
    loss, d_scores = ours.get_pipe("textcat").get_loss(ordinary, scores)
    assert loss == expected
    numpy.testing.assert_array_equal(d_scores, d_expected)
    _, d_packed = ours.get_pipe("textcat").packed_loss(packed[0].batch, torch.from_numpy(scores))
    numpy.testing.assert_array_equal(d_packed.numpy(), d_expected)
    assert not ours.get_pipe("textcat").imbalance.is_on


@given(st.data())
def test_weights_of_one_and_no_smoothing_are_the_stock_loss(data):
    """Weights that are on, but all 1.0, leave everything as it is."""
    count = data.draw(st.integers(1, 6))
    classes = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    seed = data.draw(st.integers(0, 1000))
    truths = torch.eye(4, dtype=torch.uint8)[classes]
    scores = torch.from_numpy(numpy.random.default_rng(seed).random((count, 4), "float32"))
    for multi_label in (False, True):
        imbalance = Imbalance({"a": 1.0}, 0.0, multi_label=multi_label)
        imbalance.initialize("textcat", tuple("abcd"), [], torch.device("cpu"))
        loss, d_scores = imbalance.loss(scores, truths)
        torch.testing.assert_close(d_scores, scores - truths, rtol=0, atol=0)
        torch.testing.assert_close(loss, (scores - truths).square().mean(), rtol=0, atol=0)


def test_exclusive_loss_by_hand():
    imbalance = Imbalance({"b": 3.0}, 0.2, multi_label=False)
    imbalance.initialize("textcat", ("a", "b"), [], torch.device("cpu"))
    truths = torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.uint8)
    scores = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    loss, d_scores = imbalance.loss(scores, truths)
    # Truths are 0.9 and 0.1; the second document has weight 3, the last has no class.
    expected = torch.tensor([[-0.4, 0.4], [1.2, -1.2], [0.9, -0.1]])
    torch.testing.assert_close(d_scores, expected)
    assert float(loss) == pytest.approx((0.16 * 2 + 3 * 0.16 * 2 + 0.81 + 0.01) / 6)


def test_multi_label_loss_by_hand():
    imbalance = Imbalance({"b": 3.0}, 0.2, multi_label=True)
    imbalance.initialize("textcat", ("a", "b", "c"), [], torch.device("cpu"))
    truths = torch.tensor([[1, 1, 0], [0, 0, 1], [MISSING, 1, 0]], dtype=torch.uint8)
    loss, d_scores = imbalance.loss(torch.full((3, 3), 0.5), truths)
    # Truths are 0.9 and 0.1, however many labels there are.
    expected = torch.tensor([[-0.4, -1.2, 0.4], [0.4, 0.4, -0.4], [0.0, -1.2, 0.4]])
    torch.testing.assert_close(d_scores, expected)
    assert float(loss) == pytest.approx((6 * 0.16 + 2 * 3 * 0.16) / 9)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_is_scikit_learn_s(classes):
    truths = torch.eye(6, dtype=torch.uint8)[classes]
    weights = balanced_weights(truths.split(7), multi_label=False)
    occur = sorted(set(classes))
    expected = compute_class_weight("balanced", classes=numpy.array(occur), y=classes)
    numpy.testing.assert_allclose(weights[occur], expected)
    assert float(weights[5]) == 1.0


def test_balanced_multi_label_is_negatives_by_positives():
    truths = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, MISSING], [MISSING, 1, 0]]).to(torch.uint8)
    # The second label is in all documents, the third in none: nothing to balance.
    assert balanced_weights([truths], multi_label=True).tolist() == [2.0, 1.0, 1.0]


def test_balanced_counts_only_what_is_read(nlp, pack):
    docs = random_docs(nlp, [3] * 30)
    path = pack(docs)
    pipeline = make(EXCLUSIVE, bow(), {"class_weights": "balanced"})
    pipeline.initialize(lambda: Corpus(path, limit=12)(pipeline))
    classes = [max(doc.cats, key=doc.cats.__getitem__) for doc in docs[:12]]
    expected = compute_class_weight("balanced", classes=numpy.array(LABELS), y=classes)
    weights = pipeline.get_pipe("textcat").imbalance.weights
    numpy.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["packed", "ordinary"])
@pytest.mark.parametrize("factory", [EXCLUSIVE, MULTI])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": {"none": 2.0}}, "weight for 'none', which is no label"),
        ({"class_weights": {"ship": 0.0}}, "ship = 0.0 is not above 0"),
        ({"class_weights": {"ship": -1}}, "ship = -1 is not above 0"),
        ({"class_weights": "equal"}, "class_weights = 'equal' is no weighting"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0 is not from 0.0"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1 is not from 0.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(nlp, pack, factory, kind, settings, message):
    path = pack(random_docs(nlp, [5] * 12))
    pipeline = make(factory, MODELS[factory], settings)
    reader = Corpus(path) if kind == "packed" else StockCorpus(path.with_suffix(".spacy"))
    with pytest.raises(UserError, match=message):
        pipeline.initialize(lambda: reader(pipeline))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_a_number(weight):
    imbalance = Imbalance({"a": weight}, 0.0, multi_label=False)
    with pytest.raises(UserError, match="is not above 0"):
        imbalance.initialize("textcat", ("a", "b"), [], torch.device("cpu"))


def test_update_before_initialization_says_so():
    imbalance = Imbalance("balanced", 0.0, multi_label=False)
    with pytest.raises(UserError, match="has been initialized"):
        imbalance.loss(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8))


def test_a_config_may_name_any_label(nlp, pack):
    """Labels with a dot, a hyphen or capitals are read from a config as they are."""
    docs = random_docs(nlp, [5] * 12)
    names = dict(zip(LABELS, ("comp.graphics", "money-fx", "Ship"), strict=True))
    for doc in docs:
        doc.cats = {names[label]: value for label, value in doc.cats.items()}
    path = pack(docs)
    model = Config({"model": bow()}).to_str().replace("[model", "[components.textcat.model")
    text = f"""
[nlp]
lang = "en"
pipeline = ["textcat"]
[components]
[components.textcat]
factory = "zero_copy_textcat"
label_smoothing = 0.1
[components.textcat.class_weights]
comp.graphics = 2.0
money-fx = 3
Ship = 0.5
{model}
"""
    config = load_config_from_str(text)
    pipeline = spacy.util.load_model_from_config(config, auto_fill=True)
    pipeline.initialize(lambda: Corpus(path)(pipeline))
    component = pipeline.get_pipe("textcat")
    weights = dict(zip(component.labels, component.imbalance.weights.tolist(), strict=True))
    assert weights == {"comp.graphics": 2.0, "money-fx": 3.0, "Ship": 0.5}


def test_the_exported_config_has_neither_setting(nlp):
    pipeline = make(EXCLUSIVE, bow(), SETTINGS[2])
    stock = stock_config(fill_config(pipeline.config))
    assert stock["components"]["textcat"]["factory"] == "textcat"
    assert not {"class_weights", "label_smoothing"} & set(stock["components"]["textcat"])
    kept = fill_config(pipeline.config)["components"]["textcat"]
    assert kept["class_weights"] == {"ship": 3.0, "grain": 0.5}


def test_settings_that_are_off_need_not_stand_in_a_config(nlp):
    pipeline = make(EXCLUSIVE, bow(), {})
    config = pipeline.config.copy()
    for setting in ("class_weights", "label_smoothing"):
        del config["components"]["textcat"][setting]
    assert not {"class_weights", "label_smoothing"} & set(
        fill_config(config)["components"]["textcat"]
    )
