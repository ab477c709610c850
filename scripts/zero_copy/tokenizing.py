"""Tokenizing texts with spaCy's tokenizer on all cores, in flat memory."""

import gc
import signal
from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from sys import platform
from typing import NamedTuple

import numpy
import spacy
from spacy.attrs import NORM, ORTH, SPACY
from spacy.language import Language
from spacy.tokenizer import Tokenizer

from zero_copy.docbins import EncodedDocs, deflate, encode_flags
from zero_copy.errors import UserError
from zero_copy.files import uninterrupted

# Chunks read ahead for each process, which it works on while a file is written.
CHUNKS_AHEAD = 8
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


class Encoder:
    """Turns texts into what stands for them in a DocBin file.

    lang (str): The language, as in `spacy.blank`.
    RAISES (ImportError): If spaCy does not know the language, or lacks its tokenizer's package.
    """

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self._nlp = self._make_tokenizer()

    def encode(self, texts: list[str]) -> EncodedDocs:
        """Tokenize and encode texts.

        texts (List[str]): The texts, none of them empty.
        RETURNS (EncodedDocs): The documents.
        """
        if len(self._nlp.vocab) > REMEMBERED_WORDS + FORGOTTEN_WORDS:
            self._nlp = self._make_tokenizer()
        # The tokenizer's cache grows only outside of a memory zone, and vocabularies only grow.
        if len(self._nlp.vocab) < REMEMBERED_WORDS:
            return self._encode(texts)
        with self._nlp.memory_zone():
            return self._encode(texts)

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

    def _encode(self, texts: list[str]) -> EncodedDocs:
        arrays, flags = [], []
        for text in texts:
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
                **encode_flags(flags),
            },
        )


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
    if processes == 1:
        for chunk in chunks:
            yield chunk, encoder.encode(chunk.texts)
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
) -> Iterator[tuple[Chunk, EncodedDocs]]:
    global _encoder
    # Forked workers need not import spaCy and build the tokenizer again. Only on Linux is it safe.
    method = "fork" if platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(processes, get_context(method), _prepare_worker, (encoder.lang,))
    running: deque[tuple[Chunk, Future[EncodedDocs]]] = deque()
    try:
        with uninterrupted():  # Workers start at the first use of a pool.
            _encoder = encoder
            gc.freeze()  # Else the workers' collectors make copies of what they share.
            pool.submit(int)
        for chunk in chunks:
            running.append((chunk, pool.submit(_encode_in_worker, chunk.texts)))
            if len(running) > CHUNKS_AHEAD * processes:
                done, future = running.popleft()
                yield done, future.result()
        for done, future in running:
            yield done, future.result()
    finally:
        _encoder = None
        gc.unfreeze()
        pool.shutdown(cancel_futures=True)


def _prepare_worker(lang: str) -> None:
    global _encoder
    # Ctrl-C reaches every process of a terminal, and the one that asked for the work tidies up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _encoder = _encoder or Encoder(lang)


def _encode_in_worker(texts: list[str]) -> EncodedDocs:
    assert _encoder is not None
    return _encoder.encode(texts)
