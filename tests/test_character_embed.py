"""The embedding of characters: the lowered one computes what spaCy's does."""

import pytest
from spacy.attrs import ORTH
from spacy.tokens import Doc

from conftest import LABELS, random_docs
from test_layers import LENGTHS, assert_parity, encoder, ensemble, reduce
from zero_copy import lowering


def characters(nC=8):
    embedding = {
        "@architectures": "spacy.CharacterEmbed.v2",
        "width": 8,
        "rows": 50,
        "nM": 4,
        "nC": nC,
        "include_static_vectors": False,
        "feature": "LOWER",
    }
    return encoder("MaxoutWindowEncoder.v2", embedding, window_size=1, maxout_pieces=3, depth=1)


@pytest.mark.parametrize("per_type", [True, False])
@pytest.mark.parametrize("nC", [1, 5, 8])
def test_character_embed(nlp, pack_docs, monkeypatch, nC, per_type):
    monkeypatch.setattr(lowering, "rows_per_type", lambda device: per_type)
    docs = random_docs(nlp, (*LENGTHS, 0))
    assert_parity(nlp, docs, pack_docs(docs), ensemble(characters(nC)))


def test_words_of_every_length_and_script(nlp, pack_docs):
    words = ["a", "né", "日本語", "🙂", "antidisestablishmentarianism", "x" * 300, "a"]
    docs = [Doc(nlp.vocab, words=words[:n]) for n in (7, 1, 4)]
    for doc in docs:
        doc.cats = {label: float(label == LABELS[len(doc) % 3]) for label in LABELS}
    assert docs[0].to_array(ORTH)[0] == docs[0].to_array(ORTH)[6]
    assert_parity(nlp, docs, pack_docs(docs), reduce(embedding=characters(), max=True, mean=True))
