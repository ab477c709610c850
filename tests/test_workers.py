"""Two workers against one process that takes the batches of both in one."""

from pathlib import Path

import numpy
import pytest
import torch
from spacy.language import Language
from thinc.api import Adam
from torch import distributed, multiprocessing

from conftest import save_corpus
from test_components import PIPELINES, make, parameters
from test_layers import bow
from zero_copy import store, workers
from zero_copy.batcher import create_batch_by_words
from zero_copy.corpus import Corpus, PackedBatch, PackedExample, kept_corpus, stripe
from zero_copy.errors import UserError

WORKERS, STEPS = 2, 12
CPU = torch.device("cpu")
CASES = {
    **PIPELINES,
    "bigrams": [("zero_copy_textcat", bow(ngram_size=2))],
    "balanced": [("zero_copy_textcat", bow())],
    "streamed": [("zero_copy_textcat", bow(ngram_size=2))],
}
# Bytes for the words of each worker, of which it has three times as much.
MEMORY = {"streamed": 1500}
# The last stripe has many short documents, so that the other runs out of batches first.
LENGTHS = [30, 9, 50, 4, 17] * 4 + [3, 1, 2, 5] * 30


def pipeline(case: str, corpus: Path) -> Language:
    nlp = make(CASES[case])
    if case == "balanced":
        nlp.get_pipe("textcat").imbalance.class_weights = "balanced"
    reader = Corpus(corpus, memory=MEMORY.get(case, "auto"))
    nlp.initialize(lambda: reader(nlp))
    # A fresh model gives all labels the same score: gradients then cancel to rounding errors, which
    # Adam makes as large as any. Only the rows of a bag of words are left at zero.
    order = numpy.random.default_rng(0)
    for _, component in nlp.pipeline:
        for layer in component.model.walk():
            for name in layer.param_names:
                array = layer.get_param(name)
                if not array.any() and (name != "W" or "sparse" not in layer.name):
                    array += order.normal(size=array.shape)
    return nlp


def adam() -> Adam:
    # Adam divides a gradient by its size: with this epsilon not one that is a rounding error.
    return Adam(0.01, L2=0.01, grad_clip=1.0, eps=1e-5)


def step(nlp: Language, sgd: Adam, batch: list[PackedExample], losses: dict) -> None:
    nlp.update(batch, sgd=False, losses=losses)
    for _, component in nlp.pipeline:
        component.finish_update(sgd)


def work(rank: int, corpus: Path, names: list[str], folder: Path) -> None:
    """What one worker does, and what it saves for the test to look at."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORKERS
    )
    for name in names:
        nlp, sgd = pipeline(name, corpus), adam()
        reader = Corpus(corpus, memory=MEMORY.get(name, "auto"))
        batcher = create_batch_by_words(60)
        losses: dict = {}
        batches: list[numpy.ndarray] = []
        steps: list[list[numpy.ndarray]] = []
        while len(steps) < STEPS:
            for batch in batcher(reader(nlp)):
                step(nlp, sgd, batch, losses)
                batches.append(batch[0].batch.numbers_in_whole)
                steps.append([array.copy() for array in parameters(nlp)])
        scores = nlp.evaluate(reader(nlp))
        scores.pop("speed")
        result = {"batches": batches, "steps": steps, "scores": scores, "losses": losses}
        torch.save(result, folder / f"{name}-{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = save_corpus(tmp_path_factory.mktemp("corpus"), {"train": LENGTHS})
    return folder / "train.safetensors"


@pytest.fixture(scope="module")
def results(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    multiprocessing.spawn(work, (corpus, list(CASES), folder), WORKERS)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_workers_take_the_steps_of_one_with_both_batches(name, corpus, results):
    ours, others = (
        torch.load(results / f"{name}-{rank}", weights_only=False) for rank in range(WORKERS)
    )
    assert any(not len(docs) for docs in ours["batches"] + others["batches"])
    nlp, sgd, losses = pipeline(name, corpus), adam(), {}
    whole = kept_corpus(corpus, CPU)
    second = len(stripe(whole.packed, 0, WORKERS).lengths)
    pairs = zip(ours["batches"], others["batches"], strict=True)
    for number, (docs, more) in enumerate(pairs):
        both = PackedBatch(whole, numpy.concatenate([docs, more + second]))
        step(nlp, sgd, [PackedExample(both, nlp.vocab)], losses)
        for ranks in zip(
            ours["steps"][number], others["steps"][number], parameters(nlp), strict=True
        ):
            numpy.testing.assert_array_equal(ranks[0], ranks[1])
            numpy.testing.assert_allclose(ranks[0], ranks[2], rtol=1e-5, atol=1e-6)
    scores = nlp.evaluate(Corpus(corpus)(nlp))
    assert ours["scores"] == others["scores"]
    assert ours["scores"]["cats_f_per_type"] == scores["cats_f_per_type"]
    assert ours["losses"] == others["losses"] == pytest.approx(losses, rel=1e-4)


def test_stripes_are_all_of_the_corpus_and_of_like_size(corpus):
    packed = store.read(corpus)
    for count in (1, 2, 3, 7, len(packed.lengths)):
        stripes = [stripe(packed, number, count) for number in range(count)]
        lengths = numpy.concatenate([each.lengths for each in stripes])
        numpy.testing.assert_array_equal(lengths, packed.lengths)
        tokens = numpy.concatenate([each.columns["token_types"] for each in stripes])
        numpy.testing.assert_array_equal(tokens, packed.columns["token_types"])
        assert all(len(each.lengths) for each in stripes)
        if count < 8:
            words = [int(each.lengths.sum()) for each in stripes]
            assert max(words) - min(words) <= 2 * max(LENGTHS)


def test_more_workers_than_documents_are_refused(corpus):
    packed = store.read(corpus)
    with pytest.raises(UserError, match=f"{len(LENGTHS)} documents for {len(LENGTHS) + 1} workers"):
        stripe(packed, 0, len(LENGTHS) + 1)


def test_alone_there_is_nothing_to_tell():
    assert (workers.count(), workers.rank(), workers.gather("x")) == (1, 0, ["x"])
    assert workers.add_up(torch.ones(2)).tolist() == [1, 1]
