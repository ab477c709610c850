"""Reading documents to annotate: a text a row, whatever else stands beside it, and no label."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from zero_copy.errors import UserError
from zero_copy.readers import (
    ENDINGS,
    LINES,
    Columns,
    check_fields,
    check_file,
    find_text_key,
    json_text,
    open_table,
    open_text,
    parse_record,
)


class Document(NamedTuple):
    """A document on its way to be annotated.

    line (int): Where it begins in its file; the first line is 1.
    text (str): Its text; empty if it can't be read.
    fields (Dict[str, Any]): All that stands in its row, the text as well, by the column's name.
    fault (str): Why it can't be read; empty if it can.
    """

    line: int
    text: str
    fields: dict[str, Any]
    fault: str = ""


def read_documents(path: Path, columns: Columns) -> Generator[Document, None, None]:
    """Read the documents of a file in their order, without holding more than one.

    A row that is malformed is a document with a fault, so that one of a million does not stop the
    others. What is wrong with the file as a whole is raised.

    path (Path): A .tab, .csv, .tsv, .jsonl or .txt file, optionally followed by .gz. Each line of a
        .txt file is a text, also an empty one.
    columns (Columns): Where the texts stand.
    YIELDS (Document): The documents.
    RAISES (UserError): Where the file is missing, has another ending, is cut off or empty, has a
        quotation mark that is never closed, or has no column of texts.
    """
    ending = check_file(path, (*ENDINGS, LINES))
    # Bytes that are not UTF-8 become what can't be encoded again: the document is found by that.
    with open_text(path, errors="surrogateescape") as file:
        if ending == ".jsonl":
            found = _read_json_lines(path, file, columns)
        elif ending == LINES:
            texts = (line.rstrip("\r\n") for line in file)
            found = (Document(n, text, {"text": text}) for n, text in enumerate(texts, 1))
        else:
            found = _read_table(path, file, columns, ending)
        for document in found:
            fault = document.fault or _encoding_fault(document)
            yield document._replace(text="", fault=fault) if fault else document


def _encoding_fault(document: Document) -> str:
    if not document.text.isascii():
        try:
            document.text.encode()
        except UnicodeEncodeError:
            return "The text is not UTF-8"
    return ""


def _read_table(path: Path, file: TextIO, columns: Columns, ending: str) -> Iterator[Document]:
    table = open_table(path, file, columns, ending)
    for line, row in table.rows:
        fields = dict(zip(table.header, row, strict=False))
        try:
            check_fields(path, line, row, table, ending)
        except UserError as error:
            yield Document(line, "", fields, str(error.title))
        else:
            yield Document(line, row[table.text_at], fields)


def _read_json_lines(path: Path, file: TextIO, columns: Columns) -> Iterator[Document]:
    key = None
    number = 0
    for number, line in enumerate(file, 1):
        if line.isspace():
            continue
        try:
            fields = parse_record(path, number, line)
        except UserError as error:
            yield Document(number, "", {}, str(error.title))
            continue
        key = key or find_text_key(path, fields, columns)
        try:
            yield Document(number, json_text(path, number, fields, key), fields)
        except UserError as error:
            yield Document(number, "", fields, str(error.title))
    if not number:
        raise UserError(f"{path} is empty", "It must hold at least one text.")
