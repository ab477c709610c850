"""Writing a DocBin file out of pieces that several processes have already compressed.

A DocBin's file is one zlib stream of one msgpack map, and each of its large fields is the fields
of the documents strung together. Deflated pieces may be strung together too, so whoever writes
the file neither decompresses nor compresses what the pieces hold.
"""

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import srsly
from spacy.attrs import NORM, ORTH
from spacy.tokens import DocBin

ATTRIBUTES = (ORTH, NORM)
_ARRAY, _BYTES = 0xDD, 0xC6  # msgpack's types with a length of 32 bits
_BYTE_FIELDS = ("tokens", "spaces", "lengths")
_LIST_FIELDS = ("flags", "span_groups")
_LAST_FIELD = "cats"
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
    fields (Dict[str, Piece]): The contents of each field of the file but the categories.
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


@dataclass
class OpenDocBin:
    """A DocBin file that lacks its last field, the categories, which are known last of all.

    path (Path): The file.
    documents (int): How many documents it holds.
    checksum (int): Adler-32 of what stands in it.
    """

    path: Path
    documents: int
    checksum: int


def start_docbin(path: Path, chunks: Sequence[EncodedDocs]) -> OpenDocBin:
    """Write chunks of documents as one file that lacks nothing but their categories.

    path (Path): The file to write.
    chunks (Sequence[EncodedDocs]): The documents, in their order.
    RETURNS (OpenDocBin): The file, to be finished.
    RAISES (OSError): If the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(zlib.compress(b"")[:2])
        checksum = _write_pieces(file, 1, _pieces(chunks))
    return OpenDocBin(path, sum(chunk.documents for chunk in chunks), checksum)


def finish_docbin(docbin: OpenDocBin, categories: Iterable[bytes]) -> None:
    """Append the categories, after which spaCy's DocBin reads the file.

    docbin (OpenDocBin): The file.
    categories (Iterable[bytes]): The `cats` of each document, as msgpack.
    RAISES (OSError): If the file cannot be written.
    """
    header = _field_header(_LAST_FIELD, _ARRAY, docbin.documents)
    with docbin.path.open("ab") as file:
        checksum = _write_pieces(file, docbin.checksum, [header, deflate(b"".join(categories))])
        last = zlib.compressobj(wbits=-zlib.MAX_WBITS).flush()
        file.write(last + struct.pack(">I", checksum))


def _write_pieces(file: BinaryIO, checksum: int, pieces: Iterable[Piece]) -> int:
    for piece in pieces:
        file.write(piece.deflated)
        checksum = _join_checksums(checksum, piece)
    return checksum


def _pieces(chunks: Sequence[EncodedDocs]) -> Iterator[Piece]:
    documents = sum(chunk.documents for chunk in chunks)
    simple = {
        "version": DocBin().version,
        "attrs": list(ATTRIBUTES),
        "strings": sorted(set().union(*(chunk.strings for chunk in chunks))),
    }
    fields = len(simple) + len(_BYTE_FIELDS) + len(_LIST_FIELDS) + 1
    yield deflate(bytes([0x80 + fields]))
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
    which spaCy reads the same way. Where one ends depends on the documents alone. A document's
    categories name every label, and those are known at the end: until then only the number of its
    combination of labels is kept, 4 bytes a document.

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
        self._combinations = array("I")
        self._parts: list[OpenDocBin] = []

    def add(self, chunk: EncodedDocs, combinations: Sequence[int]) -> None:
        """Append documents, writing the file that they no longer fit into.

        chunk (EncodedDocs): The documents.
        combinations (Sequence[int]): The number of each document's combination of labels.
        RAISES (OSError): If a file cannot be written.
        """
        held = [*self._chunks, chunk]
        too_many = sum(part.documents for part in held) > self._most_documents
        too_long = sum(part.words for part in held) > self._most_words
        if self._chunks and (too_many or too_long):
            self._write_part()
        self._chunks.append(chunk)
        self._combinations.extend(combinations)

    def close(self, categories: Sequence[bytes]) -> None:
        """Write what is left.

        categories (Sequence[bytes]): The `cats` of each combination of labels, as msgpack.
        RAISES (OSError): If a file cannot be written.
        """
        if self._parts:
            self._write_part()
        else:
            self._parts.append(start_docbin(self._path, self._chunks))
        start = 0
        for part in self._parts:
            end = start + part.documents
            finish_docbin(part, (categories[number] for number in self._combinations[start:end]))
            start = end

    def _write_part(self) -> None:
        self._path.mkdir(exist_ok=True)
        path = self._path / f"{len(self._parts):05}.spacy"
        self._parts.append(start_docbin(path, self._chunks))
        self._chunks = []


def encode_flags(flags: Iterable[bool]) -> dict[str, Piece]:
    """Encode the fields of a DocBin that say little about each document.

    flags (Iterable[bool]): Whether it is unknown where the document's words have spaces.
    RETURNS (Dict[str, Piece]): The fields.
    """
    spaces_unknown = [srsly.msgpack_dumps({"has_unknown_spaces": flag}) for flag in (False, True)]
    flag_bytes = [spaces_unknown[flag] for flag in flags]
    no_spans = srsly.msgpack_dumps(srsly.msgpack_dumps([]))
    return {
        "flags": deflate(b"".join(flag_bytes)),
        "span_groups": deflate(no_spans * len(flag_bytes)),
    }
