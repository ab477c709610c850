"""Between two evaluations nothing of the corpus goes to the GPU, and nothing waits for it."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from conftest import random_lengths, save_corpus
from copies import NUMBER_BYTES, WARM_UP, missed_copies, watch_known, watch_steps
from loop import Training
from zero_copy.training import why_no_gpu
from zero_copy.transfers import watched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
]
CONFIGS = ("bow", "cnn", "shared", "ensemble")
STEPS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    splits = {"train": random_lengths(200, 2_000), "dev": random_lengths(200, 200, seed=1)}
    return save_corpus(tmp_path_factory.mktemp("corpus"), splits)


def test_known_copies_are_seen(gpu):
    assert missed_copies(watch_known(gpu.index)) is None


@pytest.mark.parametrize("config", CONFIGS)
def test_a_step_copies_the_documents_numbers_and_waits_for_nothing(gpu, corpus, config):
    seen, documents = watch_steps(Training("zero_copy", config, corpus, gpu.index), STEPS)
    assert seen.to_device_bytes == NUMBER_BYTES * documents
    assert seen.to_device == STEPS
    assert seen.to_host == 0
    assert seen.pageable == 0
    assert seen.waits == 0
    assert seen.kernels > 0


@pytest.mark.parametrize("config", CONFIGS)
def test_torch_s_own_check_finds_no_wait(gpu, corpus, config):
    batches = Training("zero_copy", config, corpus, gpu.index).batches()
    for _ in islice(batches, WARM_UP):
        pass
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(2, device=gpu).sum().item()
        for _ in islice(batches, STEPS):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("config", CONFIGS)
def test_an_evaluation_brings_scores_back_once(gpu, corpus, config):
    training = Training("zero_copy", config, corpus, gpu.index)
    next(training.batches())
    training.evaluate()
    examples = list(training.dev_corpus(training.nlp))
    seen = watched(lambda: training.nlp.evaluate(examples))
    # Scores and truths of the one classifier.
    assert seen.to_host == 2
    assert seen.to_device <= len(examples)
