"""spaCy's text classifiers and tok2vec, able to train from packed examples.

Given ordinary examples or Docs each component is its parent. Given packed ones it runs the same
model lowered, on the same parameters.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TextCategorizer, Tok2Vec
from spacy.pipeline.textcat import DEFAULT_SINGLE_TEXTCAT_MODEL
from spacy.pipeline.textcat_multilabel import (
    DEFAULT_MULTI_TEXTCAT_MODEL,
    MultiLabel_TextCategorizer,
)
from spacy.pipeline.tok2vec import DEFAULT_TOK2VEC_MODEL
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.util import minibatch
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer, set_dropout_rate, torch2xp
from thinc.types import Floats2d

from zero_copy import workers
from zero_copy.corpus import (
    USER_DATA_KEY,
    PackedBatch,
    ResidentCorpus,
    ops_device,
    packed_batches,
)
from zero_copy.errors import UserError
from zero_copy.imbalance import OFF, ClassWeights, Imbalance
from zero_copy.layers import compact_rows
from zero_copy.lowering import Run, check_lowered, predict
from zero_copy.optimizer import Updater
from zero_copy.parameters import Array, Parameters, modules_of, torch_view
from zero_copy.scoring import score_cats
from zero_copy.static_vectors import require_vectors
from zero_copy.store import MISSING

# Documents that a model sees at initialization, to infer its dimensions; spaCy takes as many.
SAMPLE_SIZE = 10
# Examples whose categories are counted at a time.
SAMPLES_AT_ONCE = 1000
Losses = dict[str, Any]


class Evaluation(NamedTuple):
    """What came out of an evaluation.

    losses (Dict[str, float]): The components' losses since the last one.
    scores (Dict[str, Any]): All scores.
    """

    losses: dict[str, float]
    scores: dict[str, Any]


class PackedPipe:
    """What a trainable component needs so as to train from packed examples, beside its parent.

    The flat parameters are made at the first packed batch. From then on thinc holds views of them,
    and what it can't share is written back (`flush`) before anything of the parent's reads it.
    """

    trains_packed = True
    model: Model
    name: str
    _parameters: Parameters | None = None
    _updater: Updater | None = None
    _trained_on: tuple[ResidentCorpus, ...] = ()
    _has_gradient = False
    _losses: Losses | None = None
    # Evaluations of a training that is being resumed: see `pass_over`.
    _past: Iterator[Evaluation] | None = None

    def check_model(self) -> None:
        """Make sure that the model can run on packed batches.

        RAISES (UserError): If a layer has no lowering, naming it.
        """
        check_lowered(self.model)

    def parameters_for(self, corpus: ResidentCorpus, *, is_train: bool = False) -> Parameters:
        """The flat parameters, with all that the corpus needs of them.

        corpus (ResidentCorpus): Where the next batch is from.
        is_train (bool): Whether it will change the parameters.
        RETURNS (Parameters): Made anew if thinc holds other arrays by now, or if training on this
            corpus can change weights that were left out.
        """
        known = self._parameters
        if known is None or not (known.replaced is not None or known.are_current):
            return self._take_over(corpus)
        if is_train and corpus not in self._trained_on:
            self.flush()
            if known.lacks(compact_rows(self.model, corpus)):
                return self._take_over(corpus)
            self._trained_on += (corpus,)
        return known

    def _take_over(self, corpus: ResidentCorpus) -> Parameters:
        self._let_go()
        rows = compact_rows(self.model, corpus)
        self._parameters = Parameters(self.model, ops_device(self.model.ops), rows)
        workers.copy_first(self._parameters.weights)
        self._trained_on = (corpus,)
        return self._parameters

    def _let_go(self) -> None:
        """Leave parameters and the optimizer's state to thinc, in its own form."""
        self.flush()
        if self._updater is not None:
            self._updater.release()
        self._parameters = self._updater = None

    def flush(self) -> None:
        """Write to thinc what it does not share."""
        if self._parameters is not None:
            self._parameters.flush()

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Apply the component to a stream; each packed Doc is a batch by itself.

        stream (Iterable[Doc]): Packed or ordinary Docs.
        batch_size (int): How many ordinary Docs to buffer.
        YIELDS (Doc): The Docs, in order.
        """
        if self.is_passing_over:
            yield from stream
            return
        for is_packed, docs in groupby(stream, lambda doc: USER_DATA_KEY in doc.user_data):
            size = 1 if is_packed else batch_size
            yield from super().pipe(docs, batch_size=size)  # type: ignore[misc]

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the component, as its parent does."""
        self.flush()
        super().to_disk(path, exclude=exclude)  # type: ignore[misc]

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """Serialize the component, as its parent does."""
        self.flush()
        return super().to_bytes(exclude=exclude)  # type: ignore[misc]

    def use_params(self, params: dict) -> Iterator[None]:
        """Compute with other parameters, averages say, until the generator goes on."""
        self.flush()
        if self._parameters is None:
            yield from super().use_params(params)  # type: ignore[misc]
            return
        with self._parameters.using(params) as expanded:
            yield from super().use_params(expanded)  # type: ignore[misc]

    def finish_update(self, sgd: Optimizer) -> None:
        """Update the parameters with the gradients of the batches since the last time.

        sgd (Optimizer): thinc's optimizer, whose settings and state are used.
        """
        if self.is_passing_over:
            self._updater_for(sgd)
        elif self._has_gradient:
            assert self._parameters is not None
            # spaCy's gradient of a batch is the sum over its documents, so that of the batches of
            # all workers together is the sum of theirs.
            workers.add_up(self._parameters.gradients)
            self._updater_for(sgd)()
            self._has_gradient = False
        elif _has_thinc_gradient(self.model):
            self._let_go()
            super().finish_update(sgd)  # type: ignore[misc]

    def _updater_for(self, sgd: Optimizer) -> Updater:
        if self._updater is None or self._updater.optimizer is not sgd:
            assert self._parameters is not None
            self._updater = Updater(self._parameters, sgd)
        return self._updater

    def _add_loss(self, losses: Losses, loss: torch.Tensor) -> None:
        # It stays on the device: a float would wait for the step to end.
        losses[self.name] = losses[self.name] + loss
        self._losses = losses

    def _take_part(self, losses: Losses) -> None:
        """Without documents of its own, a worker takes part in the update of all."""
        self._has_gradient, self._losses = True, losses

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the examples; an evaluation is also when the loss comes to the host."""
        past = None if self._past is None else next(self._past)
        if self._losses is not None:
            if past is None:
                loss = torch.as_tensor(self._losses[self.name], device=ops_device(self.model.ops))
                self._losses[self.name] = float(workers.add_up(loss.float()))
            else:
                self._losses[self.name] = past.losses[self.name]
            self._losses = None
        return past.scores if past else super().score(examples, **kwargs)  # type: ignore[misc]

    # Resuming

    @property
    def is_passing_over(self) -> bool:
        """Whether steps are passed over, because a training that is resumed has taken them."""
        return self._past is not None

    def pass_over(self, evaluations: Iterable[Evaluation]) -> None:
        """Take no steps until `load_state`, and score as in the evaluations of before.

        spaCy's loop can't be told to begin in the middle. So it goes through the steps again, which
        brings its counters, schedules and batches to where they were, and nothing is computed.

        evaluations (Iterable[Evaluation]): What came out of each.
        """
        self._past = iter(evaluations)

    def _pass_over(self, batches: list[PackedBatch], losses: Losses) -> Losses:
        self.parameters_for(batches[0].corpus, is_train=True)
        self._losses = losses
        return losses

    def state(self) -> dict[str, torch.Tensor]:
        """What training has made of the component.

        RETURNS (Dict[str, torch.Tensor]): Tensors by name, none if it has not been trained.
        """
        if self._updater is None:
            return {}
        assert self._parameters is not None
        modules = self._parameters.by_module
        buffers = [buffer for module in modules for buffer in module.buffers()]
        return {
            "weights": self._parameters.weights,
            **self._updater.state(),
            **{f"buffer{number}": buffer for number, buffer in enumerate(buffers)},
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what training had made of the component.

        state (Dict[str, torch.Tensor]): As `state` returned it; all its tensors must be there.
        """
        self._past = None
        for name, tensor in self.state().items():
            with torch.no_grad():
                tensor.copy_(state[name])
        if self._updater is not None:
            assert self._parameters is not None
            self._updater.load_count(state["updates"])
            self._parameters.is_dirty = True


def _has_thinc_gradient(model: Model) -> bool:
    return any(
        any(layer.has_grad(name) for name in layer.grad_names)
        or any(p.grad is not None for _, module in modules_of(layer) for p in module.parameters())
        for layer in model.walk()
    )


class PackedUpstream(PackedPipe):
    """What a component that others listen to needs beside its parent: one pass for all of them."""

    vocab: Vocab
    listeners: list
    _awaits_gradient = False
    _deferred_sgd: Optimizer | None = None

    def compute(self, batch: PackedBatch, *, is_train: bool) -> torch.Tensor:
        """The vectors of a packed batch.

        batch (PackedBatch): The documents.
        is_train (bool): Whether dropout is applied, and a gradient wanted.
        RETURNS (torch.Tensor): `(rows, width)`; what a row stands for is the component's matter.
        """
        raise NotImplementedError

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

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: Losses | None = None,
    ) -> Losses:
        """Compute the vectors of a batch; the listeners send their gradients back.

        examples (Iterable[Example]): Packed or ordinary examples.
        drop (float): The dropout rate.
        sgd (Optional[Optimizer]): The optimizer, if it is to update when the gradient is there.
        losses (Optional[Dict[str, float]]): The squared gradients are added under the name.
        RETURNS (Dict[str, float]): The losses.
        """
        examples = list(examples)
        batches = packed_batches(example.reference for example in examples)
        if batches is None:
            self.flush()
            return super().update(examples, drop=drop, sgd=sgd, losses=losses)  # type: ignore[misc]
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        set_dropout_rate(self.model, drop)
        if self.is_passing_over:
            return self._pass_over(batches, losses)
        self._deferred_sgd = sgd
        for batch in batches:
            if len(batch):
                self._await_gradients(batch, self.compute(batch, is_train=True), losses)
            else:
                self.parameters_for(batch.corpus, is_train=True)
                self._take_part(losses)
        return losses

    def _await_gradients(self, batch: PackedBatch, vectors: torch.Tensor, losses: Losses) -> None:
        """Give each listener the vectors, and a way back for its gradient.

        As in spaCy, the gradients go back through the model when the last listener has sent its.
        """
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


class PackedTextCategorizer(PackedPipe, TextCategorizer):
    """spaCy's TextCategorizer for packed examples.

    vocab (Vocab): The shared vocab.
    model (Model[List[Doc], Floats2d]): A stock text classification model.
    name (str): Name of the component.
    threshold (float): As in spaCy.
    scorer (Optional[Callable]): Used for ordinary examples; packed ones get the same scores.
    class_weights (Optional[Union[Dict[str, float], str]]): Weights of some labels, or `balanced`.
    label_smoothing (float): How much of the truth is spread over all labels.
    """

    multi_label = False

    def __init__(
        self,
        *args: Any,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.imbalance = Imbalance(class_weights, label_smoothing, multi_label=self.multi_label)

    def predict(self, docs: Iterable[Doc]) -> Any:
        """Scores, `(documents, labels)`; those of packed Docs stay on the device."""
        docs = list(docs)
        batches = packed_batches(docs)
        if batches is None:
            self.flush()
            return super().predict(docs)
        scores = [
            predict(self.model, batch, self.parameters_for(batch.corpus), self.vocab)
            for batch in batches
        ]
        for batch in batches:
            self._drop_vectors(batch)
        return scores

    def set_annotations(self, docs: Iterable[Doc], scores: Any) -> None:
        """Set `doc.cats`; the scores of a packed Doc are kept with its batch."""
        docs = list(docs)
        batches = packed_batches(docs)
        if batches is None:
            super().set_annotations(docs, scores)
            return
        for batch, batch_scores in zip(batches, scores, strict=True):
            batch.scores[self.name] = batch_scores

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optimizer | None = None,
        losses: Losses | None = None,
    ) -> Losses:
        """Learn from a batch.

        examples (Iterable[Example]): Packed or ordinary examples.
        drop (float): The dropout rate.
        sgd (Optional[Optimizer]): The optimizer, if it is to update at once.
        losses (Optional[Dict[str, float]]): The mean squared error is added under the name. From
            packed examples it stays on the device, as a tensor of one number, until the next
            evaluation makes it a float.
        RETURNS (Dict[str, float]): The losses.
        """
        examples = list(examples)
        batches = packed_batches(example.reference for example in examples)
        if batches is None:
            self.flush()
            return super().update(examples, drop=drop, sgd=sgd, losses=losses)
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        if self.is_passing_over:
            return self._pass_over(batches, losses)
        set_dropout_rate(self.model, drop)
        for batch in batches:
            parameters = self.parameters_for(batch.corpus, is_train=True)
            if not len(batch):
                self._take_part(losses)
                continue
            scores = Run(batch, parameters, self.vocab, is_train=True)(self.model)
            loss, d_scores = self.packed_loss(batch, scores.detach())
            scores.backward(d_scores)
            self._has_gradient = True
            for listener in self._listeners:
                if listener.id in batch.send_back:
                    batch.send_back[listener.id]()
            self._drop_vectors(batch)
            self._add_loss(losses, loss * batch.share)
        if sgd is not None:
            self.finish_update(sgd)
        return losses

    def _drop_vectors(self, batch: PackedBatch) -> None:
        # They are used once, and are much larger than all else of a batch.
        for listener in self._listeners:
            batch.vectors.pop(listener.id, None)
            batch.send_back.pop(listener.id, None)

    @property
    def _listeners(self) -> list[Model]:
        # A transformer's listeners have this in common with a tok2vec's, and nothing else.
        return [layer for layer in self.model.walk() if hasattr(layer, "upstream_name")]

    def packed_loss(
        self, batch: PackedBatch, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch and its gradient, as spaCy's `get_loss` has them.

        batch (PackedBatch): The documents.
        scores (torch.Tensor): What the model predicts for them, `(documents, labels)`.
        RETURNS (Tuple[torch.Tensor, torch.Tensor]): The mean squared error, `()`, and the gradient,
            `(documents, labels)`.
        """
        truths = batch.truths(self.labels)
        if self.imbalance.is_on:
            return self.imbalance.loss(scores, truths)
        d_scores = scores - (truths == 1).to(scores.dtype)
        if self.support_missing_values:
            d_scores.masked_fill_(truths == MISSING, 0.0)
        return d_scores.square().mean(), d_scores

    def get_loss(self, examples: Iterable[Example], scores: Floats2d) -> tuple[float, Any]:
        """The loss of ordinary examples and its gradient; spaCy's, unless weights or smoothing
        are set.

        examples (Iterable[Example]): The examples.
        scores (Floats2d): What the model predicts for them, `(documents, labels)`.
        RETURNS (Tuple[float, Floats2d]): The mean squared error, and the gradient, `(documents,
            labels)`.
        """
        if not self.imbalance.is_on:
            return super().get_loss(examples, scores)
        validate_examples(examples, "TextCategorizer.get_loss")
        self._validate_categories(examples)
        loss, d_scores = self.imbalance.loss(torch_view(scores), self._truths(examples))
        return float(loss), torch2xp(d_scores)

    def _truths(self, examples: Iterable[Example]) -> torch.Tensor:
        """The categories of ordinary examples, as `PackedBatch.truths` gives them."""
        cats, is_known = self._examples_to_truth(examples)
        truths = torch_view(cats).to(torch.uint8)
        return truths.masked_fill_(torch.from_numpy(is_known == 0).to(truths.device), MISSING)

    def _initialize_imbalance(self, get_examples: Callable[[], Iterable[Example]]) -> None:
        def truths() -> Iterator[torch.Tensor]:
            for examples in minibatch(get_examples(), SAMPLES_AT_ONCE):
                batches = packed_batches(example.reference for example in examples)
                if batches is None:
                    yield self._truths(examples)
                else:
                    yield from (batch.truths(self.labels) for batch in batches)

        device = ops_device(self.model.ops)
        self.imbalance.initialize(self.name, self.labels, truths(), device)

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score predicted categories; of packed examples they come to the host here, once.

        examples (Iterable[Example]): Packed or ordinary examples.
        RETURNS (Dict[str, Any]): The scores, as `Scorer.score_cats` has them.
        """
        examples = list(examples)
        batches = packed_batches(example.predicted for example in examples)
        if batches is None or self.scorer is None or self.is_passing_over:
            return super().score(examples, **kwargs)
        super().score([], **kwargs)
        scores = torch.cat([batch.scores[self.name] for batch in batches]).cpu().numpy()
        truths = torch.cat([batch.truths(self.labels) for batch in batches]).cpu().numpy()
        scores, truths = workers.concatenated(scores), workers.concatenated(truths)
        settings = {**self.cfg, **kwargs, "labels": self.labels}
        return score_cats(scores, truths, multi_label=self.multi_label, **settings)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Iterable[str] | None = None,
        positive_label: str | None = None,
    ) -> None:
        """Initialize labels and model.

        get_examples (Callable[[], Iterable[Example]]): Packed or ordinary examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[Iterable[str]]): The labels; by default those of the corpus.
        positive_label (Optional[str]): Of two exclusive labels the one that counts as positive.
        RAISES (UserError): If a layer has no lowering or no word vectors, there are too few
            labels, a document has two of them, the scorer is not spaCy's own, or class weights or
            label smoothing can't be used.
        """
        corpus = packed_corpus(get_examples)
        if corpus is None:
            super().initialize(get_examples, nlp=nlp, labels=labels, positive_label=positive_label)
            self._initialize_imbalance(get_examples)
            return
        self._initialize_packed(corpus, labels)
        self._initialize_imbalance(get_examples)
        self._check_exclusive(corpus)
        if positive_label is not None and positive_label not in self.labels:
            raise ValueError(Errors.E920.format(pos_label=positive_label, labels=self.labels))
        if positive_label is not None and len(self.labels) != 2:
            raise ValueError(Errors.E919.format(pos_label=positive_label, labels=self.labels))
        self.cfg["positive_label"] = positive_label

    def _initialize_packed(self, corpus: ResidentCorpus, labels: Iterable[str] | None) -> None:
        check_lowered(self.model)
        require_vectors(self.model, self.vocab)
        self.check_scorer()
        for label in corpus.info.labels if labels is None else labels:
            self.add_label(label)
        self._require_labels()
        sample: Array = (corpus.truths(self.labels)[:SAMPLE_SIZE] == 1).cpu().numpy()
        label_sample = self.model.ops.asarray(sample.astype("float32"))
        self.model.initialize(X=sample_docs(corpus, self.vocab), Y=label_sample)

    def check_scorer(self) -> None:
        """Make sure that packed predictions can be scored.

        RAISES (UserError): If the scorer is not one of spaCy's own.
        """
        module = getattr(self.scorer, "__module__", "")
        if self.scorer is not None and not module.startswith(("spacy.", "spacy_legacy.")):
            raise UserError(
                f"Component {self.name!r} has a scorer of its own, which needs ordinary Docs",
                "Remove `scorer`, or read [corpora.dev] with spacy.Corpus.v1.",
            )

    def _check_exclusive(self, corpus: ResidentCorpus) -> None:
        """spaCy looks at all of `doc.cats`; with two tasks a document, its own labels count."""
        if len(self.labels) < 2:
            raise UserError(
                f"Component {self.name!r} has one label: {self.labels[0]}",
                "Exclusive classes need two or more. For a label that a text has or has not, use "
                "zero_copy_textcat_multilabel, or add a label for its absence.",
            )
        positive = (corpus.truths(self.labels) == 1).sum(1).cpu().numpy()
        if (positive > 1).any():
            number = int(numpy.argmax(positive > 1))
            raise UserError(
                f"{corpus.packed.path}: document {number} has {positive[number]} of the labels of "
                f"{self.name!r}, which are exclusive",
                f"Use zero_copy_textcat_multilabel, or give [initialize.components.{self.name}] "
                "the labels of one task.",
            )


class PackedMultiLabelTextCategorizer(PackedTextCategorizer, MultiLabel_TextCategorizer):
    """spaCy's MultiLabel_TextCategorizer for packed examples.

    vocab (Vocab): The shared vocab.
    model (Model[List[Doc], Floats2d]): A stock text classification model.
    name (str): Name of the component.
    threshold (float): From which score on a label counts as predicted.
    scorer (Optional[Callable]): Used for ordinary examples; packed ones get the same scores.
    class_weights (Optional[Union[Dict[str, float], str]]): Weights of some labels, or `balanced`.
    label_smoothing (float): How much of the truth is spread over yes and no.
    """

    multi_label = True

    def initialize(  # type: ignore[override]
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Language | None = None,
        labels: Iterable[str] | None = None,
    ) -> None:
        """Initialize labels and model.

        get_examples (Callable[[], Iterable[Example]]): Packed or ordinary examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[Iterable[str]]): The labels; by default those of the corpus.
        RAISES (UserError): If a layer has no lowering, the scorer is not spaCy's own, or class
            weights or label smoothing can't be used.
        """
        corpus = packed_corpus(get_examples)
        if corpus is None:
            MultiLabel_TextCategorizer.initialize(self, get_examples, nlp=nlp, labels=labels)
        else:
            self._initialize_packed(corpus, labels)
        self._initialize_imbalance(get_examples)


def packed_corpus(get_examples: Callable[[], Iterable[Example]]) -> ResidentCorpus | None:
    """The corpus that a pipeline is initialized from.

    get_examples (Callable[[], Iterable[Example]]): As a component's `initialize` gets it.
    RETURNS (Optional[ResidentCorpus]): The corpus of the first example, or None if the examples
        are ordinary ones.
    """
    batches = packed_batches(example.reference for example in islice(get_examples(), 1))
    return batches[0].corpus if batches else None


def sample_docs(corpus: ResidentCorpus, vocab: Vocab) -> list[Doc]:
    """The first documents of a corpus as ordinary Docs, for a model to infer its dimensions.

    corpus (ResidentCorpus): The corpus.
    vocab (Vocab): The pipeline's vocab.
    RETURNS (List[Doc]): At most SAMPLE_SIZE documents.
    """
    return list(corpus.packed.docs(vocab, range(min(SAMPLE_SIZE, len(corpus.lengths)))))


SCORE_WEIGHTS = {
    "cats_score": 1.0,
    "cats_score_desc": None,
    "cats_micro_p": None,
    "cats_micro_r": None,
    "cats_micro_f": None,
    "cats_macro_p": None,
    "cats_macro_r": None,
    "cats_macro_f": None,
    "cats_macro_auc": None,
    "cats_f_per_type": None,
}


@Language.factory(
    "zero_copy_tok2vec", assigns=["doc.tensor"], default_config={"model": DEFAULT_TOK2VEC_MODEL}
)
def make_tok2vec(nlp: Language, name: str, model: Model) -> PackedTok2Vec:
    """Create a tok2vec that can train from packed examples; settings as for spaCy's `tok2vec`."""
    return PackedTok2Vec(nlp.vocab, model, name)


@Language.factory(
    "zero_copy_textcat",
    assigns=["doc.cats"],
    default_config={
        "threshold": 0.0,
        "model": DEFAULT_SINGLE_TEXTCAT_MODEL,
        "scorer": {"@scorers": "spacy.textcat_scorer.v2"},
        **OFF,
    },
    default_score_weights=SCORE_WEIGHTS,
)
def make_textcat(
    nlp: Language,
    name: str,
    model: Model,
    threshold: float,
    scorer: Callable | None,
    class_weights: ClassWeights,
    label_smoothing: float,
) -> PackedTextCategorizer:
    """Create a text classifier that can train from packed examples; settings as for `textcat`, and
    those against imbalance."""
    return PackedTextCategorizer(
        *(nlp.vocab, model, name),
        threshold=threshold,
        scorer=scorer,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
    )


@Language.factory(
    "zero_copy_textcat_multilabel",
    assigns=["doc.cats"],
    default_config={
        "threshold": 0.5,
        "model": DEFAULT_MULTI_TEXTCAT_MODEL,
        "scorer": {"@scorers": "spacy.textcat_multilabel_scorer.v2"},
        **OFF,
    },
    default_score_weights=SCORE_WEIGHTS,
)
def make_textcat_multilabel(
    nlp: Language,
    name: str,
    model: Model,
    threshold: float,
    scorer: Callable | None,
    class_weights: ClassWeights,
    label_smoothing: float,
) -> PackedMultiLabelTextCategorizer:
    """Create a text classifier for labels that do not exclude each other, that can train from
    packed examples; settings as for `textcat_multilabel`, and those against imbalance."""
    return PackedMultiLabelTextCategorizer(
        *(nlp.vocab, model, name),
        threshold=threshold,
        scorer=scorer,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
    )
