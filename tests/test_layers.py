"""Parity: the lowered model computes what thinc computes, scores, gradients and updates."""

from copy import deepcopy
from itertools import product

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spacy.pipeline import TextCategorizer, Tok2Vec
from spacy.training import Example
from spacy.util import registry
from thinc.api import SGD, Adam, Model, RAdam, set_dropout_rate

from conftest import LABELS, random_docs
from zero_copy.corpus import PackedBatch, PackedExample
from zero_copy.errors import UserError
from zero_copy.layers import hash_buckets
from zero_copy.lowering import check_lowered
from zero_copy.textcat import PackedTextCategorizer
from zero_copy.tok2vec import PackedTok2Vec

LENGTHS = (7, 1, 30, 2, 90, 1, 13)


def bow(exclusive: bool = True, ngram_size: int = 1, no_output_layer: bool = False, length=512):
    return {
        "@architectures": "spacy.TextCatBOW.v3",
        "exclusive_classes": exclusive,
        "ngram_size": ngram_size,
        "no_output_layer": no_output_layer,
        "length": length,
    }


def hash_embed_cnn(width=8, depth=2, window_size=1, maxout_pieces=3, subword_features=True):
    return {
        "@architectures": "spacy.HashEmbedCNN.v2",
        "pretrained_vectors": None,
        "width": width,
        "depth": depth,
        "embed_size": 50,
        "window_size": window_size,
        "maxout_pieces": maxout_pieces,
        "subword_features": subword_features,
    }


def tok2vec(width=8, depth=2, attrs=("NORM", "PREFIX", "SUFFIX", "SHAPE", "LOWER")):
    return {
        "@architectures": "spacy.Tok2Vec.v2",
        "embed": {
            "@architectures": "spacy.MultiHashEmbed.v2",
            "width": width,
            "attrs": list(attrs),
            "rows": [50] * len(attrs),
            "include_static_vectors": False,
        },
        "encode": {
            "@architectures": "spacy.MaxoutWindowEncoder.v2",
            "width": width,
            "depth": depth,
            "window_size": 1,
            "maxout_pieces": 3,
        },
    }


def reduce(exclusive=True, embedding=None, **reductions):
    used = dict.fromkeys(("first", "last", "max", "mean"), False) | reductions
    return {
        "@architectures": "spacy.TextCatReduce.v1",
        "exclusive_classes": exclusive,
        "tok2vec": embedding or hash_embed_cnn(),
        **{f"use_reduce_{name}": value for name, value in used.items()},
    }


def ensemble(embedding=None, **linear):
    return {
        "@architectures": "spacy.TextCatEnsemble.v2",
        "linear_model": bow(**linear),
        "tok2vec": embedding or tok2vec(),
    }


def encoder(name, embedding=None, **settings):
    """A tok2vec with another encoder or embedding than the usual ones."""
    config = tok2vec() | ({"embed": embedding} if embedding else {})
    return config | {"encode": {"@architectures": f"spacy.{name}", "width": 8, **settings}}


def attention(exclusive=True, embedding=None):
    return {
        "@architectures": "spacy.TextCatParametricAttention.v1",
        "exclusive_classes": exclusive,
        "tok2vec": embedding or tok2vec(),
    }


def tfidf_bow(exclusive=True):
    return {"@architectures": "zero_copy.TfidfBOW.v1", "exclusive_classes": exclusive}


def wide_mlp(exclusive=True, weighting="tfidf"):
    return {
        "@architectures": "zero_copy.WideMLP.v1",
        "exclusive_classes": exclusive,
        "width": 16,
        "weighting": weighting,
    }


def textcat_cnn(exclusive=True):
    return {
        "@architectures": "spacy.TextCatCNN.v2",
        "exclusive_classes": exclusive,
        "tok2vec": hash_embed_cnn(),
    }


REDUCTIONS = ("first", "last", "max", "mean")
EVERY_REDUCTION = {
    "-".join([name for name, is_used in zip(REDUCTIONS, used, strict=True) if is_used])
    + ("" if exclusive else "-multilabel"): reduce(
        exclusive, **dict(zip(REDUCTIONS, used, strict=True))
    )
    for used in product((True, False), repeat=4)
    for exclusive in (True, False)
    if any(used)
}
MISH = encoder("MishWindowEncoder.v2", window_size=1, depth=2)

# Those that thinc computes for documents without tokens too, and those that it does not.
WITH_EMPTY = {
    "bow": bow(),
    "bow-multilabel": bow(exclusive=False),
    "bow-no-output": bow(no_output_layer=True),
    "bow-odd-length": bow(length=300),
    "ensemble": ensemble(),
    "ensemble-multilabel": ensemble(exclusive=False),
    "ensemble-cnn": ensemble(hash_embed_cnn()),
    "ensemble-mish": ensemble(MISH),
    "attention": attention(),
    "attention-multilabel": attention(exclusive=False),
    "attention-mish": attention(embedding=MISH),
    "tfidf": tfidf_bow(),
    "tfidf-multilabel": tfidf_bow(exclusive=False),
    "wide-mlp": wide_mlp(),
    "wide-mlp-plain-multilabel": wide_mlp(exclusive=False, weighting="plain"),
}
WITHOUT_EMPTY = {
    "bow-ngrams": bow(ngram_size=3),
    "ensemble-no-output-bigrams": ensemble(no_output_layer=True, ngram_size=2),
    **EVERY_REDUCTION,
    "textcat-cnn": textcat_cnn(),
    "textcat-cnn-multilabel": textcat_cnn(exclusive=False),
    "wide-mish": reduce(
        embedding=encoder("MishWindowEncoder.v2", window_size=2, depth=1), mean=True
    ),
    "wide-window": reduce(embedding=hash_embed_cnn(window_size=3, depth=1), mean=True),
    "two-pieces": reduce(embedding=hash_embed_cnn(maxout_pieces=2), mean=True),
    "one-piece": reduce(embedding=hash_embed_cnn(maxout_pieces=1), max=True),
    "no-subwords": reduce(embedding=hash_embed_cnn(subword_features=False), mean=True),
    "one-attribute": reduce(embedding=tok2vec(attrs=["ORTH"]), mean=True),
    "depth-one": reduce(embedding=tok2vec(depth=1), mean=True),
}
ALL = WITH_EMPTY | WITHOUT_EMPTY


def randomize(model: Model, seed: int = 0, scale: float = 0.5) -> None:
    """Random parameters: the output layers of a fresh model are zeros and would hide errors."""
    order = numpy.random.default_rng(seed)
    for layer in model.walk():
        for name in layer.param_names:
            if layer.has_param(name):
                values = order.normal(0, scale, layer.get_param(name).shape).astype("f")
                layer.set_param(name, layer.ops.asarray(values))
        for shim in layer.shims:
            for parameter in shim._model.parameters():
                values = order.normal(0, scale, parameter.shape).astype("f")
                parameter.data.copy_(torch.from_numpy(values))


def both(nlp, config, docs, batch: PackedBatch):
    """The same random model in spaCy's component and in ours, with examples for each."""
    model = registry.resolve({"model": config})["model"]
    stock = TextCategorizer(nlp.vocab, model, "textcat", threshold=0.0)
    filled = [doc for doc in docs if len(doc)]
    TextCategorizer.initialize(stock, lambda: [Example(doc, doc) for doc in filled], labels=LABELS)
    randomize(model)
    packed = PackedTextCategorizer(nlp.vocab, deepcopy(model), "textcat", threshold=0.0)
    packed.cfg = deepcopy(stock.cfg)
    return stock, packed, [Example(doc, doc) for doc in docs], [PackedExample(batch, nlp.vocab)]


def pairs(stock: Model, packed: Model):
    """Parameters of both models, layer by layer."""
    for layer, twin in zip(stock.walk(), packed.walk(), strict=True):
        for name in layer.param_names:
            yield f"{layer.name}.{name}", layer, twin, name


def gradients(stock, packed):
    """The gradients of both components: label, ours, and thinc's or PyTorch's."""
    for label, layer, twin, name in pairs(stock.model, packed.model):
        parameter = packed._parameters.by_key[twin.id, name]
        yield label, parameter.expand(parameter.tensor.grad), layer.get_grad(name)
    for layer, twin in zip(stock.model.walk(), packed.model.walk(), strict=True):
        for shim, other in zip(layer.shims, twin.shims, strict=True):
            ours = packed._parameters.by_module[other._model]
            for name, expected in shim._model.named_parameters():
                yield f"{layer.name}.{name}", ours[name].tensor.grad, expected.grad.numpy()


def assert_same_gradients(stock, packed):
    for label, ours, expected in gradients(stock, packed):
        assert numpy.abs(expected).max() > 0, f"{label}: no gradient, nothing is shown"
        numpy.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-5, err_msg=label)


def assert_parity(nlp, docs, batch, config):
    """Scores, loss and every gradient are thinc's; returns both components."""
    stock, packed, examples, packed_examples = both(nlp, config, docs, batch)
    expected = stock.predict(docs)
    ours = packed.predict([packed_examples[0].predicted])[0]
    numpy.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)
    losses, packed_losses = stock.update(examples), packed.update(packed_examples)
    assert float(packed_losses["textcat"]) == pytest.approx(losses["textcat"], rel=1e-4)
    assert_same_gradients(stock, packed)
    return stock, packed


@pytest.mark.parametrize("name", ALL)
def test_scores_loss_and_gradients(nlp, pack_docs, name):
    docs = random_docs(nlp, LENGTHS + ((0,) if name in WITH_EMPTY else ()))
    assert_parity(nlp, docs, pack_docs(docs), ALL[name])


@pytest.mark.parametrize("name", ["mean", "first-last-max-mean", "ensemble", "attention-mish"])
def test_full_dropout_drops_in_the_same_places(nlp, pack_docs, name):
    """A rate of 1 makes every mask zeros, so both sides must agree on where masks are applied."""
    docs = random_docs(nlp, LENGTHS)
    stock, packed, examples, packed_examples = both(nlp, ALL[name], docs, pack_docs(docs))
    stock.update(examples, drop=1.0)
    packed.update(packed_examples, drop=1.0)
    for label, ours, expected in gradients(stock, packed):
        numpy.testing.assert_allclose(ours, expected, 1e-4, 1e-5, err_msg=label)


@pytest.mark.parametrize("name", ["bow-ngrams", "first-last-max-mean", "ensemble"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: Adam(0.01, L2=0.1, grad_clip=0.5),
        lambda: Adam(0.01, L2=0.01, L2_is_weight_decay=False, use_averages=False),
        lambda: RAdam(0.01, grad_clip=1.0),
        lambda: SGD(0.01, L2=0.1),
    ],
    ids=["adam", "adam-l2", "radam", "sgd"],
)
def test_ten_updates(nlp, pack_docs, name, optimizer):
    docs = random_docs(nlp, LENGTHS)
    stock, packed, examples, packed_examples = both(nlp, ALL[name], docs, pack_docs(docs))
    sgd, packed_sgd = optimizer(), optimizer()
    for _ in range(10):
        stock.update(examples, sgd=sgd)
        packed.update(packed_examples, sgd=packed_sgd)
    packed.flush()
    for label, layer, twin, param in pairs(stock.model, packed.model):
        expected, ours = layer.get_param(param), twin.get_param(param)
        # Adam divides by the root of the second moment, and so enlarges the smallest differences.
        numpy.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4, err_msg=label)
        if sgd.averages is not None:
            parameter = packed._parameters.by_key[twin.id, param]
            average = parameter.expand(torch.from_numpy(packed_sgd.averages[twin.id, param]))
            numpy.testing.assert_allclose(average, sgd.averages[layer.id, param], 2e-3, 2e-4)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 1000),
    name=st.sampled_from(list(WITH_EMPTY)),
)
def test_any_documents(nlp, pack_docs, lengths, seed, name):
    docs = random_docs(nlp, lengths, seed)
    stock, packed, examples, packed_examples = both(nlp, ALL[name], docs, pack_docs(docs))
    stock.update(examples)
    packed.update(packed_examples)
    numpy.testing.assert_allclose(
        packed.predict([packed_examples[0].predicted])[0].numpy(),
        stock.predict(docs),
        rtol=1e-4,
        atol=1e-5,
    )
    for label, ours, expected in gradients(stock, packed):
        numpy.testing.assert_allclose(ours, expected, 1e-4, 2e-5, err_msg=label)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_listeners(nlp, pack_docs, heads):
    """The gradients of all listeners reach the shared tok2vec, once."""
    docs = random_docs(nlp, LENGTHS)
    batch = pack_docs(docs)
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 8}
    configs = [
        ensemble(listener),
        reduce(embedding=listener, max=True),
        reduce(embedding=listener, mean=True, exclusive=False),
    ][:heads]
    shared = Tok2Vec(nlp.vocab, registry.resolve({"model": tok2vec()})["model"])
    examples = [Example(doc.copy(), doc) for doc in docs]
    shared.initialize(lambda: examples)
    randomize(shared.model)
    packed_shared = PackedTok2Vec(nlp.vocab, deepcopy(shared.model), "tok2vec")
    stock, packed = [], []
    for number, config in enumerate(configs):
        one, other, _, packed_examples = both(nlp, config, docs, batch)
        one.name = other.name = f"textcat{number}"
        shared.find_listeners(one)
        packed_shared.find_listeners(other)
        stock.append(one)
        packed.append(other)
    losses = shared.update(examples)
    packed_losses = packed_shared.update(packed_examples)
    for component in stock:
        component.update(examples, losses=losses)
    for component in packed:
        component.update(packed_examples, losses=packed_losses)
    for name, loss in losses.items():
        assert float(packed_losses[name]) == pytest.approx(loss, rel=1e-4)
    for one, other in zip([shared, *stock], [packed_shared, *packed], strict=True):
        assert_same_gradients(one, other)


def test_hash_buckets_are_those_of_thinc():
    """A table that holds its own row numbers tells which rows SparseLinear reads."""
    from thinc.api import SparseLinear_v2

    keys = numpy.random.default_rng(0).integers(0, 2**64, 1000, dtype="uint64")
    layer = SparseLinear_v2(nO=1, length=1000)
    layer.initialize()
    layer.set_param("W", numpy.arange(1000, dtype="f"))
    ones = numpy.ones(len(keys), "f")
    sums = layer.predict((keys, ones, numpy.ones(len(keys), "i")))
    numpy.testing.assert_array_equal(hash_buckets(keys, 1000).sum(1), sums[:, 0])


def test_set_dropout_rate_reaches_the_lowered_model(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    _, packed, _, examples = both(nlp, ALL["mean"], docs, pack_docs(docs))
    set_dropout_rate(packed.model, 0.5)
    first, second = (float(packed.update(examples, drop=0.5)["textcat"]) for _ in range(2))
    assert first != second
    assert packed.update(examples, drop=0.0) == packed.update(examples, drop=0.0)


def test_overlapping_bags_of_words_are_refused_by_name():
    config = bow() | {"@architectures": "spacy.TextCatBOW.v2"}
    del config["length"]
    with pytest.raises(UserError, match=r"TextCatBOW\.v1 and \.v2 can't be lowered"):
        check_lowered(registry.resolve({"model": config})["model"])


def test_unknown_layer_is_refused_by_name(nlp):
    layer = Model("hermit", lambda model, X, is_train: (X, lambda dY: dY))
    with pytest.raises(UserError, match="No lowering for layer 'hermit'") as refused:
        check_lowered(layer)
    assert "@lowers(" in str(refused.value)
