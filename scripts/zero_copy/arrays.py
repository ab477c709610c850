"""The attributes of a whole corpus as arrays: what `doc.to_array` is for one document.

    column          dtype    shape                meaning
    <attribute>     uint64   (tokens,)            as `doc.to_array` has it, document after document
    doc_offsets     int64    (documents + 1,)     where each document starts among the tokens
    cats            float32  (documents, labels)  `doc.cats`; NaN where a label is not annotated
    string_keys     uint64   (strings,)           the values that stand for strings, ascending
    string_texts    uint8    (bytes,)             these strings, one after another, UTF-8
    string_offsets  int64    (strings + 1,)       where each starts in `string_texts`

These are the columns of a .npz and of a .safetensors file. An Arrow or Parquet file has a row a
document instead, with lists of values, strings as strings, and the categories as a struct.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import spacy
from safetensors import SafetensorError
from safetensors.numpy import save_file
from spacy.attrs import IDS
from spacy.strings import StringStore
from spacy.tokens import Doc
from spacy.training.corpus import FILE_TYPE, walk_corpus

from zero_copy.errors import UserError
from zero_copy.files import replacing
from zero_copy.store import (
    LEXICAL_ATTRS,
    MISSING,
    TOKEN_ATTRS,
    PackedCorpus,
    describe_types,
    offsets_of,
    read,
    read_docbin,
)

PACKED = ".safetensors"
# Attributes whose values stand for strings; the others are numbers or yes and no.
STRING_ATTRS = (
    *("ORTH", "LOWER", "NORM", "SHAPE", "PREFIX", "SUFFIX", "LANG", "LEMMA", "TAG", "POS", "DEP"),
    *("MORPH", "ENT_TYPE", "ENT_KB_ID", "ENT_ID"),
)
SIGNED_ATTRS = ("HEAD", "SENT_START")


class CorpusArrays(NamedTuple):
    """The attributes of a corpus.

    tokens (Dict[str, numpy.ndarray]): By attribute its values, uint64, `(tokens,)`.
    doc_offsets (numpy.ndarray): Where each document starts, int64, `(documents + 1,)`.
    labels (List[str]): Names of the categories.
    cats (numpy.ndarray): float32, `(documents, labels)`; NaN where a label is not annotated.
    strings (StringStore): What the values stand for.
    text_bytes (int): Bytes of all texts, in UTF-8.
    """

    tokens: dict[str, numpy.ndarray]
    doc_offsets: numpy.ndarray
    labels: list[str]
    cats: numpy.ndarray
    strings: StringStore
    text_bytes: int


def read_arrays(source: Path, attrs: Sequence[str], lang: str = "en") -> CorpusArrays:
    """Read attributes of all tokens of a corpus.

    source (Path): A packed corpus, a `.spacy` file or a folder of them.
    attrs (Sequence[str]): Names of the attributes.
    lang (str): Language of a `.spacy` file, for the attributes that follow from a token's text.
    RETURNS (CorpusArrays): The attributes.
    RAISES (UserError): If the corpus can't be read, or lacks an attribute.
    """
    names = list(dict.fromkeys(name.upper() for name in attrs))
    for name in names:
        if name not in IDS:
            raise UserError(
                f"There is no attribute {name}",
                f"Those of every corpus are {', '.join(LEXICAL_ATTRS)}; a .spacy file may have "
                "others, LEMMA, POS or ENT_TYPE say.",
            )
    if not source.exists():
        raise UserError(f"There is no corpus {source}", "Run `convert` or `pack` first.")
    if source.suffix == PACKED:
        return _read_packed(read(source), names)
    return _read_docs(source, names, lang)


def _read_packed(packed: PackedCorpus, attrs: list[str]) -> CorpusArrays:
    for name in attrs:
        if name not in LEXICAL_ATTRS:
            raise UserError(
                f"{packed.path} holds no attribute {name}",
                "A packed corpus has what the tokenizer knows of a token. Export it from the "
                ".spacy file.",
            )
    columns = {name: column.numpy() for name, column in packed.columns.items()}
    types, vocab = columns["token_types"], spacy.blank(packed.info.lang).vocab
    for text in packed.texts(range(len(columns["type_attrs"]))):
        vocab.strings.add(text)
    if not set(attrs) <= set(packed.info.attrs):
        rows = numpy.stack([packed.attribute(name) for name in TOKEN_ATTRS], axis=1)
        wanted = (*TOKEN_ATTRS, *(name for name in attrs if name not in TOKEN_ATTRS))
        values = describe_types(vocab, wanted, rows)["type_attrs"]
        of_types = {name: values[:, wanted.index(name)] for name in attrs}
    else:
        of_types = {name: packed.attribute(name) for name in attrs}
    sizes = numpy.diff(columns["text_offsets"]) + packed.attribute("SPACY").astype("int64")
    cats = columns["cats"].astype("float32")
    cats[columns["cats"] == MISSING] = numpy.nan
    return CorpusArrays(
        tokens={name: values[types] for name, values in of_types.items()},
        doc_offsets=columns["doc_offsets"],
        labels=packed.info.labels,
        cats=cats,
        strings=vocab.strings,
        text_bytes=int(sizes[types].sum()),
    )


def _read_docs(source: Path, attrs: list[str], lang: str) -> CorpusArrays:
    vocab = spacy.blank(lang).vocab
    values, lengths, all_cats = [], [], []
    text_bytes = 0
    for doc in _iterate_docs(source, attrs, vocab):
        values.append(doc.to_array([*attrs]).reshape(len(doc), len(attrs)).astype("uint64"))
        lengths.append(len(doc))
        all_cats.append(doc.cats)
        text_bytes += len(doc.text.encode())
    if not lengths:
        raise UserError(f"{source} holds no document", "Check what was converted.")
    labels = list(dict.fromkeys(label for cats in all_cats for label in cats))
    cats = [[cats.get(label, numpy.nan) for label in labels] for cats in all_cats]
    matrix = numpy.concatenate(values)
    return CorpusArrays(
        tokens={name: matrix[:, number].copy() for number, name in enumerate(attrs)},
        doc_offsets=offsets_of(numpy.array(lengths)),
        labels=labels,
        cats=numpy.array(cats, "float32").reshape(len(lengths), len(labels)),
        strings=vocab.strings,
        text_bytes=text_bytes,
    )


def _iterate_docs(source: Path, attrs: list[str], vocab: Any) -> Iterator[Doc]:
    for path in walk_corpus(source, FILE_TYPE):
        docs = read_docbin(Path(path))
        for name in attrs:
            if name not in LEXICAL_ATTRS and IDS[name] not in docs.attrs:
                raise UserError(
                    f"{path} holds no attribute {name}",
                    f'Write it with DocBin(attrs=["ORTH", "NORM", "{name}"]).',
                )
        yield from docs.get_docs(vocab)


def as_columns(arrays: CorpusArrays) -> dict[str, numpy.ndarray]:
    """The columns of a .npz or .safetensors file.

    arrays (CorpusArrays): The attributes.
    RETURNS (Dict[str, numpy.ndarray]): As in the table at the top of this module.
    """
    used = [values for name, values in arrays.tokens.items() if name in STRING_ATTRS]
    keys = numpy.unique(numpy.concatenate([*map(numpy.unique, used), numpy.zeros(0, "uint64")]))
    texts = [_text(arrays.strings, key).encode() for key in keys.tolist()]
    return {
        **arrays.tokens,
        "doc_offsets": arrays.doc_offsets,
        "cats": arrays.cats,
        "string_keys": keys,
        "string_texts": numpy.frombuffer(b"".join(texts), "uint8").copy(),
        "string_offsets": offsets_of(numpy.array([*map(len, texts)], "int64")),
    }


def _text(strings: StringStore, key: int) -> str:
    # A packed corpus lacks the strings of norms that neither it nor its language has as a token.
    known = key in strings  # type: ignore[operator]
    return strings[key] if known else ""


def save_arrays(arrays: CorpusArrays, target: Path) -> None:
    """Write the attributes in the format that the name of the file says.

    arrays (CorpusArrays): The attributes.
    target (Path): A .npz, .safetensors, .arrow or .parquet file; it is replaced once all is well.
    RAISES (UserError): If it has another ending, or pyarrow is needed and not there.
    RAISES (OSError): If it can't be written.
    """
    if target.suffix not in _SAVERS:
        raise UserError(
            f"Cannot tell the format to write from the name {target}",
            f"Let it end in one of {', '.join(_SAVERS)}.",
        )
    save = _SAVERS[target.suffix]
    with replacing(target) as unfinished:
        save(arrays, unfinished)
        unfinished.chmod(0o644)


def _save_npz(arrays: CorpusArrays, path: Path) -> None:
    with path.open("wb") as file:
        numpy.savez(file, **as_columns(arrays), labels=numpy.array(arrays.labels, "U"))  # type: ignore[arg-type]


def _save_safetensors(arrays: CorpusArrays, path: Path) -> None:
    columns = {name: numpy.ascontiguousarray(it) for name, it in as_columns(arrays).items()}
    try:
        save_file(columns, path, {"labels": json.dumps(arrays.labels)})
    except SafetensorError as error:  # how the library reports an I/O error
        raise OSError(None, f"{path} can't be written: {error}") from error


def _save_arrow(arrays: CorpusArrays, path: Path) -> None:
    from pyarrow import OSFile, ipc

    table = to_arrow(arrays)
    with OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _save_parquet(arrays: CorpusArrays, path: Path) -> None:
    table = to_arrow(arrays)
    from pyarrow import parquet

    parquet.write_table(table, path)


_SAVERS: dict[str, Callable[[CorpusArrays, Path], None]] = {
    ".npz": _save_npz,
    ".safetensors": _save_safetensors,
    ".arrow": _save_arrow,
    ".parquet": _save_parquet,
}


def to_arrow(arrays: CorpusArrays) -> Any:
    """An Arrow table of a corpus, a row a document.

    arrays (CorpusArrays): The attributes.
    RETURNS (pyarrow.Table): A column of lists for each attribute: strings as dictionaries, yes and
        no as booleans, others as integers; and `cats`, a struct of float32.
    RAISES (UserError): If pyarrow is not there.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            "Arrow and Parquet files need pyarrow, which is not installed", "pip install pyarrow"
        ) from error
    columns = {}
    for name, values in arrays.tokens.items():
        if name in STRING_ATTRS:
            keys, codes = numpy.unique(values, return_inverse=True)
            texts = pyarrow.array([_text(arrays.strings, key) for key in keys.tolist()], "string")
            tokens = pyarrow.DictionaryArray.from_arrays(codes.astype("int32"), texts)
        elif name.startswith(("IS_", "LIKE_")) or name == "SPACY":
            tokens = pyarrow.array(values.astype(bool))
        else:
            tokens = pyarrow.array(values.view("int64") if name in SIGNED_ATTRS else values)
        columns[name] = pyarrow.LargeListArray.from_arrays(arrays.doc_offsets, tokens)
    if arrays.labels:
        cats = [pyarrow.array(column, from_pandas=True) for column in arrays.cats.T]  # NaN is null
        columns["cats"] = pyarrow.StructArray.from_arrays(cats, arrays.labels)
    return pyarrow.table(columns)


def sizes(source: Path, arrays: CorpusArrays, *others: Path) -> dict[str, int]:
    """What a corpus takes in each form that is there.

    source (Path): The corpus, packed or .spacy.
    arrays (CorpusArrays): What was read of it.
    others (Path): More files to list.
    RETURNS (Dict[str, int]): Bytes, by what they are of.
    """
    found = {"text": arrays.text_bytes}
    for path in (source.with_suffix(FILE_TYPE), source.with_suffix(PACKED), *others):
        if path.exists():
            files = path.rglob("*") if path.is_dir() else [path]
            found[str(path)] = sum(file.stat().st_size for file in files if file.is_file())
    return found
