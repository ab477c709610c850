"""How to add an architecture, and a layer with its lowering: word vectors plus a learned table.

A pipeline that was trained with it needs this file to be loaded, and nothing else of this project:
`spacy package` puts it into the wheel.
"""

from collections.abc import Callable
from contextlib import suppress

from spacy import registry
from spacy.ml.featureextractor import FeatureExtractor
from spacy.ml.staticvectors import StaticVectors
from spacy.tokens import Doc
from thinc.api import HashEmbed, Model, chain, list2ragged, ragged2list, with_array
from thinc.types import Floats2d, Ragged


@registry.architectures("zero_copy.StaticPlusLearned.v1")
def create_static_plus_learned(
    width: int, rows: int, attr: str = "NORM"
) -> Model[list[Doc], list[Floats2d]]:
    """Embed a token by its word vector, mapped to a width, plus what training learns about it.

    width (int): Width of the output.
    rows (int): Rows of the learned table.
    attr (str): The attribute whose values are learned.
    RETURNS (Model[List[Doc], List[Floats2d]]): For the `embed` of `spacy.Tok2Vec.v2`.
    """
    table: Model = with_array(HashEmbed(width, rows, column=0, seed=8))
    learned: Model = chain(FeatureExtractor([attr]), list2ragged(), table)
    return chain(sum_of(StaticVectors(width), learned), ragged2list())


def sum_of(*layers: Model[list[Doc], Ragged]) -> Model[list[Doc], Ragged]:
    """The sum of several embeddings."""
    return Model("sum_of", forward, init=init, layers=layers)


def init(model: Model, X: list[Doc] | None = None, Y: Ragged | None = None) -> None:
    for layer in model.layers:
        layer.initialize(X, Y)


def forward(model: Model, docs: list[Doc], is_train: bool) -> tuple[Ragged, Callable]:
    outputs, callbacks = zip(*(layer(docs, is_train) for layer in model.layers), strict=True)

    def backprop(d_output: Ragged) -> list[Doc]:
        for callback in callbacks:
            callback(d_output)
        return docs

    return Ragged(sum(output.data for output in outputs), outputs[0].lengths), backprop


with suppress(ImportError):  # where the pipeline is only used, zero_copy is not there
    from zero_copy.lowering import Rows, Run, lowers

    @lowers(f"{__name__}.forward")
    def lowered(model: Model, docs: None, run: Run) -> Rows:
        first, *others = run.aligned([run(layer, docs) for layer in model.layers])
        return Rows(sum((other.data for other in others), first.data), first.per_type)
