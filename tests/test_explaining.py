"""Leaving words out is what it says, and mistakes are those that spaCy's scorer counts."""

from math import log

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Corpus

from conftest import WORDS, random_docs, save_docs
from zero_copy.explaining import (
    explain,
    find_mistake,
    find_mistakes,
    find_rivals,
    leave_out,
    log_odds,
)


def test_effect_is_the_log_odds_with_a_word_less_those_without_it(pipeline):
    nlp = spacy.load(pipeline)
    doc = nlp("wheat and corn, 3,000 tonnes")
    effects = explain(nlp, doc, "grain")
    assert "".join(effect.text for effect in effects) == doc.text
    score, without = doc.cats["grain"], nlp("and corn, 3,000 tonnes").cats["grain"]
    expected = log(score / (1 - score)) - log(without / (1 - without))
    assert effects[0].effect == pytest.approx(expected, abs=1e-4)
    assert any(effect.effect for effect in effects)


def test_odds_of_scores_that_float32_can_not_tell_from_1():
    nlp = spacy.blank("en")
    one = nlp.add_pipe("textcat")
    several = nlp.add_pipe("textcat_multilabel")
    for label in ("a", "b", "c"):
        one.add_label(label)
        several.add_label(label + label)
    assert find_rivals(nlp, "a") == ["b", "c"]
    assert find_rivals(nlp, "aa") == []
    scores = {"a": 1.0, "b": 2e-6, "c": 1e-6, "aa": 0.75, "bb": 1.0}
    assert log_odds(scores, "a", ["b", "c"]) == pytest.approx(log(1 / 3e-6))
    assert log_odds(scores, "aa", []) == pytest.approx(log(3))
    assert log_odds(scores, "bb", []) == pytest.approx(log(1e8))


@settings(deadline=None, max_examples=30)
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=40),
    most_words=st.integers(1, 400),
)
def test_parts_make_up_the_text_and_reading_them_is_bounded(nlp_once, words, most_words):
    doc = nlp_once(" ".join(words))
    effects = explain(nlp_once, doc, "ship", most_words)
    assert "".join(effect.text for effect in effects) == doc.text
    bounds = [effect.start for effect in effects] + [effect.end for effect in effects[-1:]]
    assert bounds == sorted(set(bounds))
    assert len(effects) <= 2 or len(effects) * len(doc) <= max(most_words, 2 * len(doc))


@pytest.fixture(scope="module")
def nlp_once(pipeline):
    return spacy.load(pipeline)


def test_a_text_of_one_word_can_be_left_out_entirely(pipeline):
    nlp = spacy.load(pipeline)
    (effect,) = explain(nlp, nlp("wheat"), "grain")
    assert effect.text == "wheat"
    assert len(leave_out(nlp("wheat")[:])) == 0
    assert explain(nlp, nlp(""), "grain") == []


def test_mistakes_are_those_that_the_scorer_counts(pipeline, tmp_path):
    nlp = spacy.load(pipeline)
    path = save_docs(tmp_path / "test.spacy", random_docs(nlp, [6] * 50, seed=3))
    mistakes, texts = find_mistakes(nlp, path, "textcat")
    scores = nlp.evaluate(Corpus(path)(nlp))
    assert texts == 50
    assert mistakes
    assert 1 - len(mistakes) / texts == pytest.approx(scores["cats_micro_f"])
    assert [it.confidence for it in mistakes] == sorted(
        (it.confidence for it in mistakes), reverse=True
    )
    reference = list(Corpus(path)(nlp))[mistakes[0].number].reference
    assert mistakes[0].text == reference.text
    assert reference.cats[mistakes[0].right[0]] == 1.0
    assert mistakes[0].right != mistakes[0].predicted


def test_what_is_not_annotated_is_not_wrong(pipeline):
    nlp = spacy.load(pipeline)
    doc = nlp("wheat")
    predicted = max(doc.cats, key=doc.cats.__getitem__)
    other = next(label for label in doc.cats if label != predicted)
    component = nlp.get_pipe("textcat")
    reference = Doc(nlp.vocab, ["wheat"])
    assert find_mistake(component, 0, reference, doc) is None
    reference.cats = {other: 0.0}
    assert find_mistake(component, 0, reference, doc) is None
    reference.cats = {other: 1.0}
    mistake = find_mistake(component, 0, reference, doc)
    assert (mistake.right, mistake.predicted) == ((other,), ())
