"""A corpus of any size with the words of a natural language: Zipf's law, lengths log-normal."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import spacy
import srsly

from loop import ROOT  # noqa: F401  finds the library
from zero_copy.docbins import EncodedDocs, Piece, SplitWriter, encode_flags

LABELS = 20
# Documents that are made at a time, and files of as many.
SHARD = 50_000
# Mandelbrot's form of Zipf's law: the n-th word has a share of 1 / (n + 2.7).
SHIFT, EXPONENT = 2.7, 1.0
# Of all tokens of a text so many are words of its label alone: a task that can be learned.
TOPICAL = 0.1


def generate(
    path: Path, documents: int, *, words: float = 65.0, vocabulary: int = 400_000, seed: int = 0
) -> Iterator[int]:
    """Write a corpus of .spacy files, a shard after another.

    path (Path): The file or, if there are several, the folder.
    documents (int): How many.
    words (float): Words of a document, on average.
    vocabulary (int): Different words.
    seed (int): What all is drawn from.
    YIELDS (int): Documents written so far.
    """
    order = numpy.random.default_rng(seed)
    vocab = spacy.blank("en").vocab
    forms = [_spell(number) for number in range(vocabulary)]
    keys = numpy.array([vocab.strings.add(form) for form in forms], "uint64")
    shares = 1.0 / (numpy.arange(1, vocabulary + 1) + SHIFT) ** EXPONENT
    # A draw is a look into a table of 2^24 words, in which each has its share of places.
    upto = numpy.cumsum(shares / shares.sum()) * 2**24
    table = numpy.searchsorted(upto, numpy.arange(2**24) + 0.5).astype("int32")
    # Of the rarer half every label has words of its own.
    topical = numpy.arange(vocabulary // 2, vocabulary).reshape(LABELS, -1)[:, :1000]
    sigma = 0.8
    writer = SplitWriter(path, most_documents=SHARD)
    done = 0
    while done < documents:
        count = min(SHARD, documents - done)
        drawn = order.lognormal(numpy.log(words) - sigma**2 / 2, sigma, count)
        lengths = drawn.clip(1, 2_000).astype("int32")
        labels = order.integers(LABELS, size=count)
        total = int(lengths.sum())
        tokens = table[order.integers(2**24, size=total, dtype="uint32")]
        places = numpy.flatnonzero(order.random(total, "float32") < TOPICAL)
        of_label = numpy.repeat(labels, lengths)[places]
        tokens[places] = topical[of_label, order.integers(topical.shape[1], size=len(places))]
        writer.add(_encode(tokens, keys, forms, lengths), labels.astype("uint32").tolist())
        done += count
        yield done
    names = [f"topic{number:02}" for number in range(LABELS)]
    writer.close(
        [
            bytes(srsly.msgpack_dumps({name: float(name == label) for name in names}))
            for label in names
        ]
    )


def _spell(number: int) -> str:
    """A word of its own for each number, short ones for the frequent."""
    consonants, vowels = "bcdfghklmnprstvz", "aeiou"
    word = ""
    while True:
        number, syllable = divmod(number, 80)
        word += consonants[syllable % 16] + vowels[syllable // 16]
        if not number:
            return word
        number -= 1


def _store(content: bytes) -> Piece:
    """A piece of a zlib stream that is not compressed, which would take most of the time."""
    stream = zlib.compressobj(level=0, wbits=-zlib.MAX_WBITS)
    stored = stream.compress(content) + stream.flush(zlib.Z_SYNC_FLUSH)
    return Piece(stored, len(content), zlib.adler32(content))


def _encode(
    tokens: numpy.ndarray, keys: numpy.ndarray, forms: list[str], lengths: numpy.ndarray
) -> EncodedDocs:
    values = keys[tokens]
    return EncodedDocs(
        documents=len(lengths),
        words=len(tokens),
        strings=[forms[number] for number in numpy.flatnonzero(numpy.bincount(tokens))],
        fields={
            "tokens": _store(numpy.stack([values, values], 1).tobytes()),
            "spaces": _store(numpy.ones(len(tokens), bool).tobytes()),
            "lengths": _store(lengths.tobytes()),
            **encode_flags([False] * len(lengths)),
        },
    )
