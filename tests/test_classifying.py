"""Answers are the pipeline's own, and nothing of a text stays behind."""

import math

import numpy
import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.vectors import Vectors

from conftest import LABELS, random_docs, save_docs, train_a_little
from zero_copy.classifying import Classifier, categories, copy_pipeline, find_classifiers
from zero_copy.errors import UserError

TEXTS = ["wheat and corn", "ships at the port", "", "tonnes of U.S. wheat", " ", "é %"]


@Language.component("fails_on_port")
def fails_on_port(doc: Doc) -> Doc:
    if "port" in doc.text:
        raise KeyError(f"cannot read {doc.text}")
    if "nan" in doc.text:
        doc.cats["ship"] = math.nan
    return doc


@Language.factory("stays_here")
class StaysHere:
    def __init__(self, nlp: Language, name: str) -> None:
        pass

    def __call__(self, doc: Doc) -> Doc:
        return doc

    def to_bytes(self, **settings) -> bytes:
        raise OSError("no copies")


def test_answers_are_what_the_pipeline_says(pipeline):
    nlp = spacy.load(pipeline)
    answers = Classifier.load(str(pipeline)).classify(TEXTS)
    assert len(answers) == len(TEXTS)
    for text, answer in zip(TEXTS, answers, strict=True):
        cats = nlp(text).cats
        assert answer["scores"] == pytest.approx(cats, rel=1e-5)
        best = [max(cats, key=cats.__getitem__)]
        assert answer["categories"] == (best if text else [])


def test_an_empty_text_is_answered_alike_in_any_company(pipeline):
    classifier = Classifier.load(str(pipeline))
    assert classifier.classify([""]) == classifier.classify(["wheat", ""])[1:]


def test_categories_reach_the_threshold():
    nlp = spacy.blank("en")
    config = {"threshold": 0.4}
    one = nlp.add_pipe("textcat", config=config)
    several = nlp.add_pipe("textcat_multilabel", config=config)
    for label in LABELS:
        one.add_label(label)
        several.add_label(label)
    scores = {"grain": 0.4, "ship": 0.5, "trade": 0.1}
    assert categories(several, scores) == ["grain", "ship"]
    assert categories(one, scores) == ["ship"]
    assert categories(one, dict.fromkeys(LABELS, 0.3)) == []


@pytest.mark.parametrize("memory_zones", [True, False])
def test_new_words_stay_only_without_memory_zones(pipeline, memory_zones):
    classifier = Classifier.load(str(pipeline), memory_zones=memory_zones)
    classifier.classify(TEXTS)
    before = set(classifier.nlp.vocab.strings)
    for number in range(20):
        classifier.classify([f"never{number}a seen{number}b", "wheat"])
    new = set(classifier.nlp.vocab.strings) - before
    assert bool(new) is not memory_zones


def test_warm_tokenizer_remembers_the_words_of_the_corpus(pipeline, tmp_path):
    docs = random_docs(spacy.blank("en"), [30, 30])
    path = save_docs(tmp_path / "train.spacy", docs)
    cold = Classifier.load(str(pipeline))
    warm = Classifier.load(str(pipeline), warm_up=path)
    words = {token.text for doc in docs for token in doc}
    known = {lexeme.text for lexeme in warm.nlp.vocab}
    assert words <= known
    assert not words <= {lexeme.text for lexeme in cold.nlp.vocab}
    assert warm.classify(TEXTS) == cold.classify(TEXTS)


@pytest.mark.parametrize("with_vectors", [False, True])
def test_worn_pipeline_is_replaced_by_one_that_answers_alike(pipeline, tmp_path, with_vectors):
    nlp = spacy.load(pipeline)
    if with_vectors:
        nlp.vocab.vectors = Vectors(data=numpy.ones((2, 3), "f"), keys=["wheat", "corn"])
    classifier = Classifier(nlp)
    classifier.warm_up(save_docs(tmp_path / "train.spacy", random_docs(nlp, [30])))
    before = classifier.classify(TEXTS)
    start = len(classifier.nlp.vocab)
    assert not classifier.is_worn
    for part in range(26):
        classifier.classify([f"new{part}{number} word{part}{number}" for number in range(1000)])
    assert classifier.is_worn
    classifier.renew()
    assert not classifier.is_worn
    assert classifier.nlp is not nlp
    assert len(classifier.nlp.vocab) <= start
    assert classifier.nlp.vocab.vectors.shape == ((2, 3) if with_vectors else (0, 0))
    assert classifier.nlp.vocab["wheat"].has_vector is with_vectors
    assert classifier.classify(TEXTS) == before


def test_copy_of_a_pipeline_with_listeners_and_rules_answers_alike():
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    listener = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": "*"}
    model = {
        "@architectures": "spacy.TextCatReduce.v1",
        "tok2vec": listener,
        "exclusive_classes": False,
        "use_reduce_first": False,
        "use_reduce_last": False,
        "use_reduce_max": True,
        "use_reduce_mean": True,
    }
    nlp.add_pipe("textcat_multilabel", config={"model": model})
    train_a_little(nlp, random_docs(nlp, [8] * 20), 3)
    nlp.add_pipe("sentencizer", config={"punct_chars": ["%"]})
    expected = nlp("wheat % ships").cats
    copied = copy_pipeline(nlp)
    for number in range(3):
        with copied.memory_zone():
            assert len(list(copied(f"wheat % ships, {number}.").sents)) == 2
    assert copied("wheat % ships").cats == pytest.approx(expected)
    assert copied.pipe_names == nlp.pipe_names


def test_pipeline_that_can_not_be_copied_goes_on(pipeline):
    nlp = spacy.load(pipeline)
    nlp.add_pipe("stays_here")
    classifier = Classifier(nlp)
    classifier._worn_at = 0
    with pytest.warns(UserWarning, match="can't be replaced: no copies"):
        classifier.renew()
    assert classifier.nlp is nlp
    assert not classifier.is_worn


def test_text_that_fails_answers_for_itself(pipeline):
    nlp = spacy.load(pipeline)
    nlp.add_pipe("fails_on_port")
    classifier = Classifier(nlp)
    answers = classifier.classify(["wheat", "the port \ud800", "", "nan", "corn"])
    assert ["error" in answer for answer in answers] == [False, True, False, True, False]
    assert answers[1]["error"].startswith("UnicodeEncodeError")
    assert "not numbers" in answers[3]["error"]
    (answer,) = classifier.classify(["port " * 1000])
    assert answer["error"].startswith("KeyError: 'cannot read port")
    assert len(answer["error"]) <= 500
    # The memory zone has ended all the same: the next one can begin.
    assert not nlp.vocab.in_memory_zone
    assert "error" not in classifier.classify(["wheat"])[0]


def test_doc_cleaner_is_added_once(pipeline):
    nlp = spacy.load(pipeline)
    nlp.add_pipe("doc_cleaner", name="mine")
    assert Classifier(nlp).nlp.pipe_names == ["textcat", "mine"]
    assert Classifier.load(str(pipeline)).nlp.pipe_names == ["textcat", "doc_cleaner"]


def test_what_can_not_be_served(pipeline, tmp_path):
    with pytest.raises(UserError, match="no text classifier"):
        find_classifiers(spacy.blank("en"))
    with pytest.raises(UserError, match="Can't load a pipeline from nothing"):
        Classifier.load("nothing")
    with pytest.raises(UserError, match="to warm the tokenizer with"):
        Classifier.load(str(pipeline), warm_up=tmp_path / "none.spacy")
