"""The same parity as on the CPU, with thinc's CuPy operations and torch on the GPU."""

from copy import deepcopy

import numpy
import pytest
import torch
from thinc.api import Adam, to_numpy

from conftest import random_docs, save_docs
from test_layers import ALL, LENGTHS, WITHOUT_EMPTY, both
from test_transformer import copies, initialize, listener, module_of, pipeline, reduce
from test_wordpieces import GETTERS
from zero_copy import store
from zero_copy.corpus import PackedBatch, PackedExample, ResidentCorpus
from zero_copy.training import why_no_gpu
from zero_copy.wordpieces import add_wordpieces, layout_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_gpu() is not None, reason=str(why_no_gpu())),
]


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


@pytest.mark.parametrize("half", [None, "bfloat16", "float16"])
def test_updates_of_a_transformer_on_the_gpu(gpu, tiny_transformer, tmp_path, half):
    """In float16 with thinc's gradient scaler, as spaCy does."""
    heads = {"textcat": reduce(listener())}
    settings = {} if half is None else {"half_precision": half}
    ours = pipeline(tiny_transformer, GETTERS["overlapping"], heads, **settings)
    stock = pipeline(tiny_transformer, GETTERS["overlapping"], heads, prefix="")
    docs = random_docs(ours, LENGTHS)
    initialize(ours, stock, docs)
    for nlp in (ours, stock):
        wrapper = nlp.get_pipe("transformer").model.layers[0].shims[0]
        wrapper._mixed_precision = wrapper._grad_scaler._enabled = half is not None
    path = tmp_path / "a.safetensors"
    layout = layout_of(ours)
    assert layout is not None
    source = save_docs(tmp_path / "a.spacy", docs)
    store.pack(source, path, wordpieces=add_wordpieces(ours, layout))
    batch = PackedBatch(ResidentCorpus(store.read(path), gpu), numpy.arange(len(docs)))
    sgd, stock_sgd = Adam(0.003), Adam(0.003)
    for _ in range(5):
        ours.update([PackedExample(batch, ours.vocab)], sgd=sgd)
        stock.update(copies(stock.vocab, docs), sgd=False)
        for _, component in stock.pipeline[1:]:
            component.finish_update(stock_sgd)
    ours.get_pipe("transformer").flush()
    close = {"rtol": 1e-2, "atol": 2e-3} if half is None else {"rtol": 0.1, "atol": 0.02}
    for (name, tensor), (_, other) in zip(
        module_of(ours).named_parameters(), module_of(stock).named_parameters(), strict=True
    ):
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, other, **close)
