"""A transformer's outputs on their way to the layers that listen to it, and what a config names.

spacy-transformers and Hugging Face's library take seconds to import: they are imported when a
config has a transformer, and not before.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from catalogue import Registry
from spacy import registry
from spacy.language import Language
from spacy.tokens import Doc
from thinc.api import Model
from thinc.types import Floats2d, Ragged
from torch import Tensor

from zero_copy import kernels
from zero_copy.errors import UserError
from zero_copy.lowering import Rows, Run, lowers
from zero_copy.wordpieces import STRIDED_SPANS, PaddedSpans

LISTENER = "spacy-transformers.TransformerListener.v1"
OUR_LISTENER = "zero_copy.TransformerListener.v1"
SCHEDULE = "grad_factor_schedule"


class Wordpieces(NamedTuple):
    """What a transformer has computed for a packed batch.

    data (Tensor): A row for each wordpiece and each padding, `(rows, width)`.
    spans (PaddedSpans): Where everything is in it.
    """

    data: Tensor
    spans: PaddedSpans


class TransformersRegistry(Registry):
    """Functions of one of spacy-transformers' own registries, which it makes when it is imported.

    Whoever asks for a function gets it imported first; whoever registers one does not.
    """

    def get(self, name: str) -> Any:
        """The function of a name."""
        import spacy_transformers  # noqa: F401

        return super().get(name)

    def __contains__(self, name: str) -> bool:
        import spacy_transformers  # noqa: F401

        return super().__contains__(name)


for kind in ("span_getters", "annotation_setters"):
    if not hasattr(registry, kind):
        setattr(registry, kind, TransformersRegistry(("spacy", kind), entry_points=True))


@lowers("spacy_transformers.layers.listener.forward")
def listener(model: Model, X: None, run: Run) -> Any:
    """The rows that a transformer has computed for this batch: of its wordpieces, or of its tokens
    already if it is frozen."""
    if model.id not in run.batch.vectors:
        raise UserError(
            "A listener's transformer has computed nothing for this batch",
            "Put the transformer before it in [nlp] pipeline; one in [training] frozen_components "
            "must stand in annotating_components too.",
        )
    return run.batch.vectors[model.id]


@lowers("spacy_transformers.layers.trfs2arrays.forward")
def pool_wordpieces(model: Model, X: Wordpieces | Rows, run: Run) -> Rows:
    """From rows of wordpieces to rows of tokens, by the layer's own pooling."""
    if isinstance(X, Rows):
        return X
    rows = X.data.index_select(0, X.spans.row_of_aligned)
    if run.is_train and model.attrs["grad_factor"] != 1.0:
        rows = kernels.ScaleGradient.apply(rows, model.attrs["grad_factor"])
    # To the pooling a token is what a document is to other layers.
    pooling = Run(X.spans.segments, run.parameters, run.vocab, is_train=run.is_train)  # type: ignore[arg-type]
    return Rows(pooling(model.layers[0], Rows(rows, False)), False)


@registry.architectures(OUR_LISTENER)
def create_listener(
    pooling: Model[Ragged, Floats2d],
    grad_factor: float | Iterator[float] = 1.0,
    upstream: str = "*",
) -> Model[list[Doc], list[Floats2d]]:
    """A `spacy-transformers.TransformerListener.v1` whose `grad_factor` may be a schedule.

    The pipeline that is saved has the stock listener, with 1.0 in its config for a schedule.

    pooling (Model[Ragged, Floats2d]): From the rows of a token's wordpieces to the token's.
    grad_factor (Union[float, Iterator[float]]): What gradients are multiplied by before they go to
        the transformer, or a schedule of it: a value an update.
    upstream (str): Name of the transformer component, or `*` for any.
    RETURNS (Model[List[Doc], List[Floats2d]]): For the `tok2vec` of a text classifier.
    """
    from spacy_transformers.architectures import transformer_listener_tok2vec_v1

    if isinstance(grad_factor, float | int):
        return transformer_listener_tok2vec_v1(pooling, float(grad_factor), upstream)
    model = transformer_listener_tok2vec_v1(pooling, next(grad_factor), upstream)
    model.layers[1].attrs[SCHEDULE] = GradFactor(grad_factor, model.layers[1].attrs["grad_factor"])
    return model


class GradFactor:
    """A schedule of gradient factors.

    schedule (Iterator[float]): The factors from the second update on.
    first (float): The factor of the first.
    """

    def __init__(self, schedule: Iterator[float], first: float) -> None:
        self.schedule = schedule
        self.upcoming = first

    def __next__(self) -> float:
        factor, self.upcoming = self.upcoming, next(self.schedule)
        return factor


@Language.factory(
    "zero_copy_transformer",
    assigns=["doc._.trf_data"],
    default_config={
        "max_batch_items": 4096,
        "half_precision": "bfloat16",
        "set_extra_annotations": {
            "@annotation_setters": "spacy-transformers.null_annotation_setter.v1"
        },
        "model": {
            "@architectures": "spacy-transformers.TransformerModel.v3",
            "name": "roberta-base",
            "tokenizer_config": {"use_fast": True},
            "transformer_config": {},
            "mixed_precision": False,
            "grad_scaler_config": {},
            "get_spans": STRIDED_SPANS,
        },
    },
)
def make_transformer(
    nlp: Language,
    name: str,
    model: Model,
    set_extra_annotations: Callable,
    max_batch_items: int,
    half_precision: Literal["bfloat16", "float16"],
) -> Any:
    """Create a transformer that can train from packed examples; settings as for `transformer`.

    model (Model[List[Doc], FullTransformerBatch]): A stock transformer model.
    set_extra_annotations (Callable[[List[Doc], FullTransformerBatch], None]): As in spaCy.
    max_batch_items (int): The largest number of wordpieces, padding included, that go through the
        model at a time.
    half_precision (str): What `mixed_precision` computes in from packed examples: bfloat16, whose
        gradients need no scaling, or float16, as spaCy does with `grad_scaler_config`.
    RETURNS (PackedTransformer): The component.
    """
    from zero_copy.transformer import PackedTransformer

    return PackedTransformer(
        *(nlp.vocab, model, set_extra_annotations),
        name=name,
        max_batch_items=max_batch_items,
        half_precision=half_precision,
    )
