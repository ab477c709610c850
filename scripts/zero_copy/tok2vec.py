"""spaCy's tok2vec, able to train from packed examples, and what it shares with a transformer."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from spacy.language import Language
from spacy.pipeline import Tok2Vec
from spacy.pipeline.tok2vec import DEFAULT_TOK2VEC_MODEL
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer

from zero_copy.corpus import PackedBatch, packed_batches
from zero_copy.lowering import Run, check_lowered
from zero_copy.packed_pipe import Losses, PackedPipe, packed_corpus, sample_docs
from zero_copy.static_vectors import require_vectors


class PackedUpstream(PackedPipe):
    """What a component that others listen to needs beside its parent: one pass for all of them."""

    vocab: Vocab
    listeners: list
    _awaits_gradient = False
    _deferred_sgd: Optimizer | None = None

    @abstractmethod
    def compute(self, batch: PackedBatch, *, is_train: bool) -> torch.Tensor:
        """The vectors of a packed batch.

        batch (PackedBatch): The documents.
        is_train (bool): Whether dropout is applied, and a gradient wanted.
        RETURNS (torch.Tensor): `(rows, width)`; what a row stands for is the component's matter.
        """

    def hand_out(self, batch: PackedBatch, vectors: torch.Tensor) -> Any:
        """What a listener finds for a batch.

        batch (PackedBatch): The documents.
        vectors (torch.Tensor): What `compute` returned, or a leaf in its place.
        RETURNS (Any): What `batch.vectors` holds.
        """
        return vectors

    def backprop(self, vectors: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add to the gradients of the parameters.

        vectors (torch.Tensor): What `compute` returned.
        gradient (torch.Tensor): Of the same shape, summed over all listeners.
        """
        vectors.backward(gradient)

    def predict(self, docs: Iterable[Doc]) -> Any:
        """Vectors of the tokens; of packed Docs they stay on the device, for the listeners."""
        docs = list(docs)
        batches = packed_batches(docs)
        if batches is None:
            self.flush()
            return super().predict(docs)  # type: ignore[misc]
        for batch in batches:
            with torch.no_grad():
                vectors = self.hand_out(batch, self.compute(batch, is_train=False))
            batch.vectors.update({listener.id: vectors for listener in self.listeners})
        return batches

    def set_annotations(self, docs: Iterable[Doc], predictions: Any) -> None:
        """Annotate as the parent does, but for packed Docs, whose vectors stay with the batch."""
        docs = list(docs)
        if packed_batches(docs) is None:
            super().set_annotations(docs, predictions)  # type: ignore[misc]

    def learn(self, batch: PackedBatch, losses: Losses) -> None:
        """Compute the vectors, and give each listener them and a way back for its gradient.

        As in spaCy, the gradients go back through the model when the last listener has sent its,
        and the loss is their square.

        batch (PackedBatch): The documents.
        losses (Dict[str, float]): The losses by name.
        """
        vectors = self.compute(batch, is_train=True)
        leaves = [vectors.detach().requires_grad_() for _ in self.listeners]
        self._awaits_gradient = bool(leaves)

        def send_back(leaf: torch.Tensor) -> None:
            assert leaf.grad is not None
            self._add_loss(losses, leaf.grad.square().sum())
            if leaf is leaves[-1]:
                gradients = [other.grad for other in leaves if other.grad is not None]
                self.backprop(vectors, sum(gradients[1:], gradients[0]))
                self._has_gradient, self._awaits_gradient = True, False
                if self._deferred_sgd is not None:
                    self.finish_update(self._deferred_sgd)

        for listener, leaf in zip(self.listeners, leaves, strict=True):
            batch.vectors[listener.id] = self.hand_out(batch, leaf)
            batch.send_back[listener.id] = partial(send_back, leaf)

    def finish_update(self, sgd: Optimizer) -> None:
        """Update the parameters; `nlp.update` with an optimizer asks for it before the listeners
        have sent their gradients, and is heard when they have."""
        if self._awaits_gradient:
            self._deferred_sgd = sgd
        else:
            self._deferred_sgd = None
            super().finish_update(sgd)


class PackedTok2Vec(PackedUpstream, Tok2Vec):
    """spaCy's Tok2Vec for packed examples: one pass for all its listeners.

    vocab (Vocab): The shared vocab.
    model (Model[List[Doc], List[Floats2d]]): A stock tok2vec model.
    name (str): Name of the component.
    """

    def compute(self, batch: PackedBatch, *, is_train: bool) -> torch.Tensor:
        """The vectors of a packed batch, `(tokens, width)`."""
        parameters = self.parameters_for(batch.corpus, is_train=is_train)
        run = Run(batch, parameters, self.vocab, is_train=is_train)
        return run.tokens(run(self.model))

    def initialize(
        self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None
    ) -> None:
        """Initialize the model from the first documents.

        get_examples (Callable[[], Iterable[Example]]): Packed or ordinary examples.
        nlp (Optional[Language]): The pipeline.
        RAISES (UserError): If a layer of the model has no lowering, or there are no word vectors
                for it.
        """
        corpus = packed_corpus(get_examples)
        if corpus is None:
            super().initialize(get_examples, nlp=nlp)
        else:
            check_lowered(self.model)
            require_vectors(self.model, self.vocab)
            self.model.initialize(X=sample_docs(corpus, self.vocab))


@Language.factory(
    "zero_copy_tok2vec", assigns=["doc.tensor"], default_config={"model": DEFAULT_TOK2VEC_MODEL}
)
def make_tok2vec(nlp: Language, name: str, model: Model) -> PackedTok2Vec:
    """Create a tok2vec that can train from packed examples; settings as for spaCy's `tok2vec`."""
    return PackedTok2Vec(nlp.vocab, model, name)
