"""Tokenizing texts with spaCy's tokenizer on all cores, in flat memory."""

from array import array
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy
import spacy
from spacy.attrs import NORM, ORTH, SPACY
from spacy.language import Language
from spacy.strings import StringStore
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc

from zero_copy.docbins import EncodedDocs, deflate, encode_flags
from zero_copy.errors import UserError
from zero_copy.processes import work_in_order
from zero_copy.store import compute_only

# Different words that a process remembers, in some 150 MB. It forgets the rest after each chunk.
REMEMBERED_WORDS = 200_000
# A forgotten word still leaves some 50 bytes in spaCy's hash tables: after so many, start afresh.
# Making a tokenizer takes a tenth of a second, so many new words at least twenty seconds.
FORGOTTEN_WORDS = 2_000_000


class Chunk(NamedTuple):
    """Consecutive texts of one split, the unit of work.

    split (str): The split they go to.
    texts (List[str]): The texts, none of them empty.
    combinations (array): The number of each text's combination of labels.
    lines (int): How many lines of the files had been read when it was complete.
    """

    split: str
    texts: list[str]
    combinations: "array[int]"
    lines: int


class FlatTokenizer:
    """A pipeline to tokenize any number of texts with, in flat memory.

    make (Callable[[], Language]): Makes the pipeline, again once too many words have left traces.
    attrs (Optional[Collection[int]]): Which attributes of a new word to compute; None for all.
    """

    def __init__(self, make: Callable[[], Language], attrs: Collection[int] | None = None) -> None:
        self._make = make
        self._attrs = attrs
        self._nlp = self._start()

    def __reduce__(self) -> tuple:
        # Another process makes its own pipeline, where it can't share this one.
        return FlatTokenizer, (self._make, self._attrs)

    @contextmanager
    def session(self) -> Iterator[Language]:
        """A chunk's time with the pipeline, after which its new words are forgotten.

        YIELDS (Language): The pipeline; what it makes must not be used afterwards.
        """
        if len(self._nlp.vocab) > REMEMBERED_WORDS + FORGOTTEN_WORDS:
            self._nlp = self._start()
        # The tokenizer's cache grows only outside of a memory zone, and vocabularies only grow.
        if len(self._nlp.vocab) < REMEMBERED_WORDS:
            yield self._nlp
        else:
            with self._nlp.memory_zone():
                yield self._nlp

    def _start(self) -> Language:
        nlp = self._make()
        if self._attrs is not None:
            compute_only(nlp.vocab, self._attrs)
        if isinstance(nlp.tokenizer, Tokenizer):
            # spaCy's 10,000 are soon used up, and what is not in the cache takes 15 times as long.
            nlp.tokenizer.max_cache_size = REMEMBERED_WORDS
        return nlp


class Words(NamedTuple):
    """The words of consecutive documents.

    attrs (numpy.ndarray): ORTH, NORM and SPACY of each word, uint64, `(words, 3)`.
    lengths (numpy.ndarray): Words of each document, int32, `(documents,)`.
    flags (List[bool]): Of each document whether it is unknown where its words have spaces.
    """

    attrs: numpy.ndarray
    lengths: numpy.ndarray
    flags: list[bool]


def collect_words(docs: Iterable[Doc]) -> Words:
    """Collect the words of documents, none of which need be kept.

    docs (Iterable[Doc]): The documents, at least one.
    RETURNS (Words): Their words.
    """
    arrays, flags = [], []
    for doc in docs:
        arrays.append(doc.to_array([ORTH, NORM, SPACY]))
        flags.append(doc.has_unknown_spaces)
    lengths = numpy.asarray([*map(len, arrays)], dtype="int32")
    return Words(numpy.concatenate(arrays).astype("uint64", copy=False), lengths, flags)


def encode_words(words: Words, strings: StringStore) -> EncodedDocs:
    """Encode documents to become a part of a DocBin file.

    words (Words): Their words.
    strings (StringStore): Where the words' strings are.
    RETURNS (EncodedDocs): The documents.
    """
    orths, norms = words.attrs[:, 0], words.attrs[:, 1]
    keys = numpy.unique(orths), numpy.unique(norms[norms != orths])
    return EncodedDocs(
        documents=len(words.lengths),
        words=len(words.attrs),
        strings=[strings[key] for part in keys for key in part.tolist()],
        fields={
            "tokens": deflate(words.attrs[:, :2].tobytes()),
            "spaces": deflate(words.attrs[:, 2].astype(bool).tobytes()),
            "lengths": deflate(words.lengths.tobytes()),
            **encode_flags(words.flags),
        },
    )


class Encoder:
    """Turns texts into what stands for them in a DocBin file.

    lang (str): The language, as in `spacy.blank`.
    RAISES (ImportError): If spaCy does not know the language, or lacks its tokenizer's package.
    """

    def __init__(self, lang: str) -> None:
        # Of a new word's attributes only the norm is stored.
        self._tokenizer = FlatTokenizer(partial(spacy.blank, lang), attrs=[NORM])

    def __call__(self, texts: list[str]) -> EncodedDocs:
        """Tokenize and encode texts.

        texts (List[str]): The texts, none of them empty.
        RETURNS (EncodedDocs): The documents.
        """
        with self._tokenizer.session() as nlp:
            return encode_words(collect_words(map(nlp.tokenizer, texts)), nlp.vocab.strings)


def tokenize(
    chunks: Iterable[Chunk], lang: str, processes: int
) -> Generator[tuple[Chunk, EncodedDocs], None, None]:
    """Tokenize chunks of texts in parallel; what comes out does not depend on how many do it.

    chunks (Iterable[Chunk]): The chunks; only a few are read ahead.
    lang (str): The language, as in `spacy.blank`.
    processes (int): How many processes tokenize; with 1, this one does.
    YIELDS (Tuple[Chunk, EncodedDocs]): The chunks in the same order, and their documents.
    RAISES (UserError): If the language has no tokenizer here, or a process dies.
    """
    try:
        encoder = Encoder(lang)
    except ImportError as error:
        raise UserError(f"There is no tokenizer for the language '{lang}'", str(error)) from error
    yield from work_in_order(chunks, lambda chunk: chunk.texts, encoder, processes)
