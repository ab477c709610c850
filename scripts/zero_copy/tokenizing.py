"""Tokenizing texts with spaCy's tokenizer on all cores, in flat memory."""

import gc
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from sys import platform
from typing import NamedTuple

import numpy
import spacy
import srsly
from spacy.attrs import NORM, ORTH, SPACY
from spacy.language import Language
from spacy.tokenizer import Tokenizer

from zero_copy.docbins import EncodedDocs, deflate, encode_lists
from zero_copy.errors import UserError
from zero_copy.files import uninterrupted

# Different words that a process remembers, in some 150 MB. It forgets the rest after each chunk.
REMEMBERED_WORDS = 200_000
# A forgotten word still leaves some 50 bytes in spaCy's hash tables: after so many, start afresh.
# Making a tokenizer takes a tenth of a second, so many new words at least twenty seconds.
FORGOTTEN_WORDS = 2_000_000


class Chunk(NamedTuple):
    """Consecutive texts of one split, the unit of work.

    split (str): The split they go to.
    texts (List[str]): The texts.
    labels (List[Tuple[str, ...]]): The labels of each text.
    """

    split: str
    texts: list[str]
    labels: list[tuple[str, ...]]


class Encoder:
    """Turns texts into what stands for them in a DocBin file.

    lang (str): The language, as in `spacy.blank`.
    all_labels (Tuple[str, ...]): All labels, in the order of `doc.cats`.
    RAISES (ImportError): If spaCy does not know the language, or lacks its tokenizer's package.
    """

    def __init__(self, lang: str, all_labels: tuple[str, ...]) -> None:
        self.lang = lang
        self.all_labels = all_labels
        self._nlp = self._make_tokenizer()
        self._categories = lru_cache(maxsize=1000)(self._encode_categories)

    def encode(self, chunk: Chunk) -> EncodedDocs:
        """Tokenize and encode texts.

        chunk (Chunk): The texts, none of them empty, with their labels.
        RETURNS (EncodedDocs): The documents.
        """
        if len(self._nlp.vocab) > REMEMBERED_WORDS + FORGOTTEN_WORDS:
            self._nlp = self._make_tokenizer()
        # The tokenizer's cache grows only outside of a memory zone, and vocabularies only grow.
        if len(self._nlp.vocab) < REMEMBERED_WORDS:
            return self._encode(chunk)
        with self._nlp.memory_zone():
            return self._encode(chunk)

    def _make_tokenizer(self) -> Language:
        nlp = spacy.blank(self.lang)
        # Of a new word's attributes only the norm is stored: do not compute the others.
        getters = nlp.vocab.lex_attr_getters  # type: ignore[attr-defined]
        for attribute in [*getters]:
            if attribute != NORM:
                del getters[attribute]
        if isinstance(nlp.tokenizer, Tokenizer):
            # spaCy's 10,000 are soon used up, and what is not in the cache takes 15 times as long.
            nlp.tokenizer.max_cache_size = REMEMBERED_WORDS
        return nlp

    def _encode(self, chunk: Chunk) -> EncodedDocs:
        arrays, flags = [], []
        for text in chunk.texts:
            doc = self._nlp.tokenizer(text)
            arrays.append(doc.to_array([ORTH, NORM, SPACY]))
            flags.append(doc.has_unknown_spaces)
        words = numpy.concatenate(arrays)
        orths, norms = words[:, 0], words[:, 1]
        keys = numpy.unique(orths), numpy.unique(norms[norms != orths])
        strings = self._nlp.vocab.strings
        return EncodedDocs(
            documents=len(arrays),
            words=len(words),
            strings=[strings[key] for part in keys for key in part.tolist()],
            fields={
                "tokens": deflate(words[:, :2].tobytes()),
                "spaces": deflate(words[:, 2].astype(bool).tobytes()),
                "lengths": deflate(numpy.asarray([*map(len, arrays)], dtype="int32").tobytes()),
                **encode_lists(flags, map(self._categories, chunk.labels)),
            },
        )

    def _encode_categories(self, labels: tuple[str, ...]) -> bytes:
        categories = {label: float(label in labels) for label in self.all_labels}
        return bytes(srsly.msgpack_dumps(categories))


def tokenize(
    chunks: Iterable[Chunk], lang: str, all_labels: tuple[str, ...], processes: int
) -> Generator[tuple[str, EncodedDocs], None, None]:
    """Tokenize chunks of texts in parallel; what comes out does not depend on how many do it.

    chunks (Iterable[Chunk]): The chunks; only a few are read ahead.
    lang (str): The language, as in `spacy.blank`.
    all_labels (Tuple[str, ...]): All labels, in the order of `doc.cats`.
    processes (int): How many processes tokenize; with 1, this one does.
    YIELDS (Tuple[str, EncodedDocs]): The split of each chunk and its documents, in the same order.
    RAISES (UserError): If the language has no tokenizer here, or a process dies.
    """
    try:
        encoder = Encoder(lang, all_labels)
    except ImportError as error:
        raise UserError(f"There is no tokenizer for the language '{lang}'", str(error)) from error
    if processes == 1:
        for chunk in chunks:
            yield chunk.split, encoder.encode(chunk)
        return
    try:
        yield from _tokenize_in_pool(chunks, encoder, processes)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that tokenizes has died",
            "Most often the memory was full: try again with a smaller --n-process.",
        ) from error


_encoder: Encoder | None = None  # The encoder of a worker process.


def _tokenize_in_pool(
    chunks: Iterable[Chunk], encoder: Encoder, processes: int
) -> Iterator[tuple[str, EncodedDocs]]:
    global _encoder
    # Forked workers need not import spaCy and build the tokenizer again. Only on Linux is it safe.
    method = "fork" if platform == "linux" else "spawn"
    settings = encoder.lang, encoder.all_labels
    pool = ProcessPoolExecutor(processes, get_context(method), _prepare_worker, settings)
    running: deque[tuple[str, Future[EncodedDocs]]] = deque()
    try:
        with uninterrupted():  # Workers start at the first use of a pool.
            _encoder = encoder
            gc.freeze()  # Else the workers' collectors make copies of what they share.
            pool.submit(int)
        for chunk in chunks:
            running.append((chunk.split, pool.submit(_encode_in_worker, chunk)))
            if len(running) > 2 * processes:
                split, future = running.popleft()
                yield split, future.result()
        for split, future in running:
            yield split, future.result()
    finally:
        _encoder = None
        gc.unfreeze()
        pool.shutdown(cancel_futures=True)


def _prepare_worker(lang: str, all_labels: tuple[str, ...]) -> None:
    global _encoder
    # Ctrl-C reaches every process of a terminal, and the one that asked for the work tidies up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = _encoder or Encoder(lang, all_labels)


def _encode_in_worker(chunk: Chunk) -> EncodedDocs:
    assert _encoder is not None
    return _encoder.encode(chunk)
