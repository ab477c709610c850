"""A corpus of any size with the words of a natural language: Zipf's law, lengths log-normal."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy
import spacy
import srsly
import torch
from spacy.tokens import Doc, DocBin

from loop import ROOT  # noqa: F401  finds the library
from zero_copy.docbins import EncodedDocs, Piece, SplitWriter, encode_flags
from zero_copy.store import pack, read, write

LABELS = 20
# Documents that are made at a time, and files of as many.
SHARD = 50_000
# Mandelbrot's form of Zipf's law: the n-th word has a share of 1 / (n + 2.7).
SHIFT, EXPONENT = 2.7, 1.0
# Of all tokens of a text so many are words of its label alone: a task that can be learned.
TOPICAL = 0.1
# Spread of the logarithm of a document's length.
SIGMA = 0.8


class Shard(NamedTuple):
    """Some documents.

    tokens (numpy.ndarray): The number of each word, int32, document after document.
    lengths (numpy.ndarray): Words of each document, int32.
    labels (numpy.ndarray): The number of each document's label.
    """

    tokens: numpy.ndarray
    lengths: numpy.ndarray
    labels: numpy.ndarray


def shards(documents: int, words: float, vocabulary: int, seed: int) -> Iterator[Shard]:
    """Draw documents, SHARD at a time."""
    order = numpy.random.default_rng(seed)
    shares = 1.0 / (numpy.arange(1, vocabulary + 1) + SHIFT) ** EXPONENT
    # A draw is a look into a table of 2^24 words, in which each has its share of places.
    upto = numpy.cumsum(shares / shares.sum()) * 2**24
    table = numpy.searchsorted(upto, numpy.arange(2**24) + 0.5).astype("int32")
    # Of the rarer half every label has words of its own.
    topical = numpy.arange(vocabulary // 2, vocabulary, dtype="int32").reshape(LABELS, -1)[:, :1000]
    for start in range(0, documents, SHARD):
        count = min(SHARD, documents - start)
        drawn = order.lognormal(numpy.log(words) - SIGMA**2 / 2, SIGMA, count)
        lengths = drawn.clip(1, 2_000).astype("int32")
        labels = order.integers(LABELS, size=count)
        total = int(lengths.sum())
        tokens = table[order.integers(2**24, size=total, dtype="uint32")]
        places = numpy.flatnonzero(order.random(total, "float32") < TOPICAL)
        of_label = numpy.repeat(labels, lengths)[places]
        tokens[places] = topical[of_label, order.integers(topical.shape[1], size=len(places))]
        yield Shard(tokens, lengths, labels)


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
    strings = spacy.blank("en").vocab.strings
    forms = [_spell(number) for number in range(vocabulary)]
    keys = numpy.array([strings.add(form) for form in forms], "uint64")
    writer = SplitWriter(path, most_documents=SHARD)
    done = 0
    for shard in shards(documents, words, vocabulary, seed):
        encoded = _encode(shard.tokens, keys, forms, shard.lengths)
        writer.add(encoded, shard.labels.astype("uint32").tolist())
        done += len(shard.lengths)
        yield done
    names = _label_names()
    writer.close(
        [
            bytes(srsly.msgpack_dumps({name: float(name == label) for name in names}))
            for label in names
        ]
    )


def generate_packed(
    path: Path, documents: int, *, words: float = 65.0, vocabulary: int = 400_000, seed: int = 0
) -> Iterator[int]:
    """Write the same corpus packed, without the .spacy files, a shard after another.

    The words' types come from packing a text of all words, so that they are real ones.

    path (Path): The .safetensors file. Other arguments as for `generate`.
    YIELDS (int): Documents written so far.
    """
    forms = [_spell(number) for number in range(vocabulary)]
    with TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "words.spacy"
        doc = Doc(spacy.blank("en").vocab, words=forms)
        doc.cats = dict.fromkeys(_label_names(), 0.0)
        DocBin(attrs=["ORTH", "NORM"], docs=[doc]).to_disk(source)
        pack(source, source.with_suffix(".safetensors"))
        packed = read(source.with_suffix(".safetensors"))
        types = packed.columns["token_types"].numpy()
        lengths, labels, done = [], [], 0
        with (Path(folder) / "tokens").open("w+b") as file:
            for shard in shards(documents, words, vocabulary, seed):
                file.write(types[shard.tokens].data)
                lengths.append(shard.lengths)
                labels.append(shard.labels.astype("uint8"))
                done += len(shard.lengths)
                yield done
            file.flush()
            ends = numpy.concatenate(lengths).cumsum(dtype="int64")
            cats = numpy.eye(LABELS, dtype="uint8")[numpy.concatenate(labels)]
            columns = packed.columns | {
                "token_types": torch.from_numpy(numpy.memmap(file, "int32", mode="r+")),
                "doc_offsets": torch.from_numpy(numpy.concatenate([[0], ends])),
                "cats": torch.from_numpy(cats),
            }
            write(path, packed.info, columns)


def _label_names() -> list[str]:
    return [f"topic{number:02}" for number in range(LABELS)]


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
