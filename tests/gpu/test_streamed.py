"""A corpus streamed to a GPU: pinned buffers, a stream of their own, and no word out of place."""

import numpy
import pytest
import torch
from thinc.api import Adam, to_numpy

from conftest import random_docs, save_docs
from test_components import PIPELINES, make
from test_streaming import numbered
from zero_copy import store
from zero_copy.batcher import create_batch_by_words
from zero_copy.copying import CudaCopier
from zero_copy.corpus import Corpus, PackedBatch, PackedExample, kept_corpus
from zero_copy.streaming import StreamedCorpus
from zero_copy.training import why_no_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
]


def test_every_batch_has_its_words_however_busy_the_gpu_is(gpu):
    """The GPU falls behind, so that a window is overwritten too soon if nothing waits for it."""
    lengths = numpy.random.default_rng(0).integers(1, 400, 50_000)
    corpus = StreamedCorpus(numbered(lengths.tolist()), gpu, 2**23)
    offsets = torch.from_numpy(store.offsets_of(lengths)).to(gpu)
    order = numpy.random.default_rng(0)
    wrong, matrix = torch.zeros((), device=gpu), torch.rand(4096, 4096, device=gpu)
    windows = 0
    for _ in range(3):
        for part, docs in corpus.shuffled(numpy.arange(len(lengths)), order):
            windows += 1
            for numbers in numpy.array_split(docs, 8):
                for _ in range(20):
                    matrix = matrix @ matrix / 4096
                batch = PackedBatch(part, numbers)
                in_whole = torch.from_numpy(batch.numbers_in_whole).to(gpu)
                shift = offsets[in_whole] - batch.starts
                counter = torch.arange(batch.words, device=gpu)
                expected = counter + shift[batch.doc_of_token]
                wrong += (batch.token_types != expected).sum()
                truths = batch.truths(tuple(corpus.info.labels))
                wrong += (truths != (in_whole % 2)[:, None]).sum()
    assert windows > 20
    assert int(wrong) == 0
    copier = corpus.stage.copier
    assert isinstance(copier, CudaCopier)
    assert all(buffer.is_pinned() for buffer in copier.buffers)
    assert all(place.device == gpu for place in corpus.stage.places)


def test_memory_of_the_gpu_is_flat_over_epochs(gpu):
    corpus = StreamedCorpus(numbered([200] * 20_000), gpu, 2**22)
    order, after = numpy.random.default_rng(0), []
    for _ in range(6):
        for part, docs in corpus.shuffled(numpy.arange(20_000), order):
            assert len(PackedBatch(part, docs[:100]).token_types) == 20_000
        torch.cuda.synchronize()
        after.append(torch.cuda.memory_allocated())
    assert len(set(after[1:])) == 1
    assert sum(place.nbytes for place in corpus.stage.places) <= 2**22


@pytest.mark.parametrize("name", PIPELINES)
def test_training_is_that_of_a_resident_corpus(gpu, nlp, tmp_path, name):
    path = tmp_path / "train.safetensors"
    docs = random_docs(nlp, [9, 30, 4, 1, 50, 17, 8] * 30)
    store.pack(save_docs(tmp_path / "train.spacy", docs), path)
    streamed = Corpus(path, memory=4000)
    first = make(PIPELINES[name])
    batches = [batch.batch for (batch,) in create_batch_by_words(300)(streamed(first))]
    whole = kept_corpus(path, gpu)
    same = [PackedBatch(whole, batch.numbers_in_whole) for batch in batches]
    results = []
    for reader, cut in ((streamed, batches), (Corpus(path), same)):
        pipeline, sgd = make(PIPELINES[name]), Adam(0.01)
        pipeline.initialize(lambda pipeline=pipeline, reader=reader: reader(pipeline))
        for batch in cut:
            pipeline.update([PackedExample(batch, pipeline.vocab)], sgd=False)
            for _, component in pipeline.pipeline:
                component.finish_update(sgd)
        for _, component in pipeline.pipeline:
            component.flush()
        layers = [layer for _, component in pipeline.pipeline for layer in component.model.walk()]
        results.append(
            [to_numpy(layer.get_param(name)) for layer in layers for name in layer.param_names]
        )
    # Sums on a GPU are added up in no fixed order.
    for one, other in zip(*results, strict=True):
        numpy.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)
