"""The same parity as on the CPU, with thinc's CuPy operations and torch on the GPU."""

from copy import deepcopy

import numpy
import pytest
import torch
from thinc.api import Adam, prefer_gpu, to_numpy, use_ops

from conftest import random_docs, save_docs
from test_layers import ALL, LENGTHS, WITHOUT_EMPTY, both
from zero_copy import store
from zero_copy.corpus import PackedBatch, ResidentCorpus
from zero_copy.training import why_no_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
]


@pytest.fixture
def gpu():
    prefer_gpu()
    with use_ops("cupy"):
        yield torch.device("cuda", 0)


@pytest.mark.parametrize("name", WITHOUT_EMPTY)
def test_updates_on_the_gpu(gpu, nlp, tmp_path, name):
    docs = random_docs(nlp, LENGTHS)
    store.pack(save_docs(tmp_path / "a.spacy", docs), tmp_path / "a.safetensors")
    corpus = ResidentCorpus(store.read(tmp_path / "a.safetensors"), gpu)
    batch = PackedBatch(corpus, numpy.arange(len(docs)))
    stock, packed, examples, packed_examples = both(nlp, deepcopy(ALL[name]), docs, batch)
    sgd, packed_sgd = Adam(0.01), Adam(0.01)
    for _ in range(10):
        stock.update(examples, sgd=sgd)
        packed.update(packed_examples, sgd=packed_sgd)
    expected = to_numpy(stock.predict(docs))
    ours = packed.predict([packed_examples[0].predicted])[0]
    assert ours.device == gpu
    numpy.testing.assert_allclose(ours.cpu().numpy(), expected, rtol=1e-2, atol=1e-3)
