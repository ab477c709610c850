"""Bags of words weighted by TF-IDF: a linear classifier that learns as a support vector machine
does, and one with a wide hidden layer (Galke and Scherp 2022).

An example of architectures of one's own whose pipelines need this file: `spacy package` puts it
into the wheel. It needs nothing else of this project but to be trained from a packed corpus.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from spacy import registry
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Corpus
from thinc.api import (
    Dropout,
    Linear,
    Logistic,
    Model,
    NumpyOps,
    Softmax,
    chain,
    glorot_uniform_init,
    zero_init,
)
from thinc.types import Floats2d

HOST_OPS = NumpyOps()
# How fast probabilities rise with the distance from the middle between right and wrong.
STEEPNESS = 4.0
# Words of a .spacy corpus that are counted at once.
WORDS_AT_ONCE = 10_000_000


@registry.architectures("zero_copy.TfidfBOW.v1")
def create_tfidf_bow(
    exclusive_classes: bool,
    ngram_size: int = 2,
    length: int = 1_000_000,
    longer_weight: float = 0.5,
    longer_documents: int = 3,
    attr: str = "NORM",
    nO: int | None = None,
) -> Model[list[Doc], Floats2d]:
    """A linear support vector machine over n-grams weighted by TF-IDF.

    exclusive_classes (bool): Whether a document has exactly one label.
    ngram_size (int): From single tokens up to n-grams of this many.
    length (int): The most n-grams of each size to keep, those of the most documents first.
    longer_weight (float): Norm of a document's n-grams of each size above 1; its single tokens
        have 1.
    longer_documents (int): In how many documents an n-gram of these sizes must stand to be kept.
    attr (str): The token attribute that makes up the n-grams.
    nO (Optional[int]): Number of labels; by default that of the corpus.
    RETURNS (Model[List[Doc], Floats2d]): Scores, `(documents, labels)`.
    """
    keep = Keep(ngram_size, length, longer_documents)
    bag = weighted_bag(keep, longer_weight, attr, "tfidf", zero_init, nO)
    model: Model = chain(bag, margins(exclusive_classes))
    model.set_ref("output_layer", bag)
    model.attrs["multi_label"] = not exclusive_classes
    return model


@registry.architectures("zero_copy.WideMLP.v1")
def create_wide_mlp(
    exclusive_classes: bool,
    width: int = 1024,
    weighting: str = "tfidf",
    length: int = 1_000_000,
    attr: str = "NORM",
    nO: int | None = None,
) -> Model[list[Doc], Floats2d]:
    """A bag of words with one wide hidden layer, Galke and Scherp's WideMLP.

    exclusive_classes (bool): Whether a document has exactly one label.
    width (int): Width of the hidden layer.
    weighting (str): "tfidf", or "plain" for the share of each word in the document.
    length (int): The most words to keep, those of the most documents first.
    attr (str): The token attribute that tells words apart.
    nO (Optional[int]): Number of labels; by default that of the corpus.
    RETURNS (Model[List[Doc], Floats2d]): Scores, `(documents, labels)`.
    """
    bag = weighted_bag(Keep(1, length, 1), 1.0, attr, weighting, glorot_uniform_init, width)
    output = Softmax(nO, width) if exclusive_classes else Linear(nO, width)
    model: Model = chain(bag, rectify(), Dropout(), output)
    if not exclusive_classes:
        model = chain(model, Logistic())
    model.set_ref("output_layer", output)
    model.attrs["multi_label"] = not exclusive_classes
    return model


# Which n-grams there are


class Keep(NamedTuple):
    """Which n-grams of a training corpus to keep.

    ngram_size (int): From single tokens up to n-grams of this many.
    length (int): The most n-grams of each size, those of the most documents first.
    longer_documents (int): In how many documents an n-gram of more than one token must stand.
    """

    ngram_size: int
    length: int
    longer_documents: int


class Counted(NamedTuple):
    """Which documents have which n-grams; those of a document stand together.

    ngrams (numpy.ndarray): The n-gram: a hash, uint64, or a row of a table, int64.
    docs (numpy.ndarray): Number of the document, int64, ascending.
    amounts (numpy.ndarray): How often it has the n-gram, int64, or the weight of it, float32.
    """

    ngrams: numpy.ndarray
    docs: numpy.ndarray
    amounts: numpy.ndarray


class Tokens(NamedTuple):
    """An attribute of all tokens of some documents, one after another.

    keys (numpy.ndarray): The values, uint64, `(tokens,)`.
    lengths (numpy.ndarray): Tokens of each document, int64, `(documents,)`.
    """

    keys: numpy.ndarray
    lengths: numpy.ndarray


@registry.callbacks("zero_copy.count_documents.v1")
def create_count_documents(path: Path | None) -> Callable[[Language], Language]:
    """For `[initialize] before_init`: choose and weigh n-grams by the documents that have them.

    path (Optional[Path]): The training corpus, packed or .spacy.
    RETURNS (Callable[[Language], Language]): The callback.
    """
    return partial(count_documents, path=path)


def count_documents(nlp: Language, *, path: Path | None) -> Language:
    """Tell the weighted bags of a pipeline which n-grams a corpus has, and in how many documents.

    nlp (Language): The pipeline.
    path (Optional[Path]): The corpus, packed or .spacy.
    RETURNS (Language): The pipeline.
    RAISES (ValueError): If there is no path.
    """
    if path is None:
        raise ValueError("zero_copy.count_documents.v1 needs the path of the training corpus")
    models = [getattr(pipe, "model", None) for _, pipe in nlp.pipeline]
    layers = (layer for model in models if isinstance(model, Model) for layer in model.walk())
    for bag in (layer for layer in layers if layer.name == BAG):
        choose_ngrams(bag, read_tokens(nlp, Path(path), bag.attrs["attr"]))
    return nlp


def choose_ngrams(bag: Model, parts: Iterator[Tokens]) -> None:
    """Set a bag's n-grams and their inverse document frequencies.

    These are smoothed, `ln((1 + documents) / (1 + documents that have it)) + 1`. Source:
    scikit-learn's TfidfTransformer.

    bag (Model): The bag.
    parts (Iterator[Tokens]): The corpus.
    """
    keep = Keep(**bag.attrs["keep"])
    documents = 0
    found = [(numpy.zeros(0, "uint64"), numpy.zeros(0, "int64"))] * keep.ngram_size
    for tokens in parts:
        documents += len(tokens.lengths)
        for at, counted in enumerate(count_ngrams(keep.ngram_size, tokens)):
            found[at] = merge_counts(*found[at], *numpy.unique(counted.ngrams, return_counts=True))
    chosen = []
    for size, (ngrams, frequencies) in enumerate(found, 1):
        order = numpy.argsort(-frequencies, kind="stable")[: keep.length]
        if size > 1:
            order = order[frequencies[order] >= keep.longer_documents]
        order.sort()
        chosen.append((ngrams[order], frequencies[order]))
    bag.attrs["ngrams"] = numpy.concatenate([ngrams for ngrams, _ in chosen])
    bag.attrs["rows"] = [len(ngrams) for ngrams, _ in chosen]
    frequency = numpy.concatenate([frequencies for _, frequencies in chosen])
    bag.attrs["idf"] = (numpy.log((1 + documents) / (1 + frequency)) + 1).astype("float32")
    bag.set_dim("rows", len(frequency), force=True)


def merge_counts(
    ngrams: numpy.ndarray,
    counts: numpy.ndarray,
    others: numpy.ndarray,
    others_counts: numpy.ndarray,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Add up two counts of n-grams; all n-grams are ascending."""
    both, places = numpy.unique(numpy.concatenate([ngrams, others]), return_inverse=True)
    weights = numpy.concatenate([counts, others_counts])
    return both, numpy.bincount(places, weights, minlength=len(both)).astype("int64")


def read_tokens(nlp: Language, path: Path, attr: str) -> Iterator[Tokens]:
    """Read an attribute of all tokens of a corpus.

    nlp (Language): The pipeline.
    path (Path): The corpus, packed or .spacy.
    attr (str): Name of the attribute.
    YIELDS (Tokens): Some documents at a time.
    """
    if path.suffix == ".safetensors":
        from zero_copy.store import read

        packed = read(path)
        yield Tokens(packed.attribute(attr)[packed.columns["token_types"].numpy()], packed.lengths)
        return
    docs, words = [], 0
    for example in Corpus(path)(nlp):
        docs.append(example.reference)
        words += len(example.reference)
        if words > WORDS_AT_ONCE:
            yield tokens_of(docs, attr)
            docs, words = [], 0
    yield tokens_of(docs, attr)


def tokens_of(docs: list[Doc], attr: str) -> Tokens:
    """An attribute of the tokens of some documents.

    docs (List[Doc]): The documents.
    attr (str): Name of the attribute.
    RETURNS (Tokens): Its values.
    """
    arrays = [doc.to_array([attr]).ravel() for doc in docs]
    keys = numpy.concatenate(arrays).astype("uint64") if arrays else numpy.zeros(0, "uint64")
    return Tokens(keys, numpy.array([len(array) for array in arrays], "int64"))


def count_ngrams(ngram_size: int, tokens: Tokens) -> list[Counted]:
    """Count the n-grams of each document.

    ngram_size (int): From single tokens up to n-grams of this many.
    tokens (Tokens): The documents.
    RETURNS (List[Counted]): For each size of n-gram what was counted, in 64-bit hashes.
    """
    keys, lengths = tokens
    docs = numpy.repeat(numpy.arange(len(lengths)), lengths)
    remaining = numpy.repeat(lengths.cumsum(), lengths) - numpy.arange(len(keys))
    counted = []
    for size in range(1, ngram_size + 1):
        starts = numpy.flatnonzero(remaining >= size)  # where a document has enough tokens left
        hashes = HOST_OPS.ngrams(size, keys)[starts] if len(starts) else keys[:0]
        distinct, places = numpy.unique(hashes, return_inverse=True)
        pairs, counts = numpy.unique(docs[starts] * len(distinct) + places, return_counts=True)
        ngrams = distinct[pairs % max(len(distinct), 1)]
        counted.append(Counted(ngrams, pairs // max(len(distinct), 1), counts))
    return counted


def weigh_ngrams(bag: Model, tokens: Tokens) -> Counted:
    """The n-grams of documents that a bag knows, with their weights.

    TF-IDF is `(1 + ln(count)) * idf`, and then each document's n-grams of one size are scaled to
    a norm. "plain" is the count, scaled to a sum of 1.

    bag (Model): The bag.
    tokens (Tokens): The documents.
    RETURNS (Counted): Rows of the bag's table and their weights.
    """
    parts, first = [], 0
    for size, rows in enumerate(bag.attrs["rows"], 1):
        known = bag.attrs["ngrams"][first : first + rows]
        ngrams, docs, counts = count_ngrams(bag.attrs["keep"]["ngram_size"], tokens)[size - 1]
        places = numpy.searchsorted(known, ngrams)
        is_known = known[numpy.minimum(places, rows - 1)] == ngrams if rows else places < 0
        places, docs, counts = places[is_known] + first, docs[is_known], counts[is_known]
        if bag.attrs["weighting"] == "tfidf":
            weights = (1 + numpy.log(counts)) * bag.attrs["idf"][places]
            norms = numpy.sqrt(numpy.bincount(docs, weights**2))
        else:
            weights = counts.astype("float64")
            norms = numpy.bincount(docs, weights)
        scale = 1.0 if size == 1 else bag.attrs["longer_weight"]
        parts.append((places, docs, (scale * weights / norms[docs]).astype("float32")))
        first += rows
    places, docs, weights = (numpy.concatenate(column) for column in zip(*parts, strict=True))
    order = numpy.argsort(docs, kind="stable")
    return Counted(places[order], docs[order], weights[order])


# Layers

BAG = "weighted_bag"


def weighted_bag(
    keep: Keep, longer_weight: float, attr: str, weighting: str, init_W: Callable, nO: int | None
) -> Model[list[Doc], Floats2d]:
    """A row of weights for each n-gram, weighted and summed over the document.

    keep (Keep): Which n-grams to keep.
    longer_weight (float): Norm of a document's n-grams of each size above 1.
    attr (str): The token attribute that makes up the n-grams.
    weighting (str): "tfidf" or "plain".
    init_W (Callable): Initializes the table.
    nO (Optional[int]): Width of the output.
    RETURNS (Model[List[Doc], Floats2d]): `(documents, nO)`.
    RAISES (ValueError): If there is no such weighting.
    """
    if weighting not in ("tfidf", "plain"):
        raise ValueError(f"weighting is {weighting!r}, but it must be 'tfidf' or 'plain'")
    return Model(
        BAG,
        forward,
        init=partial(init, init_W),
        params={"W": None, "b": None},
        dims={"nO": nO, "rows": None},
        attrs={
            "keep": keep._asdict(),
            "longer_weight": longer_weight,
            "attr": attr,
            "weighting": weighting,
        },
    )


def init(
    init_W: Callable, model: Model, X: list[Doc] | None = None, Y: Floats2d | None = None
) -> None:
    """Make the table, for the n-grams of the corpus or else for those of the sample.

    init_W (Callable): Initializes it.
    model (Model): The bag.
    X (Optional[List[Doc]]): Some documents.
    Y (Optional[Floats2d]): What the bag's output is to become.
    """
    if not model.has_dim("rows"):
        choose_ngrams(model, iter([tokens_of(X or [], model.attrs["attr"])]))
    if Y is not None and not model.has_dim("nO"):
        model.set_dim("nO", Y.shape[1])
    nO = model.get_dim("nO")
    model.set_param("W", init_W(model.ops, (model.get_dim("rows"), nO)))
    model.set_param("b", model.ops.alloc1f(nO))


def forward(
    model: Model[list[Doc], Floats2d], docs: list[Doc], is_train: bool
) -> tuple[Floats2d, Callable[[Floats2d], list[Doc]]]:
    ops = model.ops
    W: Any = model.get_param("W")
    b: Any = model.get_param("b")
    found = weigh_ngrams(model, tokens_of(docs, model.attrs["attr"]))
    rows, docs_of, weights = (ops.xp.asarray(column) for column in found)
    output = ops.alloc2f(len(docs), len(b)) + b
    ops.scatter_add(output, docs_of, W[rows] * weights[:, None])

    def backprop(d_output: Any) -> list[Doc]:
        d_W = ops.alloc2f(*W.shape)
        ops.scatter_add(d_W, rows, d_output[docs_of] * weights[:, None])
        model.inc_grad("W", d_W)
        model.inc_grad("b", d_output.sum(axis=0))
        return docs

    return output, backprop


def rectify() -> Model[Floats2d, Floats2d]:
    """`max(0, X)`, without weights of its own."""
    return Model("rectify", rectify_forward)


def rectify_forward(
    model: Model[Floats2d, Floats2d], X: Floats2d, is_train: bool
) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    return model.ops.relu(X), lambda d_output: d_output * (X > 0)


def margins(exclusive_classes: bool) -> Model[Floats2d, Floats2d]:
    """What makes a linear classifier learn as a support vector machine does.

    While training, scores are cut off at 0 and 1. spaCy's gradient is the score minus the truth:
    then none for a label that is right by the margin, and else the distance from it, which is the
    gradient of the squared hinge loss. In use, scores are the softmax of what is not cut off, or
    its logistic where classes are not exclusive.

    exclusive_classes (bool): Whether a document has exactly one label.
    RETURNS (Model[Floats2d, Floats2d]): `(documents, labels)` to the same.
    """
    return Model("margins", margins_forward, attrs={"exclusive_classes": exclusive_classes})


def margins_forward(
    model: Model[Floats2d, Floats2d], X: Floats2d, is_train: bool
) -> tuple[Floats2d, Callable[[Floats2d], Floats2d]]:
    if is_train:
        return model.ops.xp.clip(X, 0.0, 1.0), lambda d_output: d_output
    scaled = STEEPNESS * (X - 0.5)
    in_use = model.ops.softmax if model.attrs["exclusive_classes"] else model.ops.sigmoid
    return in_use(scaled), lambda d_output: d_output


with suppress(ImportError):  # where the pipeline is only used, zero_copy is not there
    import torch
    from torch import Tensor

    from zero_copy import kernels
    from zero_copy.corpus import ResidentCorpus
    from zero_copy.lowering import Run, lowers

    class ResidentNgrams:
        """The weighted n-grams of all documents of a corpus, on its device."""

        def __init__(self, bag: Model, corpus: ResidentCorpus) -> None:
            self.known = bag.attrs["ngrams"]  # Kept, since its identity is part of the key.
            values = corpus.packed.attribute(bag.attrs["attr"])
            keys = values[corpus.packed.columns["token_types"].numpy()]
            found = weigh_ngrams(bag, Tokens(keys, corpus.lengths))
            self.counts = numpy.bincount(found.docs, minlength=len(corpus.lengths))
            self.rows = torch.from_numpy(found.ngrams.astype("int32")).to(corpus.device)
            self.weights = torch.from_numpy(found.amounts).to(corpus.device)
            self.ends = torch.from_numpy(self.counts.cumsum()).to(corpus.device)

    def resident_ngrams(bag: Model, corpus: ResidentCorpus) -> ResidentNgrams:
        """The same, made once for a corpus."""
        settings = tuple(bag.attrs[name] for name in ("longer_weight", "attr", "weighting"))
        key = (BAG, *settings, id(bag.attrs["ngrams"]))
        return corpus.cached(key, lambda: ResidentNgrams(bag, corpus))

    @lowers(f"{__name__}.forward")
    def lowered_bag(bag: Model, docs: None, run: Run) -> Tensor:
        batch, ngrams = run.batch, resident_ngrams(bag, run.batch.corpus)
        total = int(ngrams.counts[batch.docs].sum())
        last = ngrams.ends[batch.numbers]
        counts = last - torch.where(batch.numbers > 0, ngrams.ends[batch.numbers - 1], 0)
        ends = counts.cumsum(0)
        docs_of = torch.arange(len(batch), device=last.device)
        docs_of = docs_of.repeat_interleave(counts, output_size=total)
        # Where the batch's n-grams are among those of the corpus.
        at = torch.arange(total, device=last.device) + (last - ends)[docs_of]
        return run.parameter(bag, "b") + kernels.WeightedSegmentSum.apply(
            *(run.parameter(bag, "W"), ngrams.rows[at], ngrams.weights[at], ends - counts),
            *(docs_of, run.gradient(bag, "W")),
        )

    @lowers(f"{__name__}.rectify_forward")
    def lowered_rectify(model: Model, X: Tensor, run: Run) -> Tensor:
        return X.relu()

    @lowers(f"{__name__}.margins_forward")
    def lowered_margins(model: Model, X: Tensor, run: Run) -> Tensor:
        if run.is_train:
            return kernels.StraightThrough.apply(X, X.clamp(0.0, 1.0))
        scaled = STEEPNESS * (X - 0.5)
        return scaled.softmax(-1) if model.attrs["exclusive_classes"] else scaled.sigmoid()
