"""The arrays of a corpus are what `doc.to_array` says of each of its documents."""

import json
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import spacy
from safetensors import safe_open
from spacy.tokens import Doc, DocBin

from conftest import LABELS, random_docs, save_docs
from forking import run_script
from zero_copy import store
from zero_copy.arrays import CorpusArrays, as_columns, read_arrays, save_arrays, sizes
from zero_copy.errors import UserError

SCRIPT = Path(__file__).parent.parent / "scripts" / "export_arrays.py"
ATTRS = ["ORTH", "lower", "NORM", "SHAPE", "SPACY", "LENGTH", "IS_ALPHA", "LIKE_NUM"]


@pytest.fixture
def docs(nlp) -> list[Doc]:
    docs = [*random_docs(nlp, (9, 1, 30)), nlp.make_doc("Unseen words: it's 3,000  tonnes é")]
    docs[-1].cats = {"grain": 1.0}
    return docs


@pytest.fixture
def corpus(docs, tmp_path) -> Path:
    source = save_docs(tmp_path / "train.spacy", docs)
    store.pack(source, tmp_path / "train.safetensors")
    return source


def of_documents(arrays: CorpusArrays, values: numpy.ndarray) -> list[list]:
    return [part.tolist() for part in numpy.split(values, arrays.doc_offsets[1:-1])]


@pytest.mark.parametrize("suffix", [".spacy", ".safetensors"])
def test_values_are_those_of_to_array(corpus, docs, suffix):
    arrays = read_arrays(corpus.with_suffix(suffix), ATTRS)
    assert list(arrays.tokens) == [name.upper() for name in ATTRS]
    for name, values in arrays.tokens.items():
        assert of_documents(arrays, values) == [doc.to_array([name]).tolist() for doc in docs]
    assert arrays.labels == list(LABELS)
    expected = [[doc.cats.get(label, numpy.nan) for label in LABELS] for doc in docs]
    numpy.testing.assert_array_equal(arrays.cats, expected)
    assert arrays.text_bytes == sum(len(doc.text.encode()) for doc in docs)


def test_annotations_of_a_docbin(nlp, tmp_path):
    words, pos = ["a", "b", "c"], ["NOUN", "VERB", "X"]
    doc = Doc(nlp.vocab, words=words, pos=pos, heads=[1, 1, 1], deps=["dep"] * 3)
    DocBin(attrs=["ORTH", "NORM", "POS", "HEAD", "DEP"], docs=[doc]).to_disk(tmp_path / "a.spacy")
    arrays = read_arrays(tmp_path / "a.spacy", ["POS", "HEAD"])
    assert arrays.tokens["POS"].tolist() == doc.to_array(["POS"]).tolist()
    assert arrays.tokens["HEAD"].view("int64").tolist() == [1, 0, -1]
    assert strings_of(as_columns(arrays)) == {
        nlp.vocab.strings[name]: name for name in ("NOUN", "VERB", "X")
    }


def strings_of(columns: dict[str, numpy.ndarray]) -> dict[int, str]:
    offsets, texts = columns["string_offsets"], columns["string_texts"].tobytes()
    strings = [texts[start:end].decode() for start, end in pairwise(offsets)]
    return dict(zip(columns["string_keys"].tolist(), strings, strict=True))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
@pytest.mark.parametrize("suffix", [".spacy", ".safetensors"])
def test_columns_come_back_with_their_strings(corpus, docs, tmp_path, ending, suffix):
    save_arrays(read_arrays(corpus.with_suffix(suffix), ATTRS), tmp_path / f"out{ending}")
    if ending == ".npz":
        with numpy.load(tmp_path / "out.npz") as opened:
            columns = dict(opened)
        labels = columns["labels"].tolist()
    else:
        with safe_open(tmp_path / "out.safetensors", framework="numpy") as opened:
            columns = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            labels = json.loads(opened.metadata()["labels"])
    assert labels == list(LABELS)
    strings = strings_of(columns)
    expected = [[token.lower_, token.norm_, token.shape_] for doc in docs for token in doc]
    found = zip(*(columns[name].tolist() for name in ("LOWER", "NORM", "SHAPE")), strict=True)
    assert [[strings[value] for value in row] for row in found] == expected
    assert columns["doc_offsets"].tolist() == [0, *numpy.cumsum([len(doc) for doc in docs])]


@pytest.mark.extra
@pytest.mark.parametrize("ending", [".arrow", ".parquet"])
def test_arrow_has_a_row_a_document(corpus, docs, tmp_path, ending):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    save_arrays(read_arrays(corpus, ATTRS), tmp_path / f"out{ending}")
    if ending == ".parquet":
        table = parquet.read_table(tmp_path / "out.parquet")
    else:
        with pyarrow.memory_map(str(tmp_path / "out.arrow")) as opened:
            table = ipc.open_file(opened).read_all()
    for row, doc in zip(table.to_pylist(), docs, strict=True):
        assert row["ORTH"] == [token.text for token in doc]
        assert row["NORM"] == [token.norm_ for token in doc]
        assert row["IS_ALPHA"] == [token.is_alpha for token in doc]
        assert row["LENGTH"] == [len(token) for token in doc]
        assert row["cats"] == {label: doc.cats.get(label) for label in LABELS}


def test_sizes(corpus, tmp_path):
    arrays = read_arrays(corpus, ["ORTH"])
    save_arrays(arrays, tmp_path / "out.npz")
    packed = corpus.with_suffix(".safetensors")
    assert sizes(packed, arrays, tmp_path / "out.npz") == {
        "text": arrays.text_bytes,
        **{str(path): path.stat().st_size for path in (corpus, packed, tmp_path / "out.npz")},
    }


@pytest.mark.parametrize(
    ("name", "attr", "output", "message"),
    [
        ("train.spacy", "COLOUR", "out.npz", "no attribute COLOUR"),
        ("train.spacy", "POS", "out.npz", "holds no attribute POS"),
        ("train.safetensors", "POS", "out.npz", "holds no attribute POS"),
        ("train.spacy", "ORTH", "out.xls", "Cannot tell the format"),
        ("other.spacy", "ORTH", "out.npz", "There is no corpus"),
    ],
)
def test_what_cannot_be_exported_is_told(corpus, tmp_path, name, attr, output, message):
    with pytest.raises(UserError, match=message):
        save_arrays(read_arrays(tmp_path / name, [attr]), tmp_path / output)
    assert not (tmp_path / output).exists()


def test_command(corpus, tmp_path):
    output = tmp_path / "out.npz"
    done = run_script(SCRIPT, corpus, output, "--attr", "LOWER", "--attr", "LENGTH")
    assert done.returncode == 0, done.stderr
    assert "Bytes a token" in done.stdout
    assert str(corpus.with_suffix(".safetensors")) in done.stdout
    tokens = spacy.blank("en").vocab.strings
    with numpy.load(output) as columns:
        assert tokens.add("wheat") in columns["LOWER"]
