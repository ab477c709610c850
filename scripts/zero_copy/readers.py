"""Reading labelled texts, a row at a time, from the files that people keep them in."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from zero_copy.errors import UserError

ENDINGS = (".tab", ".csv", ".tsv", ".jsonl")
LINES = ".txt"  # A text a line, which has no room for a label.
TEXT_COLUMNS = ("text", "review", "content", "sentence", "body", "document")
LABEL_COLUMNS = ("label", "labels", "category", "class", "stars", "target")
# Also what stops a quotation mark that is never closed from reading a whole file into memory.
LONGEST_FIELD = 100_000_000


class Row(NamedTuple):
    """One labelled text.

    line (int): Where the row begins in its file; the first line is 1.
    text (str): The text as it stands in the file.
    labels (Tuple[str, ...]): Its labels, sorted and without repetition; there may be none where
        the format allows several.
    """

    line: int
    text: str
    labels: tuple[str, ...]


class Columns(NamedTuple):
    """Where a file's texts and labels stand.

    text (Optional[str]): Name of the column of texts; None to find it by itself.
    label (Optional[str]): Name of the column of labels; None to find it by itself.
    separator (Optional[str]): What stands between the labels of one text; None if every text has
        exactly one.
    header (Tuple[str, ...]): Names of all columns of a .csv or .tsv file whose first line is a
        text already; empty where the file has a header.
    """

    text: str | None = None
    label: str | None = None
    separator: str | None = None
    header: tuple[str, ...] = ()


DEFAULT_COLUMNS = Columns()


def read_rows(path: Path, columns: Columns = DEFAULT_COLUMNS) -> Iterator[Row]:
    """Read the labelled texts of a file in their order, without holding more than one.

    path (Path): A .tab, .csv, .tsv or .jsonl file, optionally followed by .gz.
    columns (Columns): Where the texts and labels stand.
    YIELDS (Row): The rows, those with empty texts included.
    RAISES (UserError): Where the file is missing, has another ending, is not UTF-8, is malformed,
        or lacks a column, a text or a label.
    """
    ending = check_file(path)
    if columns.separator == "":
        raise UserError(
            "The label separator is empty", "Give one character, such as ';', or leave it out."
        )
    with open_text(path) as file:
        if ending == ".jsonl":
            yield from _read_json_lines(path, file, columns)
        else:
            yield from _read_table(path, file, columns, ending)


def count_lines(path: Path) -> int:
    """Count the lines of a file, which takes a small part of the time of reading its rows.

    path (Path): A .tab, .csv, .tsv, .jsonl or .txt file, optionally followed by .gz.
    RETURNS (int): How many lines it has, at least 1.
    RAISES (UserError): Where the file is missing, has another ending, or is not a whole gzip file.
    """
    check_file(path, (*ENDINGS, LINES))
    with _unzipping(path), _open(path) as file:
        blocks = iter(lambda: file.read(1 << 20), b"")
        return 1 + sum(block.count(b"\n") for block in blocks)


def file_ending(path: Path, endings: Sequence[str] = ENDINGS) -> str | None:
    """Tell the format of a file by its name.

    path (Path): The file; it need not exist.
    endings (Sequence[str]): The endings that will do.
    RETURNS (Optional[str]): One of them, or None if it is none of them.
    """
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in endings if name.endswith(ending)), None)


def find_split(folder: Path, split: str) -> Path | None:
    """Find the file that holds a split in a folder of data.

    folder (Path): The folder.
    split (str): "train", "dev" or "test".
    RETURNS (Optional[Path]): The file, or None if there is none.
    RAISES (UserError): If there is more than one.
    """
    found = sorted(
        path
        for path in folder.glob(f"{split}.*")
        if path.is_file() and path.name.split(".")[0] == split and file_ending(path)
    )
    if len(found) > 1:
        raise UserError(
            f"{folder} holds more than one file of the {split} set",
            f"Found {', '.join(path.name for path in found)}; keep one of them.",
        )
    return found[0] if found else None


def check_file(path: Path, endings: Sequence[str] = ENDINGS) -> str:
    """Tell the format of a file of texts that is there.

    path (Path): The file.
    endings (Sequence[str]): The endings that will do.
    RETURNS (str): One of them.
    RAISES (UserError): If it has none of them, or is not there.
    """
    ending = file_ending(path, endings)
    if ending is None:
        raise UserError(
            f"Cannot tell the format of {path} by its ending",
            f"The endings known are {', '.join(endings)}, each also followed by .gz.",
        )
    if not path.is_file():
        raise UserError(f"There is no file {path}", "Check the path.")
    return ending


def _open(path: Path) -> BinaryIO:
    compressed = path.name.lower().endswith(".gz")
    return cast(BinaryIO, gzip.open(path) if compressed else path.open("rb"))


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a text file, zipped or not, and say in one message what is wrong with its bytes.

    path (Path): The file.
    errors (str): What to do with bytes that are not UTF-8, as in Python's `open`.
    YIELDS (TextIO): The file, its line ends as they are.
    RAISES (UserError): If it is cut off, or is not UTF-8.
    """
    try:
        # Line ends stay as they are, so that those inside quoted texts are kept.
        with (
            _unzipping(path),
            _open(path) as binary,
            TextIOWrapper(binary, "utf-8-sig", errors, newline="") as file,
        ):
            yield file
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error


@contextmanager
def _unzipping(path: Path) -> Iterator[None]:
    """Say in one message that a file was cut off or is none of gzip's."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file", f"{error}. Make or copy it again."
        ) from error


def _undecodable(path: Path) -> UserError:
    # The decoder works on blocks and cannot tell the line: look again, only now that it matters.
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UserError(
                    f"{path}, line {number}, is not UTF-8: byte 0x{line[error.start]:02x} at "
                    f"position {error.start + 1} of the line",
                    "Save the file as UTF-8 and try again.",
                )
    return UserError(f"{path} is not UTF-8", "Save the file as UTF-8 and try again.")


# Tables: .csv, .tsv and .tab


class Table(NamedTuple):
    """A table whose header has been read.

    header (List[str]): Names of the columns.
    text_at (int): Number of the column of texts.
    label (Optional[str]): The column that holds labels by its name or flag.
    rows (Iterator[Tuple[int, List[str]]]): The line on which each row begins, and its fields.
    """

    header: list[str]
    text_at: int
    label: str | None
    rows: Iterator[tuple[int, list[str]]]


def open_table(path: Path, file: TextIO, columns: Columns, ending: str) -> Table:
    """Read the header of a table.

    path (Path): The file.
    file (TextIO): The same, opened.
    columns (Columns): Where the texts stand.
    ending (str): Its format.
    RETURNS (Table): The table, of which no row has been read.
    RAISES (UserError): If it is empty, or there is no telling which column holds the texts.
    """
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        file,
        delimiter="," if ending == ".csv" else "\t",
        # Orange writes texts into .tab files as they are; spreadsheets quote in both others.
        quoting=csv.QUOTE_NONE if ending == ".tab" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    rows = _numbered_rows(path, reader)
    header = list(columns.header) or _header_row(path, rows)
    if ending == ".tab":
        types, flags = _header_row(path, rows), _header_row(path, rows)
        default_text = _flagged(header, types, ("string", "text", "s"))
        default_label = _flagged(header, flags, ("class", "c"))
    else:
        default_text = _first_known(header, TEXT_COLUMNS)
        default_label = _first_known(header, LABEL_COLUMNS)
    text_at = header.index(_choose(path, header, columns.text, default_text, "text"))
    return Table(header, text_at, default_label, rows)


def check_fields(path: Path, line: int, row: list[str], table: Table, ending: str) -> None:
    """Make sure that a row has the columns of its table.

    path (Path): The file.
    line (int): Where the row begins.
    row (List[str]): Its fields.
    table (Table): The table.
    ending (str): The file's format.
    RAISES (UserError): If it has more or fewer.
    """
    if len(row) != len(table.header):
        raise UserError(
            f"{path}, line {line}, has {len(row)} fields, but the header has {len(table.header)}",
            _quoting_advice(ending),
        )


def _read_table(path: Path, file: TextIO, columns: Columns, ending: str) -> Iterator[Row]:
    table = open_table(path, file, columns, ending)
    label = _choose(path, table.header, columns.label, table.label, "label")
    label_at = table.header.index(label)
    for line, row in table.rows:
        check_fields(path, line, row, table, ending)
        text, cell = row[table.text_at], row[label_at]
        # A row of neither is what an empty line looks like in a table, R52's first for one.
        nothing = not text.strip() and not cell.strip()
        labels = () if nothing else _split_labels(path, line, cell, columns.separator)
        yield Row(line, text, labels)


def _numbered_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Give every row with the line on which it begins; empty lines are passed over."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {line}, is malformed: {error}",
                "Look for a quotation mark that is never closed, or one inside a quoted text that "
                "is not doubled.",
            ) from error
        if row is None:
            return
        if row:
            yield line, row


def _header_row(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    for _, row in rows:
        return row
    raise UserError(f"{path} is empty", "It must hold its header and at least one text.")


def _quoting_advice(ending: str) -> str:
    if ending == ".tab":
        return "Texts in .tab files cannot hold tabs or line breaks: replace them by spaces."
    separator = "commas" if ending == ".csv" else "tabs"
    return f"Texts that hold {separator} or line breaks must stand in quotation marks."


def _flagged(header: Sequence[str], marks: Sequence[str], wanted: Sequence[str]) -> str | None:
    pairs = zip(header, marks, strict=False)
    return next((name for name, mark in pairs if {*mark.lower().split()} & {*wanted}), None)


def _first_known(names: Iterable[str], known: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(list(names))}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _choose(
    path: Path, names: Sequence[str], given: str | None, default: str | None, kind: str
) -> str:
    """Decide which column holds the texts or the labels."""
    listed = ", ".join(names)
    if given is not None and given not in names:
        raise UserError(
            f"{path} has no column '{given}'", f"Its columns are: {listed}. Choose one of them."
        )
    chosen = given if given is not None else default
    if chosen is None:
        raise UserError(
            f"Cannot tell which column of {path} holds the {kind}s",
            f"Its columns are: {listed}. Choose one with --{kind}-column.",
        )
    return chosen


def _split_labels(path: Path, line: int, cell: str, separator: str | None) -> tuple[str, ...]:
    if separator is not None:
        return tuple(sorted({label.strip() for label in cell.split(separator)} - {""}))
    label = cell.strip()
    if not label:
        raise UserError(
            f"{path}, line {line}, has no label",
            "Give the text a label or remove the row. Where texts may have any number of labels, "
            "say what separates them with --label-separator.",
        )
    return (label,)


# JSON lines


def _read_json_lines(path: Path, file: TextIO, columns: Columns) -> Iterator[Row]:
    text_key = label_key = None
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        record = parse_record(path, number, line)
        if text_key is None or label_key is None:
            text_key = find_text_key(path, record, columns)
            names = list(record)
            default_label = _first_known(names, LABEL_COLUMNS)
            label_key = _choose(path, names, columns.label, default_label, "label")
        text = json_text(path, number, record, text_key)
        yield Row(number, text, _json_labels(path, number, record, label_key, columns.separator))
    if text_key is None:
        raise UserError(f"{path} is empty", "It must hold at least one text.")


def find_text_key(path: Path, record: dict[str, Any], columns: Columns) -> str:
    """Find out which key of the records of a file holds the text.

    path (Path): The file.
    record (Dict[str, Any]): Its first record.
    columns (Columns): Where the texts stand.
    RETURNS (str): The key.
    RAISES (UserError): If there is no telling.
    """
    names = list(record)
    return _choose(path, names, columns.text, _first_known(names, TEXT_COLUMNS), "text")


def parse_record(path: Path, line_number: int, line: str) -> dict[str, Any]:
    """Parse a line of JSON.

    path (Path): The file.
    line_number (int): Where the line stands.
    line (str): The line.
    RETURNS (Dict[str, Any]): The object that it holds.
    RAISES (UserError): If it holds none, or something that is not UTF-8.
    """
    try:
        record = json.loads(line)
        if "\\ud" in line.lower():  # It may be half a surrogate pair, which UTF-8 cannot spell.
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {line_number}, is not JSON: {error}",
            "Every line must hold one object, such as "
            '{"text": "a fine film", "label": "positive"}.',
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {line_number}, holds {_shown(record)} where an object should stand",
            'Every line must hold one object, such as {"text": "a fine film", "label": '
            '"positive"}.',
        )
    return record


def _json_value(path: Path, line: int, record: dict[str, Any], key: str) -> Any:
    if record.get(key) is None:
        raise UserError(
            f"{path}, line {line}, has no '{key}'", "Give it a value or remove the line."
        )
    return record[key]


def json_text(path: Path, line: int, record: dict[str, Any], key: str) -> str:
    """The text of a record.

    path (Path): The file.
    line (int): Where the record stands.
    record (Dict[str, Any]): The record.
    key (str): What the text stands under.
    RETURNS (str): The text.
    RAISES (UserError): If there is none.
    """
    value = _json_value(path, line, record, key)
    if not isinstance(value, str):
        raise UserError(
            f"{path}, line {line}: '{key}' is {_shown(value)}, not a text",
            "Put it in quotation marks, or choose another column with --text-column.",
        )
    return value


def _json_labels(
    path: Path, line: int, record: dict[str, Any], key: str, separator: str | None
) -> tuple[str, ...]:
    value = _json_value(path, line, record, key)
    if isinstance(value, str):
        return _split_labels(path, line, value, separator)
    values = value if isinstance(value, list) else [value]
    labels = {str(item).strip() if _is_label(item) else "" for item in values}
    if "" in labels:
        raise UserError(
            f"{path}, line {line}: '{key}' is {_shown(value)}, not a label",
            "A label is a string or a number; several labels are a list of strings.",
        )
    return tuple(sorted(labels))


def _is_label(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=True)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
