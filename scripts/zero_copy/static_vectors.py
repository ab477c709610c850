"""The lowering of word vectors: looked up once for each type, then a learned linear layer."""

import numpy
from spacy.attrs import NAMES, ORTH
from spacy.strings import StringStore
from spacy.vectors import Mode, Vectors
from spacy.vocab import Vocab
from thinc.api import Model, to_numpy
from torch import Tensor

from zero_copy import kernels
from zero_copy.corpus import ResidentCorpus
from zero_copy.errors import UserError
from zero_copy.layers import drop_columns
from zero_copy.lowering import Rows, Run, lowers
from zero_copy.parameters import torch_view

# Types whose subwords are looked up together; each has some 40 rows of the table.
CHUNK = 4096


@lowers("spacy.ml.staticvectors.forward")
def static_vectors(model: Model, X: None, run: Run) -> Rows:
    vectors, corpus, types = run.vocab.vectors, run.batch.corpus.whole, run.types
    W = run.parameter(model, "W")
    if _is(vectors, Mode.default):
        rows = vector_rows(corpus, run.vocab)[types]
        # What has no vector gets zeros; its gradient goes to the table's last row, as in spaCy.
        table = vector_table(corpus, run.vocab)
        product = table.index_select(0, rows % len(table)) @ W.t()
        product = kernels.StraightThrough.apply(product, product * (rows >= 0)[:, None])
    else:
        product = type_vectors(corpus, run.vocab)[types] @ W.t()
    return Rows(drop_columns(model, product, run), run.per_type)


def _is(vectors: Vectors, mode: Mode) -> bool:
    return isinstance(vectors, Vectors) and vectors.mode == mode


def vector_table(corpus: ResidentCorpus, vocab: Vocab) -> Tensor:
    """The vectors of a vocab on the device: its own array, if that is where it lies.

    corpus (ResidentCorpus): The corpus, which keeps the copy if there must be one.
    vocab (Vocab): The vocab.
    RETURNS (Tensor): `(vectors, width)`.
    """
    data = vocab.vectors.data
    if not isinstance(data, numpy.ndarray):
        return torch_view(data)
    return corpus.derived(("vectors", vocab, id(data)), lambda: data)


def vector_rows(corpus: ResidentCorpus, vocab: Vocab) -> Tensor:
    """The row of each type in a table of vectors.

    corpus (ResidentCorpus): The corpus.
    vocab (Vocab): The vocab with the vectors.
    RETURNS (Tensor): int32, `(types,)`; -1 for a type without a vector.
    """
    vectors = vocab.vectors

    def make() -> numpy.ndarray:
        rows = vectors.find(keys=corpus.packed.attribute(_attr_name(vectors)).tolist())
        return to_numpy(rows).astype("int32")

    return corpus.derived(("vector_rows", vocab, id(vectors)), make)


def type_vectors(corpus: ResidentCorpus, vocab: Vocab) -> Tensor:
    """The vector of each type, where vectors are made up of subwords.

    corpus (ResidentCorpus): The corpus.
    vocab (Vocab): The vocab with the vectors.
    RETURNS (Tensor): float32, `(types, width)`.
    """

    def make() -> numpy.ndarray:
        vectors, keys = _with_strings(vocab.vectors, corpus)
        starts = range(0, len(keys), CHUNK)
        parts = [to_numpy(vectors.get_batch(keys[i : i + CHUNK])) for i in starts]
        return numpy.concatenate(parts).astype("float32")

    return corpus.derived(("type_vectors", vocab, id(vocab.vectors)), make)


def _with_strings(vectors: Vectors, corpus: ResidentCorpus) -> tuple[Vectors, list[int]]:
    """The same vectors with the strings of all types, which the vocab need not take in."""
    packed, attr = corpus.packed, _attr_name(vectors)
    keys = packed.attribute(attr).tolist()
    if not _is(vectors, Mode.floret):
        return vectors, keys
    if attr not in ("ORTH", "LOWER"):
        raise UserError(
            f"The vectors go by the attribute {attr}",
            "Subwords need its strings, and a packed corpus holds those of ORTH and LOWER. Make "
            "the vectors again with `spacy init vectors --mode floret --attr LOWER`, or ORTH.",
        )
    texts = packed.texts(range(len(keys)))
    if attr == "LOWER":
        texts = [text.lower() for text in texts]
    names = ("mode", "minn", "maxn", "hash_count", "hash_seed", "bow", "eow", "attr")
    settings = {name: getattr(vectors, name) for name in names}
    return Vectors(strings=StringStore(texts), data=vectors.data, **settings), keys


def _attr_name(vectors: Vectors) -> str:
    return NAMES[getattr(vectors, "attr", ORTH)]


def require_vectors(model: Model, vocab: Vocab) -> None:
    """Make sure that a model which embeds word vectors has some.

    model (Model): The model.
    vocab (Vocab): The pipeline's vocab.
    RAISES (UserError): If there are none.
    """
    if uses_vectors(model) and not vocab.vectors_length:
        raise UserError(
            "The model embeds word vectors, and the pipeline has none",
            "Make them with `python -m spacy project run vectors` and train with "
            "--paths.vectors corpus/<data set>/vectors, or give the vectors of your own.",
        )


def uses_vectors(model: Model) -> bool:
    """Whether a model embeds word vectors.

    model (Model): The model.
    RETURNS (bool): True if one of its layers is spaCy's StaticVectors.
    """
    return any(layer._func.__module__ == "spacy.ml.staticvectors" for layer in model.walk())
