"""The packed corpus: nothing is lost, and what does not fit is refused."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import spacy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from spacy.tokens import Doc, DocBin

from conftest import LABELS, random_docs, save_docs
from zero_copy import store
from zero_copy.errors import UserError

PACK = Path(__file__).parent.parent / "scripts" / "pack.py"


@pytest.fixture
def packed(nlp, tmp_path) -> Path:
    source = save_docs(tmp_path / "train.spacy", random_docs(nlp, (5, 1, 40, 12)))
    store.pack(source, tmp_path / "train.safetensors")
    return tmp_path / "train.safetensors"


def run_pack(*arguments, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PACK), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **settings)


def rewrite(path: Path, **changes) -> None:
    """Change the header of a packed corpus."""
    with safe_open(path, framework="pt") as opened:
        info = json.loads(opened.metadata()["info"]) | changes
        columns = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    save_file(columns, path, metadata={"info": json.dumps(info)})


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=6))
def test_texts_tokens_spaces_and_categories_come_back(tmp_path, texts):
    nlp = spacy.blank("en")
    docs = [nlp.make_doc(text) for text in texts]
    for number, doc in enumerate(docs):
        doc.cats = {label: float(number % 3 == place) for place, label in enumerate(LABELS)}
    store.pack(save_docs(tmp_path / "a.spacy", docs), tmp_path / "a.safetensors")
    packed = store.read(tmp_path / "a.safetensors")
    restored = list(packed.docs(spacy.blank("en").vocab, range(len(docs))))
    assert [doc.text for doc in restored] == texts
    assert [doc.cats for doc in restored] == [doc.cats for doc in docs]
    for ours, original in zip(restored, docs, strict=True):
        assert [(t.text, t.whitespace_) for t in ours] == [
            (t.text, t.whitespace_) for t in original
        ]


WORDS = st.tuples(st.text(st.characters(codec="utf8"), min_size=1, max_size=12), st.booleans())
CATS = st.dictionaries(st.sampled_from(LABELS), st.sampled_from([0.0, 1.0]))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=8), CATS), min_size=1, max_size=5))
def test_whatever_the_tokens_are_they_come_back(tmp_path, documents):
    vocab = spacy.blank("xx").vocab
    docs = []
    for words, cats in documents:
        docs.append(Doc(vocab, words=[w for w, _ in words], spaces=[space for _, space in words]))
        docs[-1].cats = cats
    store.pack(save_docs(tmp_path / "a.spacy", docs), tmp_path / "a.safetensors", lang="xx")
    packed = store.read(tmp_path / "a.safetensors")
    restored = list(packed.docs(spacy.blank("xx").vocab, range(len(docs))))
    assert [doc.text for doc in restored] == [doc.text for doc in docs]
    assert [doc.cats for doc in restored] == [cats for _, cats in documents]
    for ours, (words, _) in zip(restored, documents, strict=True):
        assert [(token.text, bool(token.whitespace_)) for token in ours] == words


def test_rows_that_are_mixed_into_the_same_number_are_told_apart():
    first, second = store.MIXERS.tolist()
    orth = numpy.array([5, 5 + second, 5, 5], "uint64")
    norm = numpy.array([2**63, (2**63 - first) % 2**64, 2**63, 1], "uint64")
    rows, types = store.find_types(orth, norm, numpy.array([0, 0, 1, 0], "uint64"))
    found = [column[types].tolist() for column in rows]
    assert found == [orth.tolist(), norm.tolist(), [0, 0, 1, 0]]
    assert len(rows[0]) == 4


def test_attributes_are_those_of_the_docs(nlp, tmp_path):
    docs = random_docs(nlp, (50, 3, 20))
    attrs = ["ORTH", "NORM", "LOWER", "PREFIX", "SUFFIX", "SHAPE", "SPACY", "IS_ALPHA", "LENGTH"]
    source = save_docs(tmp_path / "a.spacy", docs)
    store.pack(source, tmp_path / "a.safetensors", attrs=tuple(attrs))
    packed = store.read(tmp_path / "a.safetensors")
    expected = numpy.concatenate([doc.to_array(attrs) for doc in docs])
    types = packed.columns["token_types"].numpy()
    for column, name in enumerate(attrs):
        numpy.testing.assert_array_equal(packed.attribute(name)[types], expected[:, column], name)


def test_norm_of_tokenizer_exceptions_is_kept(nlp, tmp_path):
    doc = nlp("I can't. Can not.")
    doc.cats = {"a": 1.0, "b": 0.0}
    store.pack(save_docs(tmp_path / "a.spacy", [doc]), tmp_path / "a.safetensors")
    packed = store.read(tmp_path / "a.safetensors")
    norms = packed.attribute("NORM")[packed.columns["token_types"].numpy()]
    assert norms.tolist() == [token.norm for token in doc]
    assert nlp.vocab.strings["not"] in norms


def test_folder_of_shards_equals_one_file(nlp, tmp_path):
    docs = random_docs(nlp, range(1, 30))
    (tmp_path / "shards.spacy").mkdir()
    for number in range(3):
        part = docs[number * 10 : number * 10 + 10]
        save_docs(tmp_path / "shards.spacy" / f"{number:05}.spacy", part)
    store.pack(save_docs(tmp_path / "one.spacy", docs), tmp_path / "one.safetensors")
    store.pack(tmp_path / "shards.spacy", tmp_path / "shards.safetensors")
    one, shards = (store.read(tmp_path / f"{name}.safetensors") for name in ("one", "shards"))
    for vocab in [spacy.blank("en").vocab]:
        texts = [[doc.text for doc in corpus.docs(vocab, range(29))] for corpus in (one, shards)]
        assert texts[0] == texts[1] == [doc.text for doc in docs]


def test_labels_keep_their_order_and_missing_ones_are_marked(nlp, tmp_path):
    docs = [nlp.make_doc("a b"), nlp.make_doc("c")]
    docs[0].cats = {"z": 1.0, "a": 0.0}
    docs[1].cats = {"m": 1.0, "z": 0.0}
    store.pack(save_docs(tmp_path / "a.spacy", docs), tmp_path / "a.safetensors")
    packed = store.read(tmp_path / "a.safetensors")
    assert packed.info.labels == ["z", "a", "m"]
    assert packed.columns["cats"].tolist() == [[1, 0, 255], [0, 255, 1]]


def test_documents_without_tokens_are_left_out(nlp, tmp_path):
    docs = [nlp.make_doc(text) for text in ("one", "", "two words")]
    for doc in docs:
        doc.cats = {"a": 1.0}
    store.pack(save_docs(tmp_path / "a.spacy", docs), tmp_path / "a.safetensors")
    assert store.read(tmp_path / "a.safetensors").lengths.tolist() == [1, 2]


def test_reading_maps_the_file(packed):
    """The columns are views of the file: no memory is taken for them before they are used."""
    columns = store.read(packed).columns
    assert columns["token_types"].untyped_storage().nbytes() >= columns["token_types"].nbytes
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert str(packed) in mapped.read_text()


def test_verify_accepts_what_was_packed(packed):
    assert store.verify(packed).labels == list(LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacy_version": "3.7.4"}, "spaCy 3.7.4"),
        ({"version": 99}, "version 99"),
        ({"format": "other"}, "no packed corpus"),
    ],
)
def test_other_versions_are_refused(packed, changes, message):
    rewrite(packed, **changes)
    with pytest.raises(UserError, match=message):
        store.read(packed)


def test_truncated_file_is_refused(packed):
    content = packed.read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        packed.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut off"):
            store.read(packed)


def test_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no packed corpus"):
        store.read(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no packed corpus at"):
        store.read(tmp_path / "missing.safetensors")


def test_other_source_beside_it_is_refused(nlp, packed):
    save_docs(packed.with_suffix(".spacy"), random_docs(nlp, (5, 5)))
    with pytest.raises(UserError, match=r"another train\.spacy"):
        store.read(packed)


def test_verify_sees_a_source_of_the_same_size(packed):
    source = packed.with_suffix(".spacy")
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    source.write_bytes(content)
    store.read(packed)
    with pytest.raises(UserError, match=r"another train\.spacy"):
        store.verify(packed)


def test_verify_sees_numbers_that_do_not_fit(packed):
    corpus = store.read(packed)
    columns = {name: column.clone() for name, column in corpus.columns.items()}
    columns["token_types"][3] = 10**6
    store.write(packed, corpus.info, columns)
    with pytest.raises(UserError, match="don't fit"):
        store.verify(packed)


def test_missing_attribute_is_named(packed):
    with pytest.raises(UserError, match="no attribute IS_ALPHA") as error:
        store.read(packed).attribute("IS_ALPHA")
    assert "--attr IS_ALPHA" in error.value.desc


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        (lambda nlp: [], "no document with a token"),
        (lambda nlp: [nlp.make_doc("")], "no document with a token"),
        (lambda nlp: [Doc(nlp.vocab, ["a"], [False])], "cats"),
    ],
)
def test_what_can_not_be_packed(nlp, tmp_path, docs, message):
    made = docs(nlp)
    for doc in made:
        doc.cats = {"cats": 0.5}
    with pytest.raises(UserError, match=message):
        store.pack(save_docs(tmp_path / "a.spacy", made), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_docbin_without_norm_is_refused(nlp, tmp_path):
    DocBin(attrs=["ORTH"], docs=[nlp("hello")]).to_disk(tmp_path / "a.spacy")
    with pytest.raises(UserError, match="without the attribute NORM"):
        store.pack(tmp_path / "a.spacy", tmp_path / "a.safetensors")


def test_attribute_of_a_tagger_is_refused(packed):
    with pytest.raises(UserError, match="TAG can't be packed"):
        store.check_attrs(("ORTH", "TAG"))


def test_command_packs_and_says_what(packed):
    packed.unlink()
    done = run_pack(packed.with_suffix(".spacy"))
    assert done.returncode == 0
    assert "4 documents, 58 words" in " ".join(done.stdout.split())
    assert store.verify(packed)


@pytest.mark.parametrize("content", [b"", b"not a docbin", None])
def test_command_refuses_a_broken_source(packed, content):
    source = packed.with_suffix(".spacy")
    before = packed.read_bytes()
    source.write_bytes(source.read_bytes()[:-20] if content is None else content)
    done = run_pack(source)
    assert done.returncode == 1
    assert "is not a .spacy file, or is cut off" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert packed.read_bytes() == before


def test_command_on_a_full_disk_leaves_the_earlier_file(packed):
    before = packed.read_bytes()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = run_pack(packed.with_suffix(".spacy"), preexec_fn=limit)
    assert done.returncode == 1
    assert "can't be written" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr
    assert packed.read_bytes() == before
    assert sorted(path.name for path in packed.parent.iterdir()) == [packed.name, "train.spacy"]
