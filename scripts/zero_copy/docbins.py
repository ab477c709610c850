"""Writing a DocBin file out of pieces that several processes have already compressed.

A DocBin's file is one zlib stream of one msgpack map, and each of its large fields is the fields
of the documents strung together. Deflated pieces may be strung together too, so whoever writes
the file neither decompresses nor compresses what the pieces hold.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import srsly
from spacy.attrs import NORM, ORTH
from spacy.tokens import DocBin

ATTRIBUTES = (ORTH, NORM)
_ARRAY, _BYTES = 0xDD, 0xC6  # msgpack's types with a length of 32 bits
_BYTE_FIELDS = ("tokens", "spaces", "lengths")
_LIST_FIELDS = ("cats", "flags", "span_groups")
_ADLER_BASE = 65521


class Piece(NamedTuple):
    """A piece of a zlib stream.

    deflated (bytes): The compressed bytes, ending on a byte, without a header or an end.
    length (int): How many bytes they stand for.
    checksum (int): Adler-32 of the bytes they stand for.
    """

    deflated: bytes
    length: int
    checksum: int


class EncodedDocs(NamedTuple):
    """Consecutive documents, encoded to become a part of a DocBin file.

    documents (int): How many documents these are.
    words (int): How many words they have together.
    strings (List[str]): The distinct strings of their words and norms.
    fields (Dict[str, Piece]): The contents of each field of the file, in all their parts.
    """

    documents: int
    words: int
    strings: list[str]
    fields: dict[str, Piece]


def deflate(content: bytes) -> Piece:
    """Compress bytes to be a piece of a zlib stream.

    content (bytes): What to compress.
    RETURNS (Piece): The piece.
    """
    # Level 3 takes half the time of the usual 6, and 3 % more room.
    compressor = zlib.compressobj(level=3, wbits=-zlib.MAX_WBITS)
    deflated = compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return Piece(deflated, len(content), zlib.adler32(content))


def write_docbin(path: Path, chunks: Sequence[EncodedDocs]) -> None:
    """Write chunks of documents as one file, which spaCy's DocBin reads.

    path (Path): The file to write.
    chunks (Sequence[EncodedDocs]): The documents, in their order.
    RAISES (OSError): If the file cannot be written.
    """
    checksum = 1
    with path.open("wb") as file:
        file.write(zlib.compress(b"")[:2])
        for piece in _pieces(chunks):
            file.write(piece.deflated)
            checksum = _join_checksums(checksum, piece)
        last = zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()
        file.write(last + struct.pack(">I", checksum))


def _pieces(chunks: Sequence[EncodedDocs]) -> Iterator[Piece]:
    documents = sum(chunk.documents for chunk in chunks)
    simple = {
        "version": DocBin().version,
        "attrs": list(ATTRIBUTES),
        "strings": sorted(set().union(*(chunk.strings for chunk in chunks))),
    }
    yield deflate(bytes([0x80 + len(simple) + len(_BYTE_FIELDS) + len(_LIST_FIELDS)]))
    for name, content in simple.items():
        yield deflate(srsly.msgpack_dumps(name) + srsly.msgpack_dumps(content))
    for name in _BYTE_FIELDS:
        pieces = [chunk.fields[name] for chunk in chunks]
        yield _field_header(name, _BYTES, sum(piece.length for piece in pieces))
        yield from pieces
    for name in _LIST_FIELDS:
        yield _field_header(name, _ARRAY, documents)
        yield from (chunk.fields[name] for chunk in chunks)


def _field_header(name: str, kind: int, length: int) -> Piece:
    return deflate(srsly.msgpack_dumps(name) + struct.pack(">BI", kind, length))


def _join_checksums(checksum: int, piece: Piece) -> int:
    # Adler-32 is two sums: of the bytes, plus 1, and of the values which that sum takes on. After
    # the first part, every one of the second part's values is larger by the first part's bytes.
    low, high = checksum & 0xFFFF, checksum >> 16
    low_next, high_next = piece.checksum & 0xFFFF, piece.checksum >> 16
    joined_high = (high + high_next + piece.length * (low - 1)) % _ADLER_BASE
    return joined_high << 16 | (low + low_next - 1) % _ADLER_BASE


class SplitWriter:
    """Writes a split: one file, or a folder of files once it outgrows one.

    A single DocBin has to fit into memory when it is read, so a large split is a folder of them,
    which spaCy reads the same way. Where one ends depends on the documents alone.

    path (Path): The file or folder to write; neither may exist.
    most_documents (int): How many documents a file may hold.
    most_words (int): How many words a file may hold; a single chunk may exceed it.
    """

    def __init__(
        self, path: Path, most_documents: int = 50_000, most_words: int = 10_000_000
    ) -> None:
        self._path = path
        self._most_documents = most_documents
        self._most_words = most_words
        self._chunks: list[EncodedDocs] = []
        self._files = 0

    def add(self, chunk: EncodedDocs) -> None:
        """Append documents, writing the file that they no longer fit into.

        chunk (EncodedDocs): The documents.
        RAISES (OSError): If a file cannot be written.
        """
        held = [*self._chunks, chunk]
        too_many = sum(part.documents for part in held) > self._most_documents
        too_long = sum(part.words for part in held) > self._most_words
        if self._chunks and (too_many or too_long):
            self._write_part()
        self._chunks.append(chunk)

    def close(self) -> None:
        """Write what is left.

        RAISES (OSError): If a file cannot be written.
        """
        if self._files:
            self._write_part()
        else:
            write_docbin(self._path, self._chunks)

    def _write_part(self) -> None:
        self._path.mkdir(exist_ok=True)
        write_docbin(self._path / f"{self._files:05}.spacy", self._chunks)
        self._files += 1
        self._chunks = []


def encode_lists(flags: Iterable[bool], categories: Iterable[bytes]) -> dict[str, Piece]:
    """Encode the fields of a DocBin that have an item for every document.

    flags (Iterable[bool]): Whether it is unknown where the document's words have spaces.
    categories (Iterable[bytes]): The document's `cats`, as msgpack.
    RETURNS (Dict[str, Piece]): The fields.
    """
    spaces_unknown = [srsly.msgpack_dumps({"has_unknown_spaces": flag}) for flag in (False, True)]
    flag_bytes = [spaces_unknown[flag] for flag in flags]
    no_spans = srsly.msgpack_dumps(srsly.msgpack_dumps([]))
    return {
        "cats": deflate(b"".join(categories)),
        "flags": deflate(b"".join(flag_bytes)),
        "span_groups": deflate(no_spans * len(flag_bytes)),
    }
