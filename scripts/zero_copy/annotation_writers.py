"""Writing annotated documents so that an interruption loses nothing: JSONL, CSV and .spacy.

A writer works on an unfinished file (or folder) whose first `position` bytes (or files) are known
to be right, and cuts off what stands behind them. What it appends depends on the documents alone.
"""

import csv
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy
import srsly

from zero_copy.docbins import EncodedDocs, finish_docbin, start_docbin
from zero_copy.documents import Document
from zero_copy.errors import UserError

OUTPUT_ENDINGS = (".jsonl", ".csv", ".spacy")
# What a DocBin file may hold before another one is begun: it is read as a whole.
PART_DOCUMENTS = 50_000
PART_WORDS = 10_000_000


class Annotated(NamedTuple):
    """Documents and what was found out about them.

    documents (List[Document]): The documents, as they were read.
    scores (numpy.ndarray): float32, `(documents, labels)`.
    failures (Dict[int, str]): By the numbers of those that failed what went wrong.
    encoded (Optional[EncodedDocs]): Their part of a DocBin file.
    """

    documents: list[Document]
    scores: numpy.ndarray
    failures: dict[int, str]
    encoded: EncodedDocs | None


class Writer(Protocol):
    """What is asked of the writer of a format."""

    position: int

    def add(self, annotated: Annotated) -> bool:
        """Append documents; true if all of them can be counted on once `sync` was called."""

    def sync(self) -> None:
        """Make sure that what was added outlives the machine."""

    def finish(self, output: Path) -> None:
        """Move the whole to its place, over what stands there."""


def output_ending(output: Path) -> str:
    """Tell the format to write by the name of the output.

    output (Path): The file to write.
    RETURNS (str): One of OUTPUT_ENDINGS.
    RAISES (UserError): If it has none of them, or can't be written over.
    """
    if output.suffix not in OUTPUT_ENDINGS:
        raise UserError(
            f"Cannot tell the format to write from the name {output}",
            f"Let it end in {', '.join(OUTPUT_ENDINGS[:-1])} or {OUTPUT_ENDINGS[-1]}.",
        )
    if output.is_dir() and output.suffix != ".spacy":
        raise UserError(f"{output} is a folder", "Choose another name.")
    return output.suffix


def open_writer(
    ending: str, path: Path, position: int, labels: Sequence[str], columns: Sequence[str]
) -> Writer:
    """Begin to write, or go on.

    ending (str): The format, one of OUTPUT_ENDINGS.
    path (Path): The unfinished file or folder.
    position (int): What of it is right, 0 for nothing.
    labels (Sequence[str]): Names of the categories.
    columns (Sequence[str]): The fields of the documents that become columns of a CSV file.
    RETURNS (Writer): The writer.
    RAISES (OSError): If the file can't be written.
    """
    if ending == ".jsonl":
        return JsonLinesWriter(path, position, labels)
    if ending == ".csv":
        return CsvWriter(path, position, labels, columns)
    return DocBinWriter(path, position, labels)


def is_there(path: Path, position: int) -> bool:
    """Whether an unfinished file or folder still holds what is to be gone on from.

    path (Path): The unfinished file or folder.
    position (int): Its bytes or files.
    RETURNS (bool): True if it does.
    """
    if path.is_dir():
        return all((path / _part_name(number)).is_file() for number in range(position))
    return path.is_file() and path.stat().st_size >= position


class _RowWriter(ABC):
    """Appends rows to a file; a subclass says how documents become rows."""

    def __init__(self, path: Path, position: int) -> None:
        self.position = position
        self._path = path
        self._file = path.open("r+b" if position else "wb")
        self._file.truncate(position)
        self._file.seek(position)

    def add(self, annotated: Annotated) -> bool:
        # Half a surrogate pair, which is what a byte that is not UTF-8 was read as, is escaped.
        content = self.rows(annotated).encode("utf8", "backslashreplace")
        self._file.write(content)
        self.position += len(content)
        return True

    @abstractmethod
    def rows(self, annotated: Annotated) -> str:
        """The rows of some documents."""

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, output: Path) -> None:
        self.sync()
        self._file.close()
        os.replace(self._path, output)


class JsonLinesWriter(_RowWriter):
    """Writes each document's own fields, and with them `cats`, which is null where it failed.

    path (Path): The unfinished file.
    position (int): How many of its bytes are right.
    labels (Sequence[str]): Names of the categories.
    """

    def __init__(self, path: Path, position: int, labels: Sequence[str]) -> None:
        super().__init__(path, position)
        # Six digits are what float32 is good for. The # keeps the point: 1.0 stays a float.
        keys = [json.dumps(label, ensure_ascii=False).replace("%", "%%") for label in labels]
        self._cats = "{" + ", ".join(f"{key}: %#.6g" for key in keys) + "}"

    def rows(self, annotated: Annotated) -> str:
        lines = []
        for number, (document, row) in enumerate(
            zip(annotated.documents, annotated.scores.tolist(), strict=True)
        ):
            fields = {key: value for key, value in document.fields.items() if key != "cats"}
            start = json.dumps(fields, ensure_ascii=False)[:-1] + (", " if fields else "")
            cats = self._cats % tuple(row)
            if number in annotated.failures:
                cats = f'null, "error": {json.dumps(annotated.failures[number])}'
            lines.append(f'{start}"cats": {cats}}}\n')
        return "".join(lines)


class CsvWriter(_RowWriter):
    """Writes each document's own fields, a column for each category, and why a document failed.

    path (Path): The unfinished file.
    position (int): How many of its bytes are right.
    labels (Sequence[str]): Names of the categories.
    columns (Sequence[str]): The fields that become columns.
    """

    def __init__(
        self, path: Path, position: int, labels: Sequence[str], columns: Sequence[str]
    ) -> None:
        super().__init__(path, position)
        self._labels = labels
        self._columns = columns

    def rows(self, annotated: Annotated) -> str:
        text = StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        if not self.position:
            rows.writerow([*self._columns, *(f"cats.{label}" for label in self._labels), "error"])
        for number, (document, row) in enumerate(
            zip(annotated.documents, annotated.scores.tolist(), strict=True)
        ):
            cells = [_cell(document.fields.get(column)) for column in self._columns]
            failure = annotated.failures.get(number, "")
            scores = [""] * len(row) if failure else ["%#.6g" % score for score in row]  # noqa: UP031
            rows.writerow([*cells, *scores, failure])
        return text.getvalue()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


class DocBinWriter:
    """Writes Docs with their tokens and `doc.cats`; one that failed has no tokens.

    They go into a folder of DocBin files, of which only whole ones can be counted on. If there is
    but one at the end, it becomes the output instead of the folder.

    path (Path): The unfinished folder.
    position (int): How many of its files are right.
    labels (Sequence[str]): Names of the categories.
    """

    def __init__(self, path: Path, position: int, labels: Sequence[str]) -> None:
        self.position = position
        self._path = path
        self._labels = labels
        self._chunks: list[EncodedDocs] = []
        self._cats: list[bytes] = []
        path.mkdir(exist_ok=True)
        known = {_part_name(number) for number in range(position)}
        for left in path.iterdir():
            if left.name not in known:
                left.unlink()

    def add(self, annotated: Annotated) -> bool:
        assert annotated.encoded is not None
        self._chunks.append(annotated.encoded)
        for number, row in enumerate(annotated.scores.tolist()):
            cats = {} if number in annotated.failures else dict(zip(self._labels, row, strict=True))
            self._cats.append(bytes(srsly.msgpack_dumps(cats)))
        is_full = (
            len(self._cats) >= PART_DOCUMENTS
            or sum(chunk.words for chunk in self._chunks) >= PART_WORDS
        )
        if is_full:
            self._write_part()
        return is_full

    def _write_part(self) -> None:
        part = start_docbin(self._path / _part_name(self.position), self._chunks)
        finish_docbin(part, self._cats)
        self._chunks, self._cats = [], []
        self.position += 1

    def sync(self) -> None:
        for path in (self._path / _part_name(self.position - 1), self._path):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def finish(self, output: Path) -> None:
        if self._cats or not self.position:
            self._write_part()
        self.sync()
        replaced = self._path.with_name(f"{self._path.name}.replaced")
        if output.is_dir():  # A folder can't be replaced in one step.
            os.replace(output, replaced)
        if self.position == 1:
            os.replace(self._path / _part_name(0), output)
            self._path.rmdir()
        else:
            output.unlink(missing_ok=True)
            os.replace(self._path, output)
        shutil.rmtree(replaced, ignore_errors=True)


def _part_name(number: int) -> str:
    return f"{number:05}.spacy"
