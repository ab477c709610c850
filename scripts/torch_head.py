"""How to train a part written in PyTorch: a text classifier with a head of one's own.

Wrapped in thinc's PyTorchWrapper a module needs no lowering. This file knows nothing of this
project, so that a pipeline goes anywhere with it: `spacy package` puts it into the wheel.
"""

from spacy import registry
from spacy.tokens import Doc
from thinc.api import (
    Linear,
    Logistic,
    Model,
    PyTorchWrapper_v2,
    Softmax,
    chain,
    concatenate,
    list2ragged,
    reduce_max,
    reduce_mean,
    with_array,
)
from thinc.types import Floats2d
from torch import nn


@registry.architectures("zero_copy.TorchHead.v1")
def create_torch_head(
    tok2vec: Model[list[Doc], list[Floats2d]],
    exclusive_classes: bool,
    hidden_width: int,
    dropout: float,
    nO: int | None = None,
) -> Model[list[Doc], Floats2d]:
    """Classify a document by the maximum and the mean of what a network makes of its tokens.

    tok2vec (Model[List[Doc], List[Floats2d]]): Vectors of the tokens.
    exclusive_classes (bool): Whether a document has exactly one label.
    hidden_width (int): Width of the hidden layer.
    dropout (float): Dropout of the hidden layer, which `[training] dropout` does not reach.
    nO (Optional[int]): Number of labels; by default that of the corpus.
    RETURNS (Model[List[Doc], Floats2d]): Scores, `(documents, labels)`.
    """
    # The module gets `(tokens, width)`, the tokens of all documents of a batch.
    network = nn.Sequential(
        nn.Linear(tok2vec.get_dim("nO"), hidden_width),
        nn.GELU(),
        nn.LayerNorm(hidden_width),
        nn.Dropout(dropout),
    )
    hidden: Model = with_array(PyTorchWrapper_v2(network))
    pooled: Model = concatenate(reduce_max(), reduce_mean())
    # The last layer is thinc's, which takes its width from the labels.
    output = Softmax(nO) if exclusive_classes else chain(Linear(nO), Logistic())
    model: Model = chain(tok2vec, list2ragged(), hidden, pooled, output)
    model.attrs["multi_label"] = not exclusive_classes
    return model
