"""Baselines: they learn what can be learnt, and score every label."""

import numpy
import pytest

from conftest import save_docs
from zero_copy.baselines import BASELINES

INSTALLED = [baseline for baseline in BASELINES if baseline.is_installed]
WORDS = {"grain": "wheat", "ship": "port", "trade": "tariff"}


@pytest.fixture
def corpus(tmp_path, nlp):
    """Texts of one or two topics, and a label of which only the test set has a text."""
    for split, size in (("train", 60), ("dev", 12), ("test", 12)):
        docs = []
        for number in range(size):
            topic = list(WORDS)[number % 3]
            docs.append(nlp.make_doc(f"the {WORDS[topic]} of the {WORDS[topic]} {number}"))
            docs[-1].cats = {name: float(name == topic) for name in (*WORDS, "unseen")}
        save_docs(tmp_path / f"{split}.spacy", docs)
    return tmp_path


@pytest.mark.extra
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("baseline", INSTALLED, ids=lambda it: it.folder)
@pytest.mark.filterwarnings("ignore:Label not")
def test_baseline_finds_the_topics(baseline, corpus, multi_label):
    labels = (*WORDS, "unseen")
    predictions, seconds, words = baseline.evaluate(corpus, labels, multi_label)
    assert predictions.scores.shape == (12, 4)
    assert numpy.isfinite(predictions.scores).all()
    assert predictions.evaluate()["cats_micro_f"] > 0.95
    assert seconds > 0
    assert words == 72 * 6


def test_two_labels(corpus):
    predictions, _, _ = BASELINES[0].evaluate(corpus, ("grain", "ship"), False)
    right = predictions.truths.argmax(1) == predictions.scores.argmax(1)
    assert right[(predictions.truths == 1).any(1)].all()
