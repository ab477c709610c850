"""Layers that read token after token: the lowered ones compute what thinc's do."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import random_docs
from test_layers import LENGTHS, assert_parity, attention, encoder, ensemble


def lstm(depth=1, dropout=0.0):
    return encoder("TorchBiLSTMEncoder.v1", depth=depth, dropout=dropout)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_bilstm(nlp, pack_docs, depth):
    docs = random_docs(nlp, (*LENGTHS, 0))
    assert_parity(nlp, docs, pack_docs(docs), ensemble(lstm(depth)))


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any))
def test_bilstm_on_any_documents(nlp, pack_docs, lengths):
    # Attention over single tokens has no gradient: one document has several.
    docs = random_docs(nlp, [*lengths, 5])
    assert_parity(nlp, docs, pack_docs(docs), attention(embedding=lstm()))
