"""The lowerings of thinc's and spaCy's layers: what text classifiers and tok2vecs are made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import torch
from spacy.attrs import NAMES
from thinc.api import Model, NumpyOps
from torch import Tensor
from torch.nn import functional

from zero_copy import kernels, workers
from zero_copy.corpus import ResidentCorpus
from zero_copy.errors import UserError
from zero_copy.lowering import Rows, Run, lowers
from zero_copy.parameters import Array, Key, Parameter

HOST_OPS = NumpyOps()


def rowwise(function: Callable[[Model, Tensor, Run], Tensor]) -> Callable[[Model, Any, Run], Any]:
    """Lowering of a layer that treats each row by itself, whatever a row stands for.

    function (Callable[[Model, Tensor, Run], Tensor]): From `(rows, nI)` to `(rows, nO)`.
    RETURNS (Callable[[Model, Any, Run], Any]): The same for Rows and for plain tensors.
    """

    def lowering(model: Model, X: Any, run: Run) -> Any:
        if isinstance(X, Rows):
            return Rows(function(model, X.data, run), X.per_type)
        return function(model, X, run)

    return lowering


# Combinators


@lowers("thinc.layers.chain.forward")
def chain(model: Model, X: Any, run: Run) -> Any:
    for layer in model.layers:
        X = run(layer, X)
    return X


@lowers("thinc.layers.concatenate.forward")
def concatenate(model: Model, X: Any, run: Run) -> Any:
    outputs = [run(layer, X) for layer in model.layers]
    if not isinstance(outputs[0], Rows):
        return torch.cat(outputs, dim=1)
    outputs = run.aligned(outputs)
    return Rows(torch.cat([output.data for output in outputs], dim=1), outputs[0].per_type)


@lowers("thinc.layers.add.forward")
def add(model: Model, X: Any, run: Run) -> Any:
    return _sum([run(layer, X) for layer in model.layers], run)


@lowers("thinc.layers.residual.forward")
def residual(model: Model, X: Any, run: Run) -> Any:
    return _sum([X, run(model.layers[0], X)], run)


def _sum(outputs: list, run: Run) -> Any:
    if not isinstance(outputs[0], Rows):
        return sum(outputs[1:], outputs[0])
    outputs = run.aligned(outputs)
    rest = (output.data for output in outputs[1:])
    return Rows(sum(rest, outputs[0].data), outputs[0].per_type)


@lowers("thinc.layers.resizable.forward")
@lowers("thinc.layers.with_cpu.forward")
def wrapped(model: Model, X: Any, run: Run) -> Any:
    return run(model.layers[0], X)


@lowers("thinc.layers.list2ragged.forward")
@lowers("thinc.layers.ragged2list.forward")
@lowers("thinc.layers.noop.forward")
def unchanged(model: Model, X: Any, run: Run) -> Any:
    return X


@lowers("thinc.layers.with_array.forward")
def with_array(model: Model, X: Rows, run: Run) -> Rows:
    """With padding, documents are laid out with rows of zeros before, between and after them.

    The layers compute these rows like tokens, so they are part of the result.
    """
    pad = model.attrs["pad"]
    if not pad:
        return run(model.layers[0], X)
    batch = run.batch
    # Empty documents get no rows, so documents are counted by the tokens before them.
    is_first = functional.pad(batch.doc_of_token.diff() != 0, (1, 0), value=True)
    places = torch.arange(batch.words, device=X.data.device) + is_first.cumsum(0) * pad
    rows = batch.words + pad * (int((batch.corpus.lengths[batch.docs] > 0).sum()) + 1)
    padded = X.data.new_zeros(rows, X.data.shape[1]).index_copy(0, places, run.tokens(X))
    return Rows(run(model.layers[0], padded).index_select(0, places), False)


# Embedding


@lowers("spacy.ml.featureextractor.forward")
def extract_features(model: Model, X: None, run: Run) -> list[str]:
    return [_attr_name(column) for column in model.attrs["columns"]]


@lowers("thinc.layers.array_getitem.forward")
def array_getitem(model: Model, X: list[str], run: Run) -> list[str]:
    return [X[model.attrs["index"][1]]]


@lowers("thinc.layers.hashembed.forward")
def hashembed(model: Model, X: list[str], run: Run) -> Rows:
    """Each key hashes to four rows of the table; their sum is the embedding."""
    (attr,) = X
    seed, corpus = model.attrs["seed"], run.batch.corpus.whole
    table = run.parameter(model, "E")

    def make() -> numpy.ndarray:
        return (HOST_OPS.hash(corpus.packed.attribute(attr), seed) % len(table)).astype("int32")

    keys = corpus.derived(("hashembed", attr, seed, len(table)), make)[run.types]
    vectors = kernels.GatherSum.apply(table, keys, run.gradient(model, "E"))
    return Rows(drop_columns(model, vectors, run), run.per_type)


def drop_columns(model: Model, X: Tensor, run: Run) -> Tensor:
    """Dropout as embeddings have it: one mask of `(width,)` for the whole batch.

    model (Model): The layer.
    X (Tensor): `(rows, width)`.
    run (Run): The pass.
    RETURNS (Tensor): X, some of its columns zeros.
    """
    rate = model.attrs.get("dropout_rate")
    if not run.is_train or not rate:
        return X
    return X * kernels.dropout_mask((X.shape[1],), rate, X.device)


def _attr_name(attr: int | str) -> str:
    return NAMES[attr] if isinstance(attr, int) else attr.upper()


@lowers("spacy.pipeline.tok2vec.forward")
def listener(model: Model, X: None, run: Run) -> Rows:
    """The vectors that a tok2vec component has computed for this batch."""
    if model.id not in run.batch.vectors:
        raise UserError(
            "A listener's tok2vec has computed nothing for this batch",
            "Put the tok2vec before it in [nlp] pipeline; one in [training] frozen_components "
            "must stand in annotating_components too.",
        )
    return Rows(run.batch.vectors[model.id], False)


# Encoding


@lowers("thinc.layers.expand_window.forward")
def expand_window(model: Model, X: Any, run: Run) -> Any:
    if isinstance(X, Rows):
        return Rows(kernels.ExpandWindow.apply(run.tokens(X), model.attrs["window_size"]), False)
    return kernels.ExpandWindow.apply(X, model.attrs["window_size"])


@lowers("thinc.layers.maxout.forward")
@rowwise
def maxout(model: Model, X: Tensor, run: Run) -> Tensor:
    return kernels.Maxout.apply(X, run.parameter(model, "W"), run.parameter(model, "b"))


def dense(activation: Callable[[Tensor], Tensor]) -> Callable[[Model, Any, Run], Any]:
    """Lowering of a layer that applies a function to a linear one's output.

    activation (Callable[[Tensor], Tensor]): The function, element by element.
    RETURNS (Callable[[Model, Any, Run], Any]): The lowering.
    """

    @rowwise
    def lowering(model: Model, X: Tensor, run: Run) -> Tensor:
        return activation(linear(model, X, run))

    return lowering


lowers("thinc.layers.mish.forward")(dense(functional.mish))
lowers("thinc.layers.gelu.forward")(dense(functional.gelu))
lowers("thinc.layers.relu.forward")(dense(functional.relu))


@lowers("thinc.layers.layernorm.forward")
@rowwise
def layernorm(model: Model, X: Tensor, run: Run) -> Tensor:
    scale, shift = run.parameter(model, "G"), run.parameter(model, "b")
    return functional.layer_norm(X, scale.shape, scale, shift, eps=1e-8)  # thinc's epsilon


@lowers("thinc.layers.dropout.forward")
def dropout(model: Model, X: Any, run: Run) -> Any:
    rate = model.attrs["dropout_rate"] if model.attrs["is_enabled"] else 0.0
    if not isinstance(X, Rows):
        return run.dropout(X, rate)
    if not run.is_train or not rate:
        return X
    # Equal tokens get masks of their own, so from here on each has its row.
    return Rows(run.dropout(run.tokens(X), rate), False)


# Pooling: from a row a token to a row a document


@lowers("thinc.layers.reduce_sum.forward")
def reduce_sum(model: Model, X: Rows, run: Run) -> Tensor:
    return kernels.segment_sum(run.tokens(X), run.batch.doc_of_token, len(run.batch))


@lowers("thinc.layers.reduce_mean.forward")
def reduce_mean(model: Model, X: Rows, run: Run) -> Tensor:
    return reduce_sum(model, X, run) / run.batch.lengths.clamp(min=1)[:, None]


@lowers("thinc.layers.reduce_max.forward")
def reduce_max(model: Model, X: Rows, run: Run) -> Tensor:
    return kernels.SegmentMax.apply(run.tokens(X), run.batch.doc_of_token, len(run.batch))


@lowers("thinc.layers.reduce_first.forward")
def reduce_first(model: Model, X: Rows, run: Run) -> Tensor:
    return _pick(run.tokens(X), run.batch.starts, run)


@lowers("thinc.layers.reduce_last.forward")
def reduce_last(model: Model, X: Rows, run: Run) -> Tensor:
    return _pick(run.tokens(X), run.batch.ends - 1, run)


def _pick(X: Tensor, places: Tensor, run: Run) -> Tensor:
    has_tokens = (run.batch.lengths > 0)[:, None]
    return torch.where(has_tokens, X.index_select(0, places.clamp(0, max(len(X) - 1, 0))), 0.0)


@lowers("thinc.layers.parametricattention.forward")
def parametric_attention(model: Model, X: Rows, run: Run) -> Rows:
    return _attend(model, X, X, run)


@lowers("thinc.layers.parametricattention_v2.forward")
def parametric_attention_v2(model: Model, X: Rows, run: Run) -> Rows:
    return _attend(model, X, run(model.get_ref("key_transform"), X), run)


def _attend(model: Model, X: Rows, keys: Rows, run: Run) -> Rows:
    """Each token weighted by the softmax, over its document, of its key's product with a vector."""
    rows, batch = run.tokens(X), run.batch
    products = Rows(keys.data @ run.parameter(model, "Q")[:, None], keys.per_type)
    logits = run.tokens(products)
    weights = kernels.StraightThrough.apply(logits, logits.clamp(-20.0, 20.0)).exp()
    sums = kernels.segment_sum(weights, batch.doc_of_token, len(batch))
    return Rows(rows * (weights / sums.index_select(0, batch.doc_of_token)), False)


# Output


@lowers("thinc.layers.linear.forward")
@rowwise
def linear(model: Model, X: Tensor, run: Run) -> Tensor:
    return functional.linear(X, run.parameter(model, "W"), run.parameter(model, "b"))


@lowers("thinc.layers.softmax.forward")
@rowwise
def softmax(model: Model, X: Tensor, run: Run) -> Tensor:
    """thinc's Softmax takes the gradient of the cross entropy: of the logits, not of its output."""
    logits = linear(model, X, run) / model.attrs["softmax_temperature"]
    if not model.attrs["softmax_normalize"] and not run.is_train:
        return logits
    return kernels.StraightThrough.apply(logits, logits.softmax(-1))


@lowers("thinc.layers.softmax_activation.forward")
@rowwise
def softmax_activation(model: Model, X: Tensor, run: Run) -> Tensor:
    return X.softmax(-1)


@lowers("thinc.layers.logistic.forward")
@rowwise
def logistic(model: Model, X: Tensor, run: Run) -> Tensor:
    return kernels.StraightThrough.apply(X, X.clamp(-20.0, 20.0)).sigmoid()


# Bag of words


class Ngrams(NamedTuple):
    """The n-grams of a batch, not yet computed: what `extract_ngrams` passes to `sparse_linear`.

    attr (str): Name of the attribute whose values are counted.
    size (int): From single tokens up to n-grams of this many.
    """

    attr: str
    size: int


@lowers("spacy.ml.extract_ngrams.forward")
def extract_ngrams(model: Model, X: None, run: Run) -> Ngrams:
    return Ngrams(_attr_name(model.attrs["attr"]), model.attrs["ngram_size"])


def refuse_v1_indexing(model: Model) -> None:
    """Refuse the bags of words whose weights overlap by mistake.

    model (Model): The layer.
    RAISES (UserError): If it has the indexing of `TextCatBOW.v1` and `.v2`.
    """
    if model.attrs["v1_indexing"]:
        raise UserError(
            "spacy.TextCatBOW.v1 and .v2 can't be lowered",
            "Their weights overlap by mistake; use spacy.TextCatBOW.v3.",
        )


@lowers("thinc.layers.sparselinear.forward", check=refuse_v1_indexing)
def sparse_linear(model: Model, X: Ngrams, run: Run) -> Tensor:
    """Two buckets of weights for each n-gram, summed over the document.

    thinc sums over distinct n-grams times their counts; the sum over all n-grams is the same.
    """
    batch = run.batch
    table = run.parameters.by_key[model.id, "W"]
    scores = run.parameter(model, "b").expand(len(batch), -1)
    for size in range(1, X.size + 1):
        buckets = bucket_rows(batch.corpus, X.attr, size, table)
        keys = buckets[batch.token_types if size == 1 else batch.tokens]
        scores = scores + kernels.SegmentGatherSum.apply(
            *(run.parameter(model, "W"), keys, batch.starts, batch.doc_of_token),
            run.gradient(model, "W"),
        )
    return scores


def bucket_rows(corpus: ResidentCorpus, attr: str, size: int, table: Parameter) -> Tensor:
    """Which rows of a compact table the n-grams of a corpus sum up.

    corpus (ResidentCorpus): The corpus.
    attr (str): Name of the attribute that makes up the n-grams.
    size (int): Tokens an n-gram.
    table (Parameter): The compact table.
    RETURNS (Tensor): int32, `(types, 2)` for single tokens, `(tokens, 2)` for longer n-grams, by
        where they start. The last row of the table, zeros, stands for buckets that are not kept.
    """
    length, rows = table.node.get_dim("length"), table.rows
    assert rows is not None

    def make() -> numpy.ndarray:
        buckets = ngram_buckets(corpus, attr, size, length)
        places = numpy.full(length + 1, len(rows), "int32")
        places[rows] = numpy.arange(len(rows), dtype="int32")
        return places[buckets]

    # Single tokens are those of the types, which all parts of a corpus have in common.
    owner = corpus.whole if size == 1 else corpus
    return owner.derived(("ngrams", attr, size, length, table.rows_hash), make)


def ngram_buckets(corpus: ResidentCorpus, attr: str, size: int, length: int) -> numpy.ndarray:
    """The buckets of the n-grams of a corpus, as `SparseLinear_v2` computes them.

    corpus (ResidentCorpus): The corpus.
    attr (str): Name of the attribute that makes up the n-grams.
    size (int): Tokens an n-gram.
    length (int): Buckets of the table.
    RETURNS (numpy.ndarray): int64, `(types, 2)` for single tokens, `(tokens, 2)` for longer
        n-grams; `length` where an n-gram would go on beyond its document.
    """
    keys = corpus.packed.attribute(attr)
    if size == 1:
        return hash_buckets(keys, length)
    token_keys = keys[corpus.packed.columns["token_types"].numpy()]
    buckets = numpy.full((len(token_keys), 2), length, "int64")
    if len(token_keys) >= size:
        hashes = HOST_OPS.ngrams(size, token_keys)
        buckets[: len(hashes)] = hash_buckets(hashes, length)
    # The last n - 1 tokens of a document start no n-gram.
    ends = corpus.packed.columns["doc_offsets"].numpy()[1:]
    remaining = numpy.repeat(ends, corpus.lengths) - numpy.arange(len(token_keys))
    buckets[remaining < size] = length
    return buckets


def hash_buckets(keys: numpy.ndarray, length: int) -> numpy.ndarray:
    """MurmurHash3_x86_32 of 64-bit keys with the seeds 0 and 1, modulo `length`.

    Source: Appleby, MurmurHash3.cpp (public domain), as in thinc's `sparselinear.pyx`.

    keys (numpy.ndarray): uint64, `(keys,)`.
    length (int): Number of buckets.
    RETURNS (numpy.ndarray): int64, `(keys, 2)`.
    """

    def rotate(x: numpy.ndarray, bits: int) -> numpy.ndarray:
        return (x << numpy.uint32(bits)) | (x >> numpy.uint32(32 - bits))

    blocks = [(keys & numpy.uint64(0xFFFFFFFF)).astype("uint32"), (keys >> 32).astype("uint32")]
    buckets = numpy.empty((len(keys), 2), "int64")
    for seed in (0, 1):
        h = numpy.full(len(keys), seed, "uint32")
        for block in blocks:
            h ^= rotate(block * numpy.uint32(0xCC9E2D51), 15) * numpy.uint32(0x1B873593)
            h = rotate(h, 13) * numpy.uint32(5) + numpy.uint32(0xE6546B64)
        h ^= numpy.uint32(8)  # the key's length in bytes
        h ^= h >> numpy.uint32(16)
        h *= numpy.uint32(0x85EBCA6B)
        h ^= h >> numpy.uint32(13)
        h *= numpy.uint32(0xC2B2AE35)
        h ^= h >> numpy.uint32(16)
        buckets[:, seed] = h % numpy.uint32(length)
    return buckets


def compact_rows(model: Model, corpus: ResidentCorpus) -> dict[Key, numpy.ndarray]:
    """The buckets of a model's bags of words that training on a corpus can change.

    Adam and L2 leave a weight at zero whose gradient has always been zero, so the others can be
    left out of the update and written back as the zeros they are.

    model (Model): The model.
    corpus (ResidentCorpus): What it trains on.
    RETURNS (Dict[Tuple[int, str], numpy.ndarray]): For every table the buckets that the corpus
        touches or that are not zero now, ascending, int64, by the parameter's key.
    RAISES (UserError): If a table has the indexing of `TextCatBOW.v1` and `.v2`.
    """
    extractors = [
        layer for layer in model.walk() if layer._func.__module__ == "spacy.ml.extract_ngrams"
    ]
    tables = [
        layer for layer in model.walk() if layer._func.__module__ == "thinc.layers.sparselinear"
    ]
    rows = {}
    for extractor, table in zip(extractors, tables, strict=True):
        if table.attrs["v1_indexing"]:
            raise UserError(
                "spacy.TextCatBOW.v1 and .v2 can't be lowered",
                "Their weights overlap by mistake; use spacy.TextCatBOW.v3.",
            )
        length, attr = table.get_dim("length"), _attr_name(extractor.attrs["attr"])
        used = numpy.zeros(length + 1, bool)
        used[ngram_buckets(corpus, attr, 1, length)] = True
        for size in range(2, extractor.attrs["ngram_size"] + 1):
            for part, _ in corpus.in_order(numpy.arange(len(corpus.lengths))):
                used[ngram_buckets(part, attr, size, length)] = True
        # A worker sees the n-grams of its own documents, and all must keep the same rows.
        used = workers.add_up(torch.from_numpy(used.astype("int32"))).numpy() > 0
        weights: Array = table.get_param("W")
        used[:length] |= weights.reshape(-1, length).any(axis=0)
        rows[table.id, "W"] = numpy.flatnonzero(used[:length])
    return rows
