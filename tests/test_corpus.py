"""The reader, the packed examples and the batcher."""

from itertools import islice

import numpy
import pytest
import spacy
from spacy.training import Corpus as StockCorpus
from spacy.training.batchers import configure_minibatch_by_words
from thinc.api import compounding

from conftest import LABELS, random_docs, save_docs
from zero_copy import store
from zero_copy.batcher import create_batch_by_words
from zero_copy.corpus import Corpus, PackedExample, packed_batches
from zero_copy.errors import UserError

LENGTHS = [3, 200, 1, 50, 49, 51, 70, 2, 2, 2, 500, 30, 120, 80, 10, 11, 12]


@pytest.fixture
def path(nlp, tmp_path):
    store.pack(
        save_docs(tmp_path / "train.spacy", random_docs(nlp, LENGTHS)),
        tmp_path / "train.safetensors",
    )
    return tmp_path / "train.safetensors"


def documents(examples) -> list[int]:
    return [int(number) for example in examples for number in example.batch.docs]


def test_examples_stand_for_all_documents_in_order(nlp, path):
    examples = list(Corpus(path)(nlp))
    assert documents(examples) == list(range(len(LENGTHS)))
    assert sum(len(example) for example in examples) == sum(LENGTHS)


def test_examples_are_cut_at_so_many_words(nlp, path, monkeypatch):
    monkeypatch.setitem(__import__("zero_copy.corpus").corpus.WORDS_PER_EXAMPLE, "cpu", 150)
    examples = list(Corpus(path)(nlp))
    assert len(examples) > 3
    assert documents(examples) == list(range(len(LENGTHS)))


def test_batch_gathers_its_tokens(nlp, path):
    corpus = next(iter(Corpus(path)(nlp))).batch.corpus
    from zero_copy.corpus import PackedBatch

    docs = numpy.array([4, 0, 7])
    batch = PackedBatch(corpus, docs)
    offsets = corpus.packed.columns["doc_offsets"].numpy()
    expected = numpy.concatenate([numpy.arange(offsets[d], offsets[d + 1]) for d in docs])
    numpy.testing.assert_array_equal(batch.tokens, expected)
    numpy.testing.assert_array_equal(batch.doc_of_token, numpy.repeat([0, 1, 2], [49, 3, 2]))
    types, which = batch.types
    numpy.testing.assert_array_equal(types[which], batch.token_types)


def test_truths_follow_the_labels_asked_for(nlp, path):
    batch = next(iter(Corpus(path)(nlp))).batch
    swapped = batch.truths((LABELS[2], "unknown", LABELS[0]))
    numpy.testing.assert_array_equal(swapped[:, [2, 0]], batch.truths(LABELS)[:, [0, 2]])
    assert (swapped[:, 1] == store.MISSING).all()


def test_copies_share_the_batch(nlp, path):
    example = next(iter(Corpus(path)(nlp)))
    assert packed_batches([example.predicted.copy()]) == [example.batch]


def test_packed_and_ordinary_can_not_be_mixed(nlp, path):
    example = next(iter(Corpus(path)(nlp)))
    with pytest.raises(ValueError, match="mixed"):
        packed_batches([example.predicted, nlp("text")])


@pytest.mark.parametrize(("max_length", "limit"), [(0, 0), (50, 0), (0, 5), (51, 4), (60, 12)])
def test_max_length_and_limit_are_those_of_spacy(nlp, path, max_length, limit):
    stock = StockCorpus(path.with_suffix(".spacy"), max_length=max_length, limit=limit)
    expected = [len(example.reference) for example in stock(nlp)]
    ours = documents(Corpus(path, max_length=max_length, limit=limit)(nlp))
    assert [LENGTHS[number] for number in ours] == expected


def test_changed_file_is_placed_anew(nlp, path):
    first = next(iter(Corpus(path)(nlp))).batch.corpus
    assert next(iter(Corpus(path)(nlp))).batch.corpus is first
    store.pack(path.with_suffix(".spacy"), path)
    assert next(iter(Corpus(path)(nlp))).batch.corpus is not first


@pytest.mark.parametrize("size", [100, 60, 1000])
@pytest.mark.parametrize("discard_oversize", [True, False])
def test_batches_are_those_of_spacys_rule(nlp, path, size, discard_oversize):
    batcher = create_batch_by_words(size, 0.2, discard_oversize, seed=1)
    batches = [documents(batch) for batch in batcher(Corpus(path)(nlp))]
    order = numpy.arange(len(LENGTHS))
    numpy.random.default_rng(1).shuffle(order)
    stock = configure_minibatch_by_words(
        size=size, tolerance=0.2, discard_oversize=discard_oversize, get_length=LENGTHS.__getitem__
    )
    assert batches == [list(batch) for batch in stock(order.tolist())]


def test_order_is_fresh_every_epoch_and_follows_the_seed(nlp, path):
    def epochs(seed):
        batcher = create_batch_by_words(100, seed=seed)
        return [
            [number for batch in batcher(Corpus(path)(nlp)) for number in documents(batch)]
            for _ in range(2)
        ]

    first, second = epochs(0)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(LENGTHS)))
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]


def test_schedule_of_sizes_goes_on_over_epochs(nlp, path):
    batcher = create_batch_by_words(compounding(10, 10_000, 2.0), discard_oversize=False)
    first = len(list(batcher(Corpus(path)(nlp))))
    second = len(list(batcher(Corpus(path)(nlp))))
    # A schedule that began anew would cut the same documents into about as many batches.
    assert second < first / 1.5


def test_batcher_refuses_ordinary_examples(nlp, path):
    batcher = create_batch_by_words(100)
    with pytest.raises(UserError, match="needs a packed corpus"):
        list(batcher(StockCorpus(path.with_suffix(".spacy"))(nlp)))


def test_component_that_needs_docs_is_refused(path):
    nlp = spacy.blank("en")
    nlp.add_pipe("ner", name="names")
    with pytest.raises(UserError, match=r"'names' \(ner\) can't train from a packed corpus"):
        list(Corpus(path)(nlp))
    nlp.config["training"]["frozen_components"] = ["names"]
    assert list(islice(Corpus(path)(nlp), 1))


def test_stock_classifier_is_refused_with_the_factory_to_use(path):
    nlp = spacy.blank("en")
    nlp.add_pipe("textcat")
    with pytest.raises(UserError, match="zero_copy_textcat"):
        list(Corpus(path)(nlp))


def test_other_language_is_refused(path):
    with pytest.raises(UserError, match="language en"):
        list(Corpus(path)(spacy.blank("de")))


def test_nothing_left_is_refused(nlp, path):
    with pytest.raises(UserError, match="fewer than 1 words"):
        list(Corpus(path, max_length=1)(nlp))


def test_example_counts_words(nlp, path):
    example = next(iter(Corpus(path)(nlp)))
    assert isinstance(example, PackedExample)
    assert len(example) == sum(LENGTHS)
    assert len(example.predicted) == 0
