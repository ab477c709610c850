"""Lowering: running a stock thinc model as torch operations on packed columns.

A model is run by walking its own tree. For each layer the function registered for it computes what
the layer's `forward` computes, for a whole packed batch at once, and torch keeps the gradient. The
functions have the form of thinc's own `forward`:

    @lowers("my_module.forward")
    def my_layer(model, X, run):
        return torch.tanh(X @ run.parameter(model, "W").t())
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from spacy.vocab import Vocab
from thinc.api import Model
from torch import Tensor

from zero_copy import kernels
from zero_copy.corpus import PackedBatch
from zero_copy.errors import UserError
from zero_copy.parameters import Parameters

Lowering = Callable[[Model, Any, "Run"], Any]
Check = Callable[[Model], None]
_lowerings: dict[str, Lowering] = {}
_checks: dict[str, Check] = {}


class Rows(NamedTuple):
    """What a layer computes for tokens: a row for each, or for each distinct type of them.

    Until a layer looks at neighbours or draws a dropout mask, equal tokens have equal rows, so on a
    CPU they are computed once for each type (see `rows_per_type`).

    data (Tensor): `(tokens, width)` or `(types, width)`.
    per_type (bool): Which of the two.
    """

    data: Tensor
    per_type: bool


def rows_per_type(device: torch.device) -> bool:
    """Whether embeddings are computed once for each distinct type of a batch.

    A batch of 1,000 words has some 450 types, and less work is faster on a CPU. How many a batch
    has, a GPU would have to be asked, and the host would wait for the answer at every step; a row
    for every token costs it less than that.

    device (torch.device): Where the batch is.
    RETURNS (bool): False for a row for each token.
    """
    return device.type == "cpu"


class Run:
    """One pass of a model over a packed batch: what a lowering may use beside its input.

    batch (PackedBatch): The documents.
    parameters (Parameters): The model's parameters.
    vocab (Vocab): The pipeline's vocab, which has the word vectors.
    is_train (bool): Whether dropout is applied.
    """

    def __init__(
        self, batch: PackedBatch, parameters: Parameters, vocab: Vocab, *, is_train: bool
    ) -> None:
        self.batch = batch
        self.parameters = parameters
        self.vocab = vocab
        self.is_train = is_train

    def __call__(self, model: Model, X: Any = None) -> Any:
        """Run a layer, as thinc's `layer(X, is_train)` does.

        model (Model): The layer.
        X (Any): Its input; the first layers take theirs from the batch.
        RETURNS (Any): What its lowering returns.
        RAISES (UserError): If no lowering is registered for the layer.
        """
        return lowering_of(model)(model, X, self)

    @property
    def per_type(self) -> bool:
        """Whether a row of `types` is one of the batch's distinct types, or one of its tokens."""
        return rows_per_type(self.batch.corpus.device)

    @property
    def types(self) -> Tensor:
        """The types for which embeddings have a row each, int32, `(types,)` or `(tokens,)`."""
        return self.batch.types[0] if self.per_type else self.batch.token_types

    def parameter(self, model: Model, name: str) -> Tensor:
        """A parameter of a layer.

        model (Model): The layer.
        name (str): Name of the parameter.
        RETURNS (Tensor): In the layer's own shape; of a bag of words see Parameters.
        """
        return self.parameters[model.id, name]

    def gradient(self, model: Model, name: str) -> Tensor:
        """Where the gradient of a parameter is collected, for operations that add to it themselves.

        model (Model): The layer.
        name (str): Name of the parameter.
        RETURNS (Tensor): In the shape of the parameter.
        """
        return self.parameters.gradient(self.parameters.by_key[model.id, name])

    def tokens(self, X: Rows) -> Tensor:
        """The rows of all tokens.

        X (Rows): Rows of tokens or types.
        RETURNS (Tensor): `(tokens, width)`.
        """
        return X.data.index_select(0, self.batch.types[1]) if X.per_type else X.data

    def aligned(self, outputs: list[Rows]) -> list[Rows]:
        """Rows that can be put side by side: those of types, if all are, or else of tokens.

        outputs (List[Rows]): What several layers have computed.
        RETURNS (List[Rows]): The same, all of types or all of tokens.
        """
        if len({output.per_type for output in outputs}) == 1:
            return outputs
        return [Rows(self.tokens(output), False) for output in outputs]

    def dropout(self, X: Tensor, rate: float | None) -> Tensor:
        """Drop elements at random while training, each scaled so that the mean stays.

        X (Tensor): Any shape.
        rate (Optional[float]): The share to drop.
        RETURNS (Tensor): X where nothing is to be dropped.
        """
        if not self.is_train or not rate or rate <= 0:
            return X
        return X * kernels.dropout_mask(tuple(X.shape), rate, X.device)


def lowers(forward: str, check: Check | None = None) -> Callable[[Lowering], Lowering]:
    """Register the lowering of a layer.

    The name is that of the layer's `forward` function, not of the layer: those of combinators
    contain their children's (`maxout>>layernorm>>dropout`).

    forward (str): Module and name of the function, `thinc.layers.maxout.forward` say; for a
        wrapped PyTorch module with conversions of its own, of the function that converts.
    check (Optional[Callable[[Model], None]]): Called with each such layer before training starts,
        to raise a UserError for settings that can't be lowered.
    RETURNS (Callable[[Lowering], Lowering]): Decorator for a function of the layer, its input and
        the Run, which returns the layer's output.
    """

    def register(function: Lowering) -> Lowering:
        _lowerings[forward] = function
        if check is not None:
            _checks[forward] = check
        return function

    return register


def forward_name(model: Model) -> str:
    """The name under which a layer's lowering is registered.

    All wrapped PyTorch modules have one `forward`, and differ in the functions that convert their
    input and output: they go by these, and by one that is not thinc's own if there is any.

    model (Model): The layer.
    RETURNS (str): Module and name of its `forward` function, or of one that converts.
    """
    converters = [model.attrs.get("convert_inputs"), model.attrs.get("convert_outputs")]
    names = [_name(function) for function in converters if function is not None]
    names.sort(key=lambda name: name.startswith("thinc."))
    return names[0] if names else _name(model._func)


def _name(function: Callable) -> str:
    function = getattr(function, "func", function)  # of a functools.partial
    return f"{function.__module__}.{function.__qualname__}"


def lowering_of(model: Model) -> Lowering:
    """The lowering of a layer.

    model (Model): The layer.
    RETURNS (Lowering): The registered function.
    RAISES (UserError): If there is none.
    """
    try:
        return _lowerings[forward_name(model)]
    except KeyError:
        raise UserError(
            f"No lowering for layer {model.name!r}",
            f'Register one with @lowers("{forward_name(model)}") in a file that '
            "scripts/functions.py imports, or train this component from spacy.Corpus.v1 with "
            "spaCy's own factory.",
        ) from None


def check_lowered(model: Model) -> None:
    """Make sure that every layer of a model has a lowering, and one for its settings.

    model (Model): The model.
    RAISES (UserError): If one has none, naming it.
    """
    for layer in model.walk():
        lowering_of(layer)
        check = _checks.get(forward_name(layer))
        if check is not None:
            check(layer)


def predict(model: Model, batch: PackedBatch, parameters: Parameters, vocab: Vocab) -> Any:
    """Run a model over a packed batch without gradients or dropout.

    model (Model): The model.
    batch (PackedBatch): The documents.
    parameters (Parameters): Its parameters.
    vocab (Vocab): The pipeline's vocab.
    RETURNS (Any): Scores `(documents, labels)` or rows of token vectors.
    """
    with torch.no_grad():
        return Run(batch, parameters, vocab, is_train=False)(model)
