"""The batchers: the same batches as spaCy's, of documents in an order of their own."""

from itertools import chain

import numpy
import pytest
import spacy
import torch
from spacy.tokens import Doc
from spacy.training.batchers import configure_minibatch, configure_minibatch_by_padded_size
from thinc.api import compounding

from conftest import random_docs, save_docs
from zero_copy import store
from zero_copy.batcher import by_size, create_batch_by_padded, create_batch_by_sequence
from zero_copy.corpus import Corpus, PackedBatch
from zero_copy.resident import ResidentCorpus

LENGTHS = [int(length) for length in numpy.random.default_rng(5).integers(1, 90, 80)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    save_docs(folder / "docs.spacy", random_docs(spacy.blank("en"), LENGTHS))
    store.pack(folder / "docs.spacy", folder / "docs.safetensors")
    return Corpus(folder / "docs.safetensors")


def packed(batcher, corpus, nlp) -> list[list[int]]:
    return [batch[0].batch.docs.tolist() for batch in batcher(corpus(nlp))]


def stock(batcher, nlp, seed) -> list[list[int]]:
    """spaCy's batches of Docs, in the order in which ours are drawn."""
    order = numpy.arange(len(LENGTHS))
    numpy.random.default_rng(seed).shuffle(order)
    docs = [Doc(nlp.vocab, words=["x"] * LENGTHS[number]) for number in order]
    for doc, number in zip(docs, order.tolist(), strict=True):
        doc.user_data["number"] = number
    return [[doc.user_data["number"] for doc in batch] for batch in batcher(docs)]


@pytest.mark.parametrize("size", [1, 7, 80, 1000])
def test_batches_by_sequence_are_those_of_spacys_rule(nlp, corpus, size):
    batches = packed(create_batch_by_sequence(size, seed=1), corpus, nlp)
    assert batches == stock(configure_minibatch(size), nlp, 1)


@pytest.mark.parametrize("size", [50, 300, 10_000])
@pytest.mark.parametrize("buffer", [10, 256])
@pytest.mark.parametrize("discard_oversize", [True, False])
def test_batches_by_padded_size_are_those_of_spacys_rule(
    nlp, corpus, size, buffer, discard_oversize
):
    batcher = create_batch_by_padded(size, buffer, discard_oversize, seed=2)
    rule = configure_minibatch_by_padded_size(
        size=size, buffer=buffer, discard_oversize=discard_oversize
    )
    assert packed(batcher, corpus, nlp) == stock(rule, nlp, 2)


def test_schedule_of_sizes_goes_on_over_epochs(nlp, corpus):
    batcher = create_batch_by_sequence(compounding(1, 1000, 1.5))
    first = len(packed(batcher, corpus, nlp))
    assert len(packed(batcher, corpus, nlp)) < first / 1.5


@pytest.mark.parametrize(
    "batcher", [create_batch_by_sequence(9), create_batch_by_padded(200, buffer=20)]
)
def test_every_document_once_an_epoch_in_a_fresh_order(nlp, corpus, batcher):
    epochs = [list(chain(*packed(batcher, corpus, nlp))) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(LENGTHS)))


def test_workers_have_batches_of_like_size_at_the_same_time(nlp, corpus):
    (example,) = corpus(nlp)
    whole = example.batch.corpus
    orders = [numpy.random.default_rng(worker).permutation(len(LENGTHS)) for worker in (1, 2)]
    epochs = [[PackedBatch(whole, part) for part in numpy.split(docs, 20)] for docs in orders]
    arranged = [list(by_size(batches, numpy.random.default_rng(0))) for batches in epochs]

    def waste(steps):
        return numpy.mean([abs(one.words - other.words) for one, other in zip(*steps, strict=True)])

    assert waste(arranged) < waste(epochs) / 2
    for batches, before in zip(arranged, epochs, strict=True):
        assert batches != before
        assert set(batches[:16]) == set(before[:16])
        assert set(batches[16:]) == set(before[16:])
        words = [batch.words for batch in batches[:16]]
        assert words not in (sorted(words), sorted(words, reverse=True))


def test_batches_of_two_windows_keep_their_order(nlp, corpus):
    (example,) = corpus(nlp)
    (other,) = corpus(nlp)
    wholes = [example.batch.corpus, ResidentCorpus(other.batch.corpus.packed, torch.device("cpu"))]
    batches = [PackedBatch(whole, numpy.array([1, 2])) for whole in wholes]
    batches += [PackedBatch(wholes[1], numpy.array([0]))]
    assert list(by_size(batches, numpy.random.default_rng(0))) == batches
