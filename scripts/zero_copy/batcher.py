"""Cuts a packed corpus into batches, by spaCy's own rules."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy
import spacy
from spacy.training import Example
from spacy.training.batchers import minibatch_by_padded_size, minibatch_by_words
from spacy.util import minibatch

from zero_copy import workers
from zero_copy.corpus import PackedBatch, PackedExample
from zero_copy.errors import UserError
from zero_copy.resident import ResidentCorpus

# Batches that may change places so that workers have those of like size at the same time.
NEIGHBOURS = 16
Sizing = int | Sequence[int]
Batcher = Callable[[Iterable[Example]], Iterator[list[PackedExample]]]
# spaCy's rules ask an item for nothing but its length. A document stands before them as the range
# from its number on that is as long as it has words.
Cut = Callable[..., Iterable[list[range]]]


@spacy.registry.batchers("zero_copy.batch_by_words.v1")
def create_batch_by_words(
    size: Sizing, tolerance: float = 0.2, discard_oversize: bool = False, seed: int = 0
) -> Batcher:
    """Batch by number of words, in a fresh random order every epoch.

    size (int or Sequence[int]): The target number of words, or a schedule of it.
    tolerance (float): By what share of the size a batch may exceed it.
    discard_oversize (bool): Leave out documents that exceed the size by themselves.
    seed (int): Seed of the order.
    RETURNS (Batcher): Takes the packed examples of a corpus, yields one packed example a batch.
    """
    settings = {"tolerance": tolerance, "discard_oversize": discard_oversize}
    return packed_batcher(minibatch_by_words, size, seed, settings)


@spacy.registry.batchers("zero_copy.batch_by_sequence.v1")
def create_batch_by_sequence(size: Sizing, seed: int = 0) -> Batcher:
    """Batch by number of documents, in a fresh random order every epoch.

    size (int or Sequence[int]): The number of documents, or a schedule of it.
    seed (int): Seed of the order.
    RETURNS (Batcher): Takes the packed examples of a corpus, yields one packed example a batch.
    """
    return packed_batcher(minibatch, size, seed, {})


@spacy.registry.batchers("zero_copy.batch_by_padded.v1")
def create_batch_by_padded(
    size: Sizing, buffer: int, discard_oversize: bool = False, seed: int = 0
) -> Batcher:
    """Batch documents of like lengths, by their number times the words of the longest.

    size (int or Sequence[int]): The largest padded size, in words, or a schedule of it.
    buffer (int): How many documents, from a fresh random order, are sorted by length at a time.
    discard_oversize (bool): Leave out batches that reach the size.
    seed (int): Seed of the order.
    RETURNS (Batcher): Takes the packed examples of a corpus, yields one packed example a batch.
    """
    settings = {"buffer": buffer, "discard_oversize": discard_oversize}
    return packed_batcher(minibatch_by_padded_size, size, seed, settings)


def packed_batcher(rule: Cut, size: Sizing, seed: int, settings: dict[str, Any]) -> Batcher:
    """A batcher of packed examples from a rule of spaCy's for cutting documents into batches.

    rule (Cut): The rule.
    size (int or Sequence[int]): The size that it takes, or a schedule of it.
    seed (int): Seed of the order.
    settings (Dict[str, Any]): Further settings that it takes.
    RETURNS (Batcher): Takes the packed examples of a corpus, yields one packed example a batch.
    """
    # One iterator for all epochs, so that a schedule goes on where the last epoch left it.
    sizes = size if isinstance(size, int) else iter(size)
    order = numpy.random.default_rng([seed, workers.rank()] if workers.rank() else seed)
    epochs = count()

    def batch(examples: Iterable[Example]) -> Iterator[list[PackedExample]]:
        everything = list(examples)
        pool = [example for example in everything if isinstance(example, PackedExample)]
        if len(pool) < len(everything):
            raise UserError(
                "A batcher of zero_copy needs a packed corpus",
                "Read [corpora.train] with zero_copy.Corpus.v1, or batch with spaCy's batcher.",
            )
        corpus, vocab = pool[0].batch.corpus.whole, pool[0].reference.vocab
        # spaCy has shuffled the examples; sorted, the order depends on our seed alone.
        docs = numpy.sort(numpy.concatenate([example.batch.numbers_in_whole for example in pool]))
        batches = (
            PackedBatch(part, numpy.array([document.start for document in batch]))
            for part, numbers in corpus.shuffled(docs, order)
            for batch in rule(_as_ranges(numbers, part.lengths), size=sizes, **settings)
        )
        for batch in in_step(batches, corpus, numpy.random.default_rng([seed, next(epochs)])):
            yield [PackedExample(batch, vocab)]

    return batch


def _as_ranges(docs: numpy.ndarray, lengths: numpy.ndarray) -> Iterator[range]:
    # A block at a time: as Python's integers, the numbers of ten million documents take 800 MB.
    for start in range(0, len(docs), 65_536):
        block = docs[start : start + 65_536]
        yield from map(range, block.tolist(), (block + lengths[block]).tolist())


def in_step(
    batches: Iterable[PackedBatch], corpus: ResidentCorpus, order: numpy.random.Generator
) -> Iterator[PackedBatch]:
    """The batches of an epoch, as many for each worker, and those of a step of like size.

    batches (Iterable[PackedBatch]): This worker's.
    corpus (ResidentCorpus): What they are from.
    order (numpy.random.Generator): What draws the order of the sizes; the same for all workers.
    YIELDS (PackedBatch): The batches with their share of the documents of all workers in the step,
        empty ones at the end where others have more.
    """
    if workers.count() == 1:
        yield from batches
        return
    ours = list(by_size(list(batches), order))
    sizes = [numpy.array(each) for each in workers.gather([len(batch) for batch in ours])]
    documents = numpy.zeros(max(map(len, sizes)), "int64")
    for each in sizes:
        documents[: len(each)] += each
    missing = len(documents) - len(ours)
    ours += [PackedBatch(corpus, numpy.empty(0, "int64")) for _ in range(missing)]
    for batch, everyone in zip(ours, documents.tolist(), strict=True):
        batch.share = len(batch) / everyone
        yield batch


def by_size(batches: list[PackedBatch], order: numpy.random.Generator) -> Iterator[PackedBatch]:
    """Batches in an order in which every worker has a large one when the others have.

    A step takes as long as its largest batch. Of 2,000 words, give or take a fifth, the larger of
    two has 3.7 % more than the mean; sorted among 16 neighbours and these shuffled alike by all
    workers, 1.3 %.

    batches (List[PackedBatch]): This worker's batches of an epoch.
    order (numpy.random.Generator): What shuffles; in the same state for all workers.
    YIELDS (PackedBatch): The same batches.
    """
    for start in range(0, len(batches), NEIGHBOURS):
        some = batches[start : start + NEIGHBOURS]
        places = order.permutation(NEIGHBOURS)
        # Batches of two windows of a streamed corpus stay apart, or each would bring its own back.
        if all(batch.corpus is some[0].corpus for batch in some):
            some.sort(key=lambda batch: batch.words)
            some = [some[place] for place in places if place < len(some)]
        yield from some
