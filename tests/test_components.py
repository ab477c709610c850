"""The components in a pipeline: training as `spacy train` trains, on both kinds of examples."""

from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from spacy.language import Language
from spacy.training import Corpus as StockCorpus
from thinc.api import Adam, Model, fix_random_seed

from conftest import LABELS, random_docs, save_docs
from test_layers import bow, ensemble, reduce, tok2vec
from zero_copy import store
from zero_copy.batcher import create_batch_by_words
from zero_copy.corpus import Corpus
from zero_copy.errors import UserError
from zero_copy.lowering import lowers
from zero_copy.parameters import torch_view

LISTENER = {"@architectures": "spacy.Tok2VecListener.v1", "width": 8}
MULTI = "zero_copy_textcat_multilabel"
PIPELINES: dict[str, list[tuple[str, dict]]] = {
    "bow": [("zero_copy_textcat", bow())],
    "cnn": [("zero_copy_textcat", reduce(max=True, mean=True))],
    "ensemble": [("zero_copy_tok2vec", tok2vec()), ("zero_copy_textcat", ensemble(LISTENER))],
    "two-tasks": [
        ("zero_copy_tok2vec", tok2vec()),
        ("zero_copy_textcat", ensemble(LISTENER)),
        (MULTI, reduce(embedding=LISTENER, exclusive=False, mean=True)),
    ],
}


@pytest.fixture
def corpus(nlp, tmp_path) -> Path:
    source = save_docs(tmp_path / "train.spacy", random_docs(nlp, [9, 30, 4, 1, 50, 17, 8] * 6))
    store.pack(source, tmp_path / "train.safetensors")
    return tmp_path / "train.safetensors"


def make(parts: Sequence[tuple[str, dict]], seed: int = 0) -> Language:
    fix_random_seed(seed)
    nlp = spacy.blank("en")
    for factory, model in parts:
        name = factory.removeprefix("zero_copy_")
        nlp.add_pipe(factory, name=name, config={"model": model})
    return nlp


def train(nlp: Language, corpus: Path, steps: int, sgd=None, drop=0.0, seed=0, losses=None):
    """What spaCy's loop does with each batch."""
    reader, batcher = Corpus(corpus), create_batch_by_words(60, seed=seed)
    if sgd is None:
        nlp.initialize(lambda: reader(nlp))
        sgd = Adam(0.01, L2=0.01)
    losses = {} if losses is None else losses
    done = 0
    while True:
        for batch in batcher(reader(nlp)):
            if done == steps:
                return sgd
            nlp.update(batch, drop=drop, sgd=False, losses=losses)
            for _, component in nlp.pipeline:
                component.finish_update(sgd)
            done += 1


def parameters(nlp: Language) -> list[numpy.ndarray]:
    for _, component in nlp.pipeline:
        component.flush()
    return [
        numpy.array(layer.get_param(name))
        for _, component in nlp.pipeline
        for layer in component.model.walk()
        for name in layer.param_names
    ]


@pytest.mark.parametrize("name", PIPELINES)
def test_same_seed_same_result(corpus, name):
    results = []
    for seed in (0, 0, 1):
        nlp = make(PIPELINES[name], seed)
        train(nlp, corpus, 12, drop=0.3, seed=seed)
        results.append(parameters(nlp))
    for first, second in zip(results[0], results[1], strict=True):
        numpy.testing.assert_array_equal(first, second)
    assert any((first != other).any() for first, other in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("name", PIPELINES)
def test_packed_evaluation_equals_evaluation_of_docs(corpus, name):
    nlp = make(PIPELINES[name])
    train(nlp, corpus, 15)
    packed = nlp.evaluate(Corpus(corpus)(nlp))
    ordinary = nlp.evaluate(StockCorpus(corpus.with_suffix(".spacy"))(nlp))
    for key in ("cats_micro_f", "cats_macro_f", "cats_macro_auc", "cats_score"):
        assert packed[key] == pytest.approx(ordinary[key]), key
    assert packed["cats_f_per_type"] == ordinary["cats_f_per_type"]
    assert packed["cats_score_desc"] == ordinary["cats_score_desc"]


def test_text_gets_the_packed_scores(corpus):
    """What training saw of the documents is what the pipeline says of their texts."""
    nlp = make(PIPELINES["ensemble"])
    train(nlp, corpus, 15)
    examples = list(Corpus(corpus)(nlp))
    nlp.evaluate(examples)
    docs = list(StockCorpus(corpus.with_suffix(".spacy"))(nlp))
    batch = next(iter(nlp.pipe([eg.predicted for eg in examples]))).user_data
    scores = next(iter(batch.values())).scores["textcat"]
    texts = list(nlp.pipe([example.reference.text for example in docs]))
    expected = [[doc.cats[label] for label in LABELS] for doc in texts]
    numpy.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_ordinary_examples_train_exactly_the_parent(corpus, name):
    """From spacy.Corpus.v1 our components are spaCy's own, bit for bit."""
    results = []
    for parts in (PIPELINES[name], [(f.removeprefix("zero_copy_"), m) for f, m in PIPELINES[name]]):
        nlp = make(parts)
        examples = list(StockCorpus(corpus.with_suffix(".spacy"))(nlp))[:20]
        nlp.initialize(lambda examples=examples: examples)
        sgd = Adam(0.01)
        for _ in range(3):
            nlp.update(examples, sgd=sgd, drop=0.2)
        results.append([doc.cats for doc in nlp.pipe(eg.reference.text for eg in examples)])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", PIPELINES)
def test_training_can_change_between_packed_and_ordinary_examples(corpus, name):
    """Packed then ordinary then packed again ends where ordinary updates alone end."""
    packed, stock = make(PIPELINES[name]), make(PIPELINES[name])
    for nlp in (packed, stock):
        nlp.initialize(lambda nlp=nlp: Corpus(corpus)(nlp))
    for first, second in zip(packed.pipeline, stock.pipeline, strict=True):
        for layer, twin in zip(first[1].model.walk(), second[1].model.walk(), strict=True):
            for param in layer.param_names:
                twin.set_param(param, layer.get_param(param).copy())
    examples = list(StockCorpus(corpus.with_suffix(".spacy"))(packed))
    sgd, other = Adam(0.01, L2=0.01), Adam(0.01, L2=0.01)

    def update(nlp, batch, sgd):
        nlp.update(batch, sgd=False)
        for _, component in nlp.pipeline:
            component.finish_update(sgd)

    for kind in ("packed", "ordinary", "packed", "ordinary"):
        update(packed, list(Corpus(corpus)(packed)) if kind == "packed" else examples, sgd)
        update(stock, examples, other)
    for ours, expected in zip(parameters(packed), parameters(stock), strict=True):
        numpy.testing.assert_allclose(ours, expected, rtol=5e-3, atol=5e-4)


@pytest.mark.parametrize("name", ["bow", "ensemble"])
def test_averages_are_used_for_evaluation_and_then_put_back(corpus, name):
    nlp = make(PIPELINES[name])
    sgd = train(nlp, corpus, 15)
    trained = nlp.evaluate(Corpus(corpus)(nlp))
    before = parameters(nlp)
    with nlp.use_params(sgd.averages):
        packed = nlp.evaluate(Corpus(corpus)(nlp))
        ordinary = nlp.evaluate(StockCorpus(corpus.with_suffix(".spacy"))(nlp))
        saved = nlp.to_bytes()
    assert packed["cats_macro_auc"] == pytest.approx(ordinary["cats_macro_auc"])
    for first, second in zip(before, parameters(nlp), strict=True):
        numpy.testing.assert_array_equal(first, second)
    assert nlp.evaluate(Corpus(corpus)(nlp)) == trained | {"speed": pytest.approx(0, abs=1e9)}
    restored = make(PIPELINES[name]).from_bytes(saved)
    again = restored.evaluate(StockCorpus(corpus.with_suffix(".spacy"))(restored))
    assert again["cats_macro_auc"] == pytest.approx(ordinary["cats_macro_auc"])
    train(nlp, corpus, 3, sgd=sgd)


def test_parameters_are_shared_not_copied(corpus):
    nlp = make(PIPELINES["cnn"])
    train(nlp, corpus, 3)
    component = nlp.get_pipe("textcat")
    flat = component._parameters
    for parameter in flat.all:
        array = parameter.node.get_param(parameter.name)
        assert torch_view(array).data_ptr() == parameter.tensor.data_ptr()
        start = flat.weights.data_ptr() + parameter.start * 4
        assert parameter.tensor.data_ptr() == start


def test_replaced_parameters_are_noticed(corpus):
    """Loading other weights into the component must not leave it computing with the old ones."""
    nlp, other = make(PIPELINES["ensemble"]), make(PIPELINES["ensemble"], seed=5)
    train(nlp, corpus, 10)
    train(other, corpus, 10, seed=5)
    expected = other.evaluate(Corpus(corpus)(other))["cats_macro_auc"]
    assert nlp.evaluate(Corpus(corpus)(nlp))["cats_macro_auc"] != expected
    nlp.from_bytes(other.to_bytes())
    assert nlp.evaluate(Corpus(corpus)(nlp))["cats_macro_auc"] == pytest.approx(expected)


def test_bag_of_words_keeps_only_what_the_corpus_touches(nlp, corpus, tmp_path):
    """Another corpus brings other words: their rows are added, with the optimizer's state."""
    pipeline = make([("zero_copy_textcat", bow(length=2**14))])
    sgd = train(pipeline, corpus, 10)
    component = pipeline.get_pipe("textcat")
    rows = len(component._parameters.all[0].rows)
    assert rows <= 2 * 24
    docs = [nlp.make_doc(text) for text in ("quite other words", "and more of these", "last")]
    for doc, label in zip(docs, LABELS, strict=True):
        doc.cats = {name: float(name == label) for name in LABELS}
    store.pack(save_docs(tmp_path / "b.spacy", docs), tmp_path / "b.safetensors")
    before = parameters(pipeline)
    train(pipeline, tmp_path / "b.safetensors", 1, sgd=sgd)
    assert rows < len(component._parameters.all[0].rows) <= rows + 2 * 8
    moved = numpy.abs(parameters(pipeline)[0] - before[0])
    assert 0 < moved.max() < 0.05
    assert len(sgd.mom1[component._parameters.all[0].key]) == 3 * (
        len(component._parameters.all[0].rows) + 1
    )


def test_losses_are_floats_after_an_evaluation(corpus):
    nlp = make(PIPELINES["two-tasks"])
    losses: dict = {}
    train(nlp, corpus, 5, losses=losses)
    assert all(isinstance(loss, torch.Tensor) for loss in losses.values())
    assert float(losses["textcat"]) > 0
    nlp.evaluate(Corpus(corpus)(nlp))
    assert {name: type(loss) for name, loss in losses.items()} == dict.fromkeys(
        nlp.pipe_names, float
    )


def test_nlp_update_with_an_optimizer_takes_the_same_steps(corpus):
    """In a loop of one's own `nlp.update(sgd=...)` updates each component once, listeners too."""
    results = []
    for own_loop in (True, False):
        nlp = make(PIPELINES["two-tasks"])
        nlp.initialize(lambda nlp=nlp: Corpus(corpus)(nlp))
        sgd = Adam(0.01)
        batcher = create_batch_by_words(60)
        for batch in batcher(Corpus(corpus)(nlp)):
            nlp.update(batch, sgd=sgd if own_loop else False)
            if not own_loop:
                for _, component in nlp.pipeline:
                    component.finish_update(sgd)
        results.append(parameters(nlp))
    for first, second in zip(*results, strict=True):
        numpy.testing.assert_array_equal(first, second)


def test_vectors_of_an_evaluation_are_dropped(corpus):
    nlp = make(PIPELINES["two-tasks"])
    train(nlp, corpus, 1)
    examples = list(Corpus(corpus)(nlp))
    nlp.evaluate(examples)
    assert not examples[0].batch.vectors


def test_labels_may_be_given(corpus):
    nlp = make(PIPELINES["two-tasks"])
    nlp.config["initialize"]["components"] = {"textcat": {"labels": ["ship", "grain"]}}
    nlp.initialize(lambda: Corpus(corpus)(nlp))
    assert nlp.get_pipe("textcat").labels == ("ship", "grain")
    assert nlp.get_pipe("textcat_multilabel").labels == LABELS


def test_frozen_tok2vec_with_annotations(corpus):
    nlp = make(PIPELINES["ensemble"])
    nlp.initialize(lambda: Corpus(corpus)(nlp))
    sgd = Adam(0.01)
    examples = list(Corpus(corpus)(nlp))
    nlp.update(examples, sgd=sgd, exclude=["tok2vec"], annotates=["tok2vec"])
    with pytest.raises(UserError, match="annotating_components"):
        nlp.update(examples, sgd=sgd, exclude=["tok2vec"])


@pytest.mark.parametrize(
    ("cats", "message"),
    [
        ({"a": 1.0, "b": 1.0}, "document 0 has 2 of the labels"),
        ({"a": 1.0}, "has one label: a"),
    ],
)
def test_labels_that_do_not_fit_are_refused(nlp, tmp_path, cats, message):
    doc = nlp.make_doc("some text")
    doc.cats = cats
    store.pack(save_docs(tmp_path / "a.spacy", [doc]), tmp_path / "a.safetensors")
    pipeline = make(PIPELINES["bow"])
    with pytest.raises(UserError, match=message):
        pipeline.initialize(lambda: Corpus(tmp_path / "a.safetensors")(pipeline))


def test_two_tasks_on_one_document(nlp, tmp_path):
    """spaCy refuses two positive categories even where they belong to two classifiers."""
    doc = nlp.make_doc("some text")
    doc.cats = {"a": 1.0, "b": 0.0, "x": 1.0, "y": 0.0}
    store.pack(save_docs(tmp_path / "a.spacy", [doc]), tmp_path / "a.safetensors")
    pipeline = make(PIPELINES["two-tasks"])
    pipeline.config["initialize"]["components"] = {
        "textcat": {"labels": ["a", "b"]},
        "textcat_multilabel": {"labels": ["x", "y"]},
    }
    pipeline.initialize(lambda: Corpus(tmp_path / "a.safetensors")(pipeline))
    pipeline.update(list(Corpus(tmp_path / "a.safetensors")(pipeline)), sgd=Adam(0.01))


def test_corpus_without_an_attribute_of_the_model_is_refused(corpus):
    pipeline = make([("zero_copy_textcat", reduce(embedding=tok2vec(attrs=["LENGTH"]), mean=True))])
    with pytest.raises(UserError, match="no attribute LENGTH"):
        train(pipeline, corpus, 1)


def scaled(model: Model, X, is_train: bool):
    return X * 2, lambda dY: dY * 2


def test_unknown_layer_is_named_and_can_be_registered(corpus):
    pipeline = make(PIPELINES["cnn"])
    component = pipeline.get_pipe("textcat")
    component.model.layers.append(Model("scaled", scaled))
    with pytest.raises(UserError, match="No lowering for layer 'scaled'") as error:
        pipeline.initialize(lambda: Corpus(corpus)(pipeline))
    assert f'@lowers("{__name__}.scaled")' in error.value.desc
    lowers(f"{__name__}.scaled")(lambda model, X, run: X * 2)
    train(pipeline, corpus, 1)


def test_scorer_of_ones_own_is_refused(corpus):
    pipeline = make(PIPELINES["bow"])
    pipeline.get_pipe("textcat").scorer = lambda examples, **settings: {}
    with pytest.raises(UserError, match="a scorer of its own"):
        pipeline.initialize(lambda: Corpus(corpus)(pipeline))
