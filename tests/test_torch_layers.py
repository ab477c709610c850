"""PyTorch modules that thinc wraps: lowered to themselves, updated as thinc would."""

from copy import deepcopy

import numpy
import pytest
import torch
from spacy.training import Example
from spacy.util import registry
from thinc.api import (
    Adam,
    Model,
    PyTorchWrapper_v2,
    chain,
    pytorch_to_torchscript_wrapper,
    with_array,
)
from thinc.layers.pytorchwrapper import convert_pytorch_default_inputs
from torch import nn

from conftest import random_docs
from test_layers import LENGTHS, assert_parity, both, hash_embed_cnn, tok2vec
from test_sequence_layers import lstm
from zero_copy.errors import UserError
from zero_copy.lowering import check_lowered
from zero_copy.packed_pipe import _has_thinc_gradient


def torch_head(exclusive=True, embedding=None):
    return {
        "@architectures": "zero_copy.TorchHead.v1",
        "tok2vec": embedding or hash_embed_cnn(),
        "exclusive_classes": exclusive,
        "hidden_width": 6,
        "dropout": 0.0,
    }


@registry.architectures("test.TokenNetwork.v1")
def token_network(embed: Model) -> Model:
    """A module that looks at all tokens of the batch: the mean over it is taken off."""

    class Centre(nn.Linear):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return super().forward(X - X.mean(0))

    model = chain(embed, with_array(PyTorchWrapper_v2(Centre(8, 8))))
    model.set_dim("nO", 8)
    return model


CONFIGS = {
    "head": torch_head(),
    "head-multilabel": torch_head(exclusive=False),
    "head-on-lstm": torch_head(embedding=lstm()),
    "tokens": torch_head(
        embedding={"@architectures": "test.TokenNetwork.v1", "embed": tok2vec()["embed"]}
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parity(nlp, pack_docs, name):
    docs = random_docs(nlp, LENGTHS)
    assert_parity(nlp, docs, pack_docs(docs), CONFIGS[name])


def module_values(component) -> list[numpy.ndarray]:
    shims = (shim for layer in component.model.walk() for shim in layer.shims)
    return [value.numpy().copy() for shim in shims for value in shim._model.state_dict().values()]


def test_ten_updates_and_averages(nlp, pack_docs):
    """As in thinc, evaluation with averages leaves a module its last values."""
    docs = random_docs(nlp, LENGTHS)
    config = torch_head(embedding=lstm(depth=2))
    stock, packed, examples, packed_examples = both(nlp, config, docs, pack_docs(docs))
    optimizers = [Adam(0.01, L2=0.1, grad_clip=0.5) for _ in range(2)]
    before = module_values(packed)
    for _ in range(10):
        stock.update(examples, sgd=optimizers[0])
        packed.update(packed_examples, sgd=optimizers[1])
    packed.flush()
    after = module_values(packed)
    for expected, ours, earlier in zip(module_values(stock), after, before, strict=True):
        assert numpy.abs(ours - earlier).max() > 1e-3
        numpy.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4)
    with stock.model.use_params(optimizers[0].averages):
        expected = stock.model.predict(docs)
    for _ in packed.use_params(optimizers[1].averages):
        ours = packed.predict([packed_examples[0].predicted])[0]
    numpy.testing.assert_allclose(ours.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_saved_module_is_small_and_comes_back(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    stock, packed, _, packed_examples = both(nlp, torch_head(), docs, pack_docs(docs))
    for _ in range(3):
        packed.update(packed_examples, sgd=Adam(0.1))
    expected = packed.predict([packed_examples[0].predicted])[0]
    content = packed.to_bytes()
    assert len(content) < 1.1 * len(stock.to_bytes())
    stock.from_bytes(content)
    numpy.testing.assert_allclose(stock.predict(docs), expected, rtol=1e-4, atol=1e-5)


def test_loaded_values_replace_the_trained_ones(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    stock, packed, _, packed_examples = both(nlp, torch_head(), docs, pack_docs(docs))
    first = packed.predict([packed_examples[0].predicted])[0]
    content = stock.to_bytes()
    packed.update(packed_examples, sgd=Adam(0.1))
    packed.from_bytes(content)
    again = packed.predict([packed_examples[0].predicted])[0]
    numpy.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-6)


def test_stock_updates_in_between_are_seen(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    stock, packed, examples, packed_examples = both(nlp, torch_head(), docs, pack_docs(docs))
    optimizers = [Adam(0.01) for _ in range(2)]
    for component, sgd, turns in (
        (stock, optimizers[0], [examples] * 3),
        (packed, optimizers[1], [packed_examples, [Example(d, d) for d in docs], packed_examples]),
    ):
        for turn in turns:
            component.update(turn, sgd=sgd)
    packed.flush()
    for ours, expected in zip(module_values(packed), module_values(stock), strict=True):
        numpy.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4)
    assert _has_thinc_gradient(packed.model)


def test_module_knows_whether_it_trains(nlp, pack_docs):
    docs = random_docs(nlp, LENGTHS)
    config = torch_head() | {"dropout": 0.5}
    _, packed, _, examples = both(nlp, config, docs, pack_docs(docs))
    predicted = [packed.predict([examples[0].predicted])[0] for _ in range(2)]
    assert torch.equal(*predicted)
    losses = [float(packed.update(examples)["textcat"]) for _ in range(2)]
    assert losses[0] != losses[1]


def test_mixed_precision_and_scripts_are_refused_by_name():
    layer = PyTorchWrapper_v2(nn.Linear(2, 2), mixed_precision=True)
    with pytest.raises(UserError, match="mixed_precision"):
        check_lowered(layer)
    with pytest.raises(UserError, match="TorchScript"):
        check_lowered(pytorch_to_torchscript_wrapper(PyTorchWrapper_v2(nn.Linear(2, 2))))


def test_conversions_of_ones_own_are_refused_by_name():
    def to_module(model, X, is_train):
        return convert_pytorch_default_inputs(model, X, is_train)

    layer = PyTorchWrapper_v2(nn.Linear(2, 2), convert_inputs=to_module)
    with pytest.raises(UserError, match="No lowering") as refused:
        check_lowered(deepcopy(layer))
    assert "to_module" in str(refused.value)
