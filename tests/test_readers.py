"""Rows come out of every format as they went in, and every fault is told in one message."""

import gzip
import json
from pathlib import Path

import pytest

from zero_copy.errors import UserError
from zero_copy.readers import Columns, Row, file_ending, find_split, read_rows

ROWS = [Row(2, "a fine film", ("good",)), Row(3, "a poor film", ("bad",))]
CSV = "text,label\na fine film,good\na poor film,bad\n"
TAB = "Category\tText\nd\tstring\nclass\t\n\ngood\ta fine film\nbad\ta poor film\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read_error(path: Path, columns: Columns = Columns()) -> str:
    with pytest.raises(UserError) as error:
        list(read_rows(path, columns))
    return f"{error.value.title}. {error.value.desc}"


@pytest.mark.parametrize("end", ["", ".gz"])
def test_csv_and_tsv(tmp_path: Path, end: str) -> None:
    assert list(read_rows(write(tmp_path, f"a.csv{end}", CSV))) == ROWS
    tsv = CSV.replace(",", "\t")
    assert list(read_rows(write(tmp_path, f"a.TSV{end}", tsv))) == ROWS


@pytest.mark.parametrize("end", ["", ".gz"])
def test_json_lines(tmp_path: Path, end: str) -> None:
    lines = [json.dumps({"text": row.text, "label": row.labels[0]}) for row in ROWS]
    path = write(tmp_path, f"a.jsonl{end}", "\n" + "\n\n".join(lines))
    assert [row[1:] for row in read_rows(path)] == [row[1:] for row in ROWS]
    assert [row.line for row in read_rows(path)] == [2, 4]


def test_orange_columns_are_found_by_their_flags(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path, "a.tab", TAB)))
    assert rows == [row._replace(line=row.line + 3) for row in ROWS]


@pytest.mark.parametrize("name", ["a.tab", "a.csv"])
def test_rows_of_neither_text_nor_label_are_empty_texts(name: str, tmp_path: Path) -> None:
    content = TAB.replace("\n\n", "\n\t\n") if name == "a.tab" else CSV + " , \n"
    rows = list(read_rows(write(tmp_path, name, content)))
    assert [row.labels for row in rows if not row.text.strip()] == [()]
    assert len(rows) == 3


def test_orange_texts_keep_their_quotation_marks(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tab", TAB.replace("a fine film", '"a "" fine'))
    assert next(read_rows(path)).text == '"a "" fine'


def test_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "\ufeff" + CSV.replace("\n", "\r\n"))
    assert list(read_rows(path)) == ROWS


def test_columns_are_found_by_name_in_any_case(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "id,STARS,Review\n1,5,fine\n")
    assert list(read_rows(path)) == [Row(2, "fine", ("5",))]


def test_columns_given_take_precedence(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label,mood\nfine,a,b\n")
    assert list(read_rows(path, Columns(label="mood"))) == [Row(2, "fine", ("b",))]


def test_several_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\nx,b; a;b\ny,\n")
    labels = [row.labels for row in read_rows(path, Columns(separator=";"))]
    assert labels == [("a", "b"), ()]
    lines = ['{"text": "x", "label": ["b", "a"]}', '{"text": "y", "label": []}']
    labels = [row.labels for row in read_rows(write(tmp_path, "a.jsonl", "\n".join(lines)))]
    assert labels == [("a", "b"), ()]


def test_numbers_become_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "x", "label": 1}\n{"text": "y", "label": 2.5}\n')
    assert [row.labels for row in read_rows(path)] == [("1",), ("2.5",)]


def test_rows_of_several_lines_are_numbered_by_their_first(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'text,label\n"a\nb",x\nc,y\n')
    assert list(read_rows(path)) == [Row(2, "a\nb", ("x",)), Row(4, "c", ("y",))]


def test_long_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f"text,label\n{'word ' * 100_000},x\n")
    assert len(next(read_rows(path)).text) == 500_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", ["a.txt", ".tab, .csv, .tsv, .jsonl"]),
        ("a.csv", "", ["a.csv is empty"]),
        ("a.jsonl", "\n", ["a.jsonl is empty"]),
        ("a.tab", "Category\tText\nd\tstring\n", ["a.tab is empty"]),
        ("a.csv", "text,mood\nx,y\n", ["label", "text, mood", "--label-column"]),
        ("a.csv", "words,label\nx,y\n", ["text", "words, label", "--text-column"]),
        ("a.tab", TAB.replace("class", ""), ["label", "Category, Text"]),
        ("a.jsonl", '{"a": 1}\n', ["text", "columns are: a"]),
        ("a.csv", CSV + "one field\n", ["line 4", "1 field", "has 2"]),
        ("a.tab", TAB + "bad\ta\ttab\n", ["line 7", "3 fields", "tabs"]),
        ("a.csv", CSV + '"a" b,good\n', ["line 4", "malformed", "quotation mark"]),
        ("a.csv", CSV + '"never closed,good\n', ["line 4", "malformed"]),
        ("a.csv", CSV + "no label,\n", ["line 4", "has no label", "--label-separator"]),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": "x", \n', ["line 2", "not JSON"]),
        ("a.jsonl", "[1, 2]\n", ["line 1", "[1, 2]", "object"]),
        ("a.jsonl", '{"text": 7, "label": "y"}', ["line 1", "'text' is 7"]),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}', ["line 1", "'label' is", "not a label"]),
        ("a.jsonl", '{"text": "x", "label": [true]}', ["line 1", "'label' is [true]"]),
        ("a.jsonl", '{"text": "x", "label": null}', ["line 1", "no 'label'"]),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"label": "y"}\n', ["line 2", "no 'text'"]),
        ("a.jsonl", '{"text": "\\ud800", "label": "y"}\n', ["line 1", "surrogates"]),
        ("a.jsonl", "[" * 100_000 + "\n", ["line 1"]),
    ],
)
def test_faults(tmp_path: Path, name: str, content: str, said: list[str]) -> None:
    message = read_error(write(tmp_path, name, content))
    assert all(part in message for part in said), message


def test_column_that_is_not_there(tmp_path: Path) -> None:
    message = read_error(write(tmp_path, "a.csv", CSV), Columns(text="review"))
    assert "no column 'review'" in message
    assert "text, label" in message


def test_empty_separator(tmp_path: Path) -> None:
    assert "empty" in read_error(write(tmp_path, "a.csv", CSV), Columns(separator=""))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_undecodable_byte(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, CSV.encode() * 2000 + b"caf\xe9,good\n")
    message = read_error(path)
    assert "line 6001" in message
    assert "byte 0xe9 at position 4" in message


def test_missing_file(tmp_path: Path) -> None:
    assert "There is no file" in read_error(tmp_path / "a.csv")


@pytest.mark.parametrize("cut", [slice(None, -12), slice(5, None)])
def test_damaged_gzip(tmp_path: Path, cut: slice) -> None:
    path = write(tmp_path, "a.csv.gz", CSV * 100)
    path.write_bytes(path.read_bytes()[cut])
    assert "not a whole gzip file" in read_error(path)


def test_find_split(tmp_path: Path) -> None:
    for name in ("train.csv.gz", "train.txt", "training.csv", "test.tab"):
        write(tmp_path, name, "")
    train = find_split(tmp_path, "train")
    assert train is not None
    assert train.name == "train.csv.gz"
    assert find_split(tmp_path, "dev") is None
    write(tmp_path, "train.tab", "")
    with pytest.raises(UserError, match="more than one file"):
        find_split(tmp_path, "train")


def test_file_ending() -> None:
    endings = [file_ending(Path(name)) for name in ("a.CSV", "a.b.jsonl.gz", "a.gz", "csv")]
    assert endings == [".csv", ".jsonl", None, None]


def test_file_without_a_header(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('3,Title,"a text, with a comma"\n1,Other,more\n', encoding="utf8")
    columns = Columns(header=("label", "title", "text"))
    rows = list(read_rows(path, columns))
    assert [(row.line, row.text, row.labels) for row in rows] == [
        (1, "a text, with a comma", ("3",)),
        (2, "more", ("1",)),
    ]
