"""Cuts a resident corpus into batches of so many words, by spaCy's own rule."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy
import spacy
from spacy.training import Example
from spacy.training.batchers import minibatch_by_words

from zero_copy.corpus import PackedBatch, PackedExample
from zero_copy.errors import UserError

Sizing = int | Sequence[int]
Batcher = Callable[[Iterable[Example]], Iterator[list[PackedExample]]]


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
    order = numpy.random.default_rng(seed)
    # One iterator for all epochs, so that a schedule goes on where the last epoch left it.
    sizes: Any = size if isinstance(size, int) else iter(size)

    def batch_by_words(examples: Iterable[Example]) -> Iterator[list[PackedExample]]:
        everything = list(examples)
        pool = [example for example in everything if isinstance(example, PackedExample)]
        if len(pool) < len(everything):
            raise UserError(
                "zero_copy.batch_by_words.v1 needs a packed corpus",
                "Read [corpora.train] with zero_copy.Corpus.v1, or batch with "
                "spacy.batch_by_words.v1.",
            )
        corpus, vocab = pool[0].batch.corpus, pool[0].reference.vocab
        # spaCy has shuffled the examples; sorted, the order depends on our seed alone.
        docs = numpy.sort(numpy.concatenate([example.batch.docs for example in pool]))
        order.shuffle(docs)
        lengths = corpus.lengths[docs].tolist()
        for positions in minibatch_by_words(
            range(len(docs)), sizes, tolerance, discard_oversize, lengths.__getitem__
        ):
            # A document after another in memory: the batch's gathers read the corpus forwards.
            yield [PackedExample(PackedBatch(corpus, docs[positions]), vocab)]

    return batch_by_words
