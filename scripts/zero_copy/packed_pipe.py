"""What every component needs so as to train from packed examples.

Given ordinary examples or Docs a component is its parent. Given packed ones it runs the same model
lowered, on the same parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model, Optimizer, set_dropout_rate

from zero_copy import workers
from zero_copy.corpus import (
    USER_DATA_KEY,
    PackedBatch,
    ResidentCorpus,
    ops_device,
    packed_batches,
)
from zero_copy.layers import compact_rows
from zero_copy.lowering import check_lowered
from zero_copy.optimizer import Updater
from zero_copy.parameters import Parameters, modules_of

# Documents that a model sees at initialization, to infer its dimensions; spaCy takes as many.
SAMPLE_SIZE = 10
Losses = dict[str, Any]


class Evaluation(NamedTuple):
    """What came out of an evaluation.

    losses (Dict[str, float]): The components' losses since the last one.
    scores (Dict[str, Any]): All scores.
    """

    losses: dict[str, float]
    scores: dict[str, Any]


class PackedPipe(ABC):
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
        corpus = corpus.whole  # the parts of a streamed one come and go
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
        losses (Optional[Dict[str, float]]): The loss is added under the component's name. From
            packed examples it stays on the device, as a tensor of one number, until the next
            evaluation makes it a float.
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
        for batch in batches:
            if len(batch) and not self.is_passing_over:
                self.learn(batch, losses)
            else:
                # Without documents of its own, a worker takes part in the update of all.
                self.parameters_for(batch.corpus, is_train=True)
                self._has_gradient, self._losses = not self.is_passing_over, losses
        if sgd is not None:
            self.finish_update(sgd)
        return losses

    @abstractmethod
    def learn(self, batch: PackedBatch, losses: Losses) -> None:
        """Add to the gradients of the parameters, and the loss to the losses.

        batch (PackedBatch): One document or more.
        losses (Dict[str, float]): The losses by name.
        """

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


def packed_corpus(get_examples: Callable[[], Iterable[Example]]) -> ResidentCorpus | None:
    """The corpus that a pipeline is initialized from.

    get_examples (Callable[[], Iterable[Example]]): As a component's `initialize` gets it.
    RETURNS (Optional[ResidentCorpus]): The corpus of the first example, or None if the examples
        are ordinary ones.
    """
    batches = packed_batches(example.reference for example in islice(get_examples(), 1))
    return batches[0].corpus.whole if batches else None


def sample_docs(corpus: ResidentCorpus, vocab: Vocab) -> list[Doc]:
    """The first documents of a corpus as ordinary Docs, for a model to infer its dimensions.

    corpus (ResidentCorpus): The corpus.
    vocab (Vocab): The pipeline's vocab.
    RETURNS (List[Doc]): At most SAMPLE_SIZE documents.
    """
    return list(corpus.packed.docs(vocab, range(min(SAMPLE_SIZE, len(corpus.lengths)))))
