"""How to add functions for a transformer: a span getter, an annotation setter, and a callback that
loads a frozen one.

A pipeline that was trained with the first two needs this file to be loaded, and nothing else of
this project: `spacy package` puts it into the wheel.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc, Span

with suppress(ImportError):  # where the pipeline is only used, zero_copy is not there
    import zero_copy.transformer_layers  # noqa: F401  the two registries, without the library
registry: Any = spacy.registry
if not hasattr(registry, "span_getters"):
    import spacy_transformers  # noqa: F401


@registry.span_getters("zero_copy.head_and_tail.v1")
def create_head_and_tail(head: int, tail: int) -> Callable[[Iterable[Doc]], list[list[Span]]]:
    """Read the beginning and the end of long documents only (Sun et al. 2019).

    head (int): Tokens at the beginning.
    tail (int): Tokens at the end.
    RETURNS (Callable[[Iterable[Doc]], List[List[Span]]]): The span getter.
    """
    return partial(head_and_tail, head=head, tail=tail)


def head_and_tail(docs: Iterable[Doc], head: int, tail: int) -> list[list[Span]]:
    """The spans of some documents: one, or two of those that are longer than both together.

    docs (Iterable[Doc]): The documents.
    head (int): Tokens at the beginning.
    tail (int): Tokens at the end.
    RETURNS (List[List[Span]]): The spans of each document, none of one without tokens.
    """
    spans = []
    for doc in docs:
        if len(doc) > head + tail:
            spans.append([doc[:head], doc[len(doc) - tail :]])
        else:
            spans.append([doc[:]] if len(doc) else [])
    return spans


@registry.annotation_setters("zero_copy.span_vectors.v1")
def create_span_vectors() -> Callable[[list[Doc], Any], None]:
    """Keep a vector for each span of a document in `doc.user_data`.

    RETURNS (Callable[[List[Doc], FullTransformerBatch], None]): The annotation setter.
    """
    return set_span_vectors


def set_span_vectors(docs: list[Doc], batch: Any) -> None:
    """Set `doc.user_data["span_vectors"]`: what the transformer makes of a span's first wordpiece,
    which stands for the whole span, `(spans, width)`.

    docs (List[Doc]): The documents.
    batch (FullTransformerBatch): What the transformer has computed for them.
    """
    for doc, data in zip(docs, batch.doc_data, strict=True):
        output = data.model_output.get("last_hidden_state")
        doc.user_data["span_vectors"] = None if output is None else output[:, 0]


@registry.callbacks("zero_copy.load_transformer.v1")
def create_load_transformer(component: str = "transformer") -> Callable[[Language], None]:
    """Load a frozen transformer from its name or folder: spaCy initializes no frozen component.

    component (str): Name of the component.
    RETURNS (Callable[[Language], None]): For `[initialize.before_init]`.
    """

    def load(nlp: Language) -> None:
        transformer: Any = nlp.get_pipe(component)
        transformer.initialize(lambda: [], nlp=nlp)
        for _, other in nlp.components:
            transformer.find_listeners(other)

    return load
