"""Packed wordpieces are those that spacy-transformers computes at every step."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import spacy
import srsly
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from spacy.language import Language
from spacy.tokens import Doc

from conftest import WORDS, random_docs, save_docs, write_transformer
from zero_copy import store
from zero_copy.configs import transformer_pipeline
from zero_copy.corpus import PackedBatch, ResidentCorpus
from zero_copy.errors import UserError
from zero_copy.wordpieces import (
    DOC_SPANS,
    SENT_SPANS,
    PaddedSpans,
    add_wordpieces,
    cut_groups,
    layout_of,
)

GETTERS: dict[str, dict] = {
    "doc": {"@span_getters": DOC_SPANS},
    "sent": {"@span_getters": SENT_SPANS},
    "strided": {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 8, "stride": 8},
    "overlapping": {
        "@span_getters": "spacy-transformers.strided_spans.v1",
        "window": 9,
        "stride": 4,
    },
    "too long": {"@span_getters": "spacy-transformers.strided_spans.v1", "window": 40, "stride": 7},
    "own": {"@span_getters": "zero_copy.head_and_tail.v1", "head": 5, "tail": 3},
}
# Tokens as people make them: of spaces, special to the tokenizer, unknown to it.
TEXTS = [*WORDS, " ", "\n\n", "[CLS]", "[PAD]", "日本", "wheats", "ships-wheat", "."]
documents = st.lists(
    st.lists(st.tuples(st.sampled_from(TEXTS), st.booleans()), max_size=25), min_size=1, max_size=6
)


def transformer_nlp(folder: Path, getter: dict, **model) -> Language:
    """A pipeline with a transformer, and a sentencizer before it."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer", config={"punct_chars": [".", "of"]})
    nlp.config["training"]["annotating_components"] = ["sentencizer"]
    model = {"name": str(folder), "get_spans": getter, **model}
    nlp.add_pipe("zero_copy_transformer", name="transformer", config={"model": model})
    return nlp


def make_docs(vocab, rows) -> list[Doc]:
    return [Doc(vocab, words=[w for w, _ in row], spaces=[s for _, s in row]) for row in rows]


def packed_of(nlp: Language, docs: list[Doc], folder: Path) -> store.PackedCorpus:
    """Docs, packed with the wordpieces of the pipeline's transformer."""
    for doc in docs:
        doc.cats = {"a": 1.0, "b": 0.0}
    layout = layout_of(nlp)
    assert layout is not None
    target = folder / "docs.safetensors"
    store.pack(
        save_docs(folder / "docs.spacy", docs), target, wordpieces=add_wordpieces(nlp, layout)
    )
    store.verify(target)
    return store.read(target)


def stock_batch(nlp: Language, docs: list[Doc]):
    """What spacy-transformers passes to its model: wordpieces, padded, and their alignment."""
    from spacy_transformers.align import get_alignment, get_alignment_via_offset_mapping
    from spacy_transformers.data_classes import WordpieceBatch
    from spacy_transformers.layers.transformer_model import huggingface_tokenize
    from spacy_transformers.truncate import truncate_oversize_splits

    transformer = nlp.get_pipe("transformer")
    if not transformer.model.attrs["has_transformer"]:
        transformer.initialize(lambda: [], nlp=nlp)
    docs = [nlp.get_pipe("sentencizer")(doc) for doc in docs]
    spans = [span for each in transformer.model.attrs["get_spans"](docs) for span in each]
    encoding = huggingface_tokenize(transformer.tokenizer, [span.text for span in spans])
    wordpieces = WordpieceBatch.from_batch_encoding(encoding)
    if "offset_mapping" in encoding:
        align = get_alignment_via_offset_mapping(spans, encoding["offset_mapping"])
    else:
        special = transformer.tokenizer.all_special_tokens
        align = get_alignment(spans, wordpieces.strings, special)
    longest = transformer.tokenizer.model_max_length
    return truncate_oversize_splits(wordpieces, align, longest)


def check_against_stock(nlp: Language, docs: list[Doc], folder: Path) -> None:
    packed = packed_of(nlp, docs, folder)
    docs = [doc for doc in docs if len(doc)]  # those that are packed
    wordpieces, align = stock_batch(nlp, docs)
    columns = {name: column.numpy() for name, column in packed.columns.items()}
    is_there = wordpieces.attention_mask.astype(bool)
    numpy.testing.assert_array_equal(columns["wordpieces"], wordpieces.input_ids[is_there])
    numpy.testing.assert_array_equal(numpy.diff(columns["span_offsets"]), is_there.sum(1))
    numpy.testing.assert_array_equal(columns["aligned_lengths"], align.lengths)
    # From places in the padded rectangle to places among the document's own wordpieces.
    place = numpy.where(is_there.ravel(), is_there.ravel().cumsum() - 1, -1)
    starts = columns["span_offsets"][columns["doc_spans"][:-1]]
    expected = place[align.data.ravel()] - numpy.repeat(starts, numpy.diff(columns["doc_aligned"]))
    numpy.testing.assert_array_equal(columns["aligned"], expected)


@pytest.fixture(scope="module")
def roomy_transformer(tmp_path_factory) -> Path:
    """One that takes any document whole."""
    return write_transformer(tmp_path_factory.mktemp("transformer") / "roomy", longest=512)


@pytest.mark.parametrize("getter", GETTERS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=documents)
def test_columns_are_those_of_spacy_transformers(roomy_transformer, tmp_path, getter, rows):
    nlp = transformer_nlp(roomy_transformer, GETTERS[getter])
    docs = make_docs(nlp.vocab, [*rows, [("wheat", True)]])
    check_against_stock(nlp, docs, tmp_path)


@pytest.mark.parametrize("getter", ["overlapping", "sent"])
def test_tokenizer_that_knows_no_characters(tiny_transformer, tmp_path, getter):
    """Slow tokenizers do not say where a wordpiece stands: strings are aligned."""
    config = {"use_fast": False}
    nlp = transformer_nlp(tiny_transformer, GETTERS[getter], tokenizer_config=config)
    check_against_stock(nlp, random_docs(nlp, [9, 1, 30, 4]), tmp_path)


def test_spans_longer_than_the_model_takes_are_cut_and_counted(tiny_transformer, tmp_path):
    nlp = transformer_nlp(tiny_transformer, GETTERS["too long"])
    docs = [nlp.make_doc("tonnes " * 50)]
    packed = packed_of(nlp, docs, tmp_path)
    assert packed.info.wordpieces.cut > 0
    assert max(numpy.diff(packed.columns["span_offsets"])) == 64
    check_against_stock(nlp, docs, tmp_path)


def test_document_that_does_not_fit_is_refused(tiny_transformer, tmp_path):
    nlp = transformer_nlp(tiny_transformer, GETTERS["doc"])
    docs = [nlp.make_doc("wheat"), nlp.make_doc("wheat " * 70)]
    with pytest.raises(UserError, match=r"document 1 has 72 wordpieces, and .* takes 64") as error:
        packed_of(nlp, docs, tmp_path)
    assert "strided_spans" in error.value.desc
    assert not (tmp_path / "docs.safetensors").exists()


def test_sentences_that_nobody_has_found_are_refused(tiny_transformer, tmp_path):
    nlp = transformer_nlp(tiny_transformer, GETTERS["sent"])
    nlp.config["training"]["annotating_components"] = []
    with pytest.raises(UserError, match="annotating_components"):
        packed_of(nlp, [nlp.make_doc("wheat ships")], tmp_path)


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_folder_that_is_no_model_is_refused(tmp_path, content):
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content, encoding="utf8")
    nlp = transformer_nlp(folder, GETTERS["doc"])
    with pytest.raises(UserError, match="is no Hugging Face model"):
        packed_of(nlp, [nlp.make_doc("wheat")], tmp_path)


def test_damaged_columns_are_refused(tiny_transformer, tmp_path):
    nlp = transformer_nlp(tiny_transformer, GETTERS["strided"])
    path = packed_of(nlp, random_docs(nlp, [9, 30]), tmp_path).path
    info = store.read(path).info
    columns = load_file(path)

    def damage(**changes) -> None:
        save_file(columns | changes, path, metadata={"info": info.model_dump_json()})

    damage(span_offsets=columns["span_offsets"][:-1].clone())
    with pytest.raises(UserError, match="don't fit together"):
        store.read(path)
    damage(aligned=columns["aligned"] + 1000)
    with pytest.raises(UserError, match="don't fit together"):
        store.verify(path)
    save_file(
        {name: column for name, column in columns.items() if name != "aligned"},
        path,
        metadata={"info": info.model_dump_json()},
    )
    with pytest.raises(UserError, match="no packed corpus"):
        store.read(path)


@pytest.mark.parametrize(
    ("options", "getter"),
    [
        ({"spans": GETTERS["sent"]}, SENT_SPANS),
        ({"spans": GETTERS["doc"]}, DOC_SPANS),
        ({"spans": GETTERS["own"]}, "zero_copy.head_and_tail.v1"),
    ],
)
def test_layout_from_options(tiny_transformer, tmp_path, options, getter):
    nlp = transformer_pipeline(None, "en", str(tiny_transformer), **options)
    assert nlp is not None
    assert packed_of(nlp, [nlp.make_doc("wheat . ships of")], tmp_path).info.wordpieces.spans[
        "get_spans"
    ]["@span_getters"] == (getter)


def test_unknown_span_getter_is_one_message(tiny_transformer):
    with pytest.raises(UserError, match="nowhere"):
        transformer_pipeline(None, "en", str(tiny_transformer), {"@span_getters": "nowhere.v1"})


def test_configs_without_a_transformer_have_no_layout():
    bow = Path(__file__).parent.parent / "configs" / "bow.cfg"
    assert transformer_pipeline(bow, "en", "", {}) is None
    assert transformer_pipeline(None, "en", "", {}) is None


# Batches


@given(
    lengths=st.lists(st.integers(2, 60), max_size=60),
    most=st.integers(20, 400),
    cost=st.integers(0, 100),
)
def test_groups_hold_every_span_within_bounds(lengths, most, cost):
    lengths = numpy.sort(numpy.array(lengths, "int64"))
    groups = list(cut_groups(lengths, most, cost))
    covered = [number for group in groups for number in range(group.start, group.end)]
    assert covered == list(range(len(lengths)))
    for group in groups:
        part = lengths[group.start : group.end]
        assert group.longest == part.max()
        assert group.size <= most or len(part) == 1
        assert group.size - part.sum() <= cost


@pytest.fixture
def batch(tiny_transformer, tmp_path) -> Callable[[list[int]], PackedBatch]:
    nlp = transformer_nlp(tiny_transformer, GETTERS["overlapping"])
    packed = packed_of(nlp, random_docs(nlp, [9, 1, 30, 4, 17]), tmp_path)
    corpus = ResidentCorpus(packed, torch.device("cpu"))
    return lambda docs: PackedBatch(corpus, numpy.array(docs, "int64"))


def test_batch_gathers_its_wordpieces(batch):
    """Rows of the padded groups hold the wordpieces that the columns align with each token."""
    some = batch([3, 0, 2])
    spans = PaddedSpans(some, 60)
    assert len(spans.groups) > 1
    rows = torch.cat([spans.inputs(group)["input_ids"].flatten() for group in spans.groups])
    masks = torch.cat([spans.inputs(group)["attention_mask"].flatten() for group in spans.groups])
    assert len(rows) == spans.rows
    assert int(masks.sum()) == spans.count
    columns = {name: column.numpy() for name, column in some.corpus.packed.columns.items()}
    expected = []
    for doc in some.docs:
        start = columns["span_offsets"][columns["doc_spans"][doc]]
        first, end = columns["doc_aligned"][doc : doc + 2]
        expected.extend(columns["wordpieces"][start + columns["aligned"][first:end]])
    numpy.testing.assert_array_equal(rows[spans.row_of_aligned], expected)
    assert int(spans.segments.lengths.sum()) == len(expected)
    assert len(spans.segments) == some.words


def test_pack_command(tiny_transformer, nlp, tmp_path, capsys):
    import pack

    source = save_docs(tmp_path / "docs.spacy", random_docs(nlp, [9, 30]))
    spans = srsly.json_dumps(GETTERS["too long"])
    pack.main([source], "en", [], None, str(tiny_transformer), spans)
    said = " ".join(capsys.readouterr().out.split())
    assert "wordpieces of" in said
    assert "more were left out" in said
    with pytest.raises(SystemExit):
        pack.main([source], "en", [], None, str(tiny_transformer), "no JSON")
    assert store.read(tmp_path / "docs.safetensors").info.wordpieces is not None


def test_checksum_tells_tokenizers_apart(tiny_transformer, tmp_path):
    from zero_copy.wordpieces import load_tokenizer, tokenizer_checksum

    tokenizer, longest = load_tokenizer(str(tiny_transformer), {})
    same, _ = load_tokenizer(str(tiny_transformer), {})
    before = tokenizer_checksum(tokenizer)
    tokenizer(["wheat", "ships of wheat"], padding="longest")  # leaves traces in the tokenizer
    assert tokenizer_checksum(tokenizer) == before == tokenizer_checksum(same)
    other = write_transformer(tmp_path / "other", longest=32)
    assert tokenizer_checksum(load_tokenizer(str(other), {})[0]) != before
    assert longest == 64
