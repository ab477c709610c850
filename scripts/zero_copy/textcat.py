"""spaCy's text classifiers, able to train from packed examples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch
from spacy.errors import Errors
from spacy.language import Language
from spacy.pipeline import TextCategorizer
from spacy.pipeline.textcat import DEFAULT_SINGLE_TEXTCAT_MODEL
from spacy.pipeline.textcat_multilabel import (
    DEFAULT_MULTI_TEXTCAT_MODEL,
    MultiLabel_TextCategorizer,
)
from spacy.tokens import Doc
from spacy.training import Example, validate_examples
from spacy.util import minibatch
from thinc.api import Model, torch2xp
from thinc.types import Floats2d

from zero_copy import workers
from zero_copy.corpus import PackedBatch, ResidentCorpus, ops_device, packed_batches
from zero_copy.errors import UserError
from zero_copy.imbalance import OFF, ClassWeights, Imbalance
from zero_copy.lowering import Run, check_lowered, predict
from zero_copy.packed_pipe import SAMPLE_SIZE, Losses, PackedPipe, packed_corpus, sample_docs
from zero_copy.parameters import Array, torch_view
from zero_copy.scoring import score_cats
from zero_copy.static_vectors import require_vectors
from zero_copy.store import MISSING

# Examples whose categories are counted at a time.
SAMPLES_AT_ONCE = 1000
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

    def learn(self, batch: PackedBatch, losses: Losses) -> None:
        """Add to the gradients, those of the vectors that it listens to as well.

        batch (PackedBatch): The documents.
        losses (Dict[str, float]): The mean squared error is added under the name.
        """
        parameters = self.parameters_for(batch.corpus, is_train=True)
        scores = Run(batch, parameters, self.vocab, is_train=True)(self.model)
        loss, d_scores = self.packed_loss(batch, scores.detach())
        scores.backward(d_scores)
        self._has_gradient = True
        for listener in self._listeners:
            if listener.id in batch.send_back:
                batch.send_back[listener.id]()
        self._drop_vectors(batch)
        self._add_loss(losses, loss * batch.share)

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


def register(
    factory: str, component: type[PackedTextCategorizer], threshold: float, model: dict, scorer: str
) -> None:
    """Register the factory of a text classifier.

    factory (str): Its name.
    component (type): What it makes.
    threshold (float): The default threshold.
    model (Dict[str, Any]): The default model's config.
    scorer (str): Name of the default scorer.
    """

    def make(
        nlp: Language,
        name: str,
        model: Model,
        threshold: float,
        scorer: Callable | None,
        class_weights: ClassWeights,
        label_smoothing: float,
    ) -> PackedTextCategorizer:
        return component(
            *(nlp.vocab, model, name),
            threshold=threshold,
            scorer=scorer,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )

    defaults = {"threshold": threshold, "model": model, "scorer": {"@scorers": scorer}}
    Language.factory(
        factory,
        assigns=["doc.cats"],
        default_config=defaults | OFF,
        default_score_weights=SCORE_WEIGHTS,
        func=make,
    )


# Settings as for spaCy's `textcat` and `textcat_multilabel`, and those against imbalance.
register(
    "zero_copy_textcat",
    PackedTextCategorizer,
    *(0.0, DEFAULT_SINGLE_TEXTCAT_MODEL, "spacy.textcat_scorer.v2"),
)
register(
    "zero_copy_textcat_multilabel",
    PackedMultiLabelTextCategorizer,
    *(0.5, DEFAULT_MULTI_TEXTCAT_MODEL, "spacy.textcat_multilabel_scorer.v2"),
)
