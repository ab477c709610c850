"""The lowerings of PyTorch modules that thinc wraps: the module itself, on our parameters."""

from typing import Any

import torch
from thinc.api import Model
from torch.func import functional_call

from zero_copy.errors import UserError
from zero_copy.lowering import Rows, Run, lowers
from zero_copy.parameters import modules_of
from zero_copy.sequence_layers import Padded


def refuse_others(model: Model) -> None:
    """Refuse modules that compute in half precision, and compiled ones.

    model (Model): The layer.
    RAISES (UserError): If it has `mixed_precision`, or wraps a TorchScript module.
    """
    way = "train this component from spacy.Corpus.v1 with spaCy's own factory."
    for shim, module in modules_of(model):
        if getattr(shim, "_mixed_precision", False):
            raise UserError(
                f"Layer {model.name!r} wraps a PyTorch module with mixed_precision = true, which "
                "can't be lowered",
                f"Set it to false, or {way}",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"Layer {model.name!r} wraps a TorchScript module, which can't be lowered",
                f"Wrap the module that it was made from, or {way}",
            )


def call(model: Model, inputs: tuple, run: Run) -> Any:
    """What a wrapped module computes.

    model (Model): The layer.
    inputs (tuple): The module's arguments.
    run (Run): The pass.
    RETURNS (Any): What the module returns.
    """
    ((_, module),) = modules_of(model)
    module.train(run.is_train)
    output = functional_call(module, run.parameters.of_module(module), inputs)
    module.train()  # as thinc leaves it
    return output


@lowers("thinc.layers.pytorchwrapper.convert_pytorch_default_inputs", check=refuse_others)
def pytorch(model: Model, X: Any, run: Run) -> Any:
    if isinstance(X, Rows):
        # A module may look at other rows than its own, so equal tokens need not stay equal.
        return Rows(call(model, (run.tokens(X),), run), False)
    return call(model, (X,), run)


@lowers("thinc.layers.pytorchwrapper.convert_rnn_inputs", check=refuse_others)
def pytorch_rnn(model: Model, X: Padded, run: Run) -> Padded:
    return Padded(call(model, (X.data, None), run)[0])
