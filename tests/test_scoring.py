"""Packed scores equal `Scorer.score_cats`, every key."""

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.util import registry
from spacy.vocab import Vocab

from zero_copy.scoring import score_cats
from zero_copy.store import MISSING


def as_examples(scores, truths, labels):
    """Ordinary examples with these predictions and annotations."""
    vocab = Vocab()
    for row, truth in zip(scores, truths, strict=True):
        predicted, reference = Doc(vocab, ["a"]), Doc(vocab, ["a"])
        predicted.cats = {label: float(row[number]) for number, label in enumerate(labels)}
        reference.cats = {
            label: float(truth[number])
            for number, label in enumerate(labels)
            if truth[number] != MISSING
        }
        yield Example(predicted, reference)


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same(ours[key], value)
        else:
            assert ours[key] == (pytest.approx(value) if isinstance(value, float) else value), key


def arrays(draw, documents, labels, values):
    flat = draw(st.lists(values, min_size=documents * labels, max_size=documents * labels))
    return numpy.array(flat).reshape(documents, labels)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), documents=st.integers(1, 12), labels=st.integers(2, 5))
def test_exclusive(data, documents, labels):
    # Few different values, so that there are ties.
    scores = arrays(data.draw, documents, labels, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    scores = scores.astype("float32")
    truths = numpy.zeros((documents, labels), "uint8")
    right = data.draw(st.lists(st.integers(0, labels), min_size=documents, max_size=documents))
    for row, label in enumerate(right):
        if label < labels:
            truths[row, label] = 1
    names = tuple(f"label{number}" for number in range(labels))
    positive = names[1] if labels == 2 else None
    settings = {"labels": names, "threshold": 0.0, "positive_label": positive}
    expected = Scorer.score_cats(
        as_examples(scores, truths, names), "cats", multi_label=False, **settings
    )
    assert_same(score_cats(scores, truths, multi_label=False, **settings), expected)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), documents=st.integers(1, 12), labels=st.integers(1, 5))
def test_multilabel_with_missing_annotations(data, documents, labels):
    scores = arrays(data.draw, documents, labels, st.floats(0, 1, width=32)).astype("float32")
    truths = arrays(data.draw, documents, labels, st.sampled_from([0, 1, MISSING])).astype("uint8")
    names = tuple(f"label{number}" for number in range(labels))
    for threshold in (None, 0.3):
        settings = {"labels": names, "threshold": threshold}
        expected = Scorer.score_cats(
            as_examples(scores, truths, names), "cats", multi_label=True, **settings
        )
        assert_same(score_cats(scores, truths, multi_label=True, **settings), expected)


def test_partly_annotated_exclusive_documents():
    scores = numpy.array([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]], "float32")
    truths = numpy.array([[MISSING, 1], [MISSING, 0], [1, 0]], "uint8")
    expected = Scorer.score_cats(
        as_examples(scores, truths, ("a", "b")), "cats", multi_label=False, labels=("a", "b")
    )
    assert_same(score_cats(scores, truths, multi_label=False, labels=("a", "b")), expected)


@pytest.mark.parametrize("name", ["spacy.textcat_scorer.v2", "spacy.textcat_multilabel_scorer.v2"])
def test_scorers_of_spacy_take_what_ours_gets(name):
    """The settings that a component passes are those that its parent passes to its scorer."""
    scorer = registry.get("scorers", name)()
    scores, truths = numpy.array([[0.9, 0.1]], "float32"), numpy.array([[1, 0]], "uint8")
    settings = {"labels": ("a", "b"), "threshold": 0.5, "positive_label": None}
    expected = scorer(as_examples(scores, truths, ("a", "b")), **settings)
    assert_same(score_cats(scores, truths, multi_label="multi" in name, **settings), expected)
