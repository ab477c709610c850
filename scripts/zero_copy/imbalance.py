"""Classes of unlike sizes, and labels that are not quite certain: weights and smoothed truths.

They change what is learned, not the model: a pipeline trained with them is a stock one.
"""

from collections.abc import Iterable
from math import isfinite

import torch

from zero_copy import workers
from zero_copy.errors import UserError
from zero_copy.store import MISSING

BALANCED = "balanced"
ClassWeights = dict[str, float] | str | None
# The settings of a component, off: such a component is its stock parent, bit for bit.
OFF: dict[str, object] = {"class_weights": None, "label_smoothing": 0.0}


class Imbalance:
    """What the loss of a text classifier makes of weights and smoothing.

    class_weights (Optional[Union[Dict[str, float], str]]): A weight for each of some labels, the
        others having 1.0; or `balanced`, for weights that follow from the training corpus.
    label_smoothing (float): How much of the truth is spread over all classes, from 0.0 to below
        1.0.
    multi_label (bool): Whether a document may have several of the labels, or none.
    """

    def __init__(
        self, class_weights: ClassWeights, label_smoothing: float, *, multi_label: bool
    ) -> None:
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self.multi_label = multi_label
        self.weights: torch.Tensor | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything differs from the stock loss."""
        return self.class_weights is not None or self.label_smoothing != 0.0

    def initialize(
        self,
        component: str,
        labels: tuple[str, ...],
        truths: Iterable[torch.Tensor],
        device: torch.device,
    ) -> None:
        """Find the weight of each label.

        component (str): Name of the component, for messages.
        labels (Tuple[str, ...]): Its labels.
        truths (Iterable[torch.Tensor]): The training documents' categories, uint8,
            `(documents, labels)`: 0 no, 1 yes, 255 not annotated. Read if weights are to follow
            from them.
        device (torch.device): Where the weights are needed.
        RAISES (UserError): If a setting can't be used, naming it.
        """
        check_settings(component, labels, self.class_weights, self.label_smoothing)
        if self.class_weights == BALANCED:
            weights = balanced_weights(truths, multi_label=self.multi_label)
        elif isinstance(self.class_weights, dict):
            weights = torch.tensor([self.class_weights.get(label, 1.0) for label in labels])
        else:
            weights = torch.ones(len(labels))
        self.weights = weights.to(device, torch.float32)

    def loss(self, scores: torch.Tensor, truths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of a batch and its gradient.

        scores (torch.Tensor): What the model predicts, `(documents, labels)`.
        truths (torch.Tensor): The categories, uint8, `(documents, labels)`, 255 where they are not
            annotated.
        RETURNS (Tuple[torch.Tensor, torch.Tensor]): The weighted mean squared error, `()`, and the
            gradient, `(documents, labels)`.
        RAISES (UserError): If the component has not been initialized.
        """
        if self.weights is None:
            raise UserError(
                "class_weights and label_smoothing need a component that has been initialized",
                "Initialize the pipeline, or set class_weights = null and label_smoothing = 0.0.",
            )
        positive = truths == 1
        difference = scores - self.smoothed(positive.to(scores.dtype))
        d_scores = difference * self.weight_of(positive)
        if self.multi_label:
            d_scores.masked_fill_(truths == MISSING, 0.0)
        return (d_scores * difference).mean(), d_scores

    def smoothed(self, truths: torch.Tensor) -> torch.Tensor:
        """Truths with a share of them spread evenly over the classes to choose from.

        truths (torch.Tensor): 0.0 or 1.0, `(documents, labels)`.
        RETURNS (torch.Tensor): The same, `(documents, labels)`. Exclusive labels choose from each
            other (Szegedy et al. 2016); any other label is a choice of its own, between two.
        """
        choices = 2 if self.multi_label else truths.shape[1]
        return truths * (1 - self.label_smoothing) + self.label_smoothing / choices

    def weight_of(self, positive: torch.Tensor) -> torch.Tensor:
        """What the gradients of a batch are multiplied by.

        positive (torch.Tensor): Which labels the documents have, bool, `(documents, labels)`.
        RETURNS (torch.Tensor): Of exclusive labels the weight of a document's class,
            `(documents, 1)`; else the weights of the labels that it has, and 1.0 for those that
            it has not, `(documents, labels)`.
        """
        assert self.weights is not None
        weights = torch.where(positive, self.weights, 1.0)
        # A document has one class at most, so all other factors are 1.
        return weights if self.multi_label else weights.prod(1, keepdim=True)


def check_settings(
    component: str, labels: tuple[str, ...], class_weights: ClassWeights, label_smoothing: float
) -> None:
    """Refuse settings that have no meaning.

    component (str): Name of the component.
    labels (Tuple[str, ...]): Its labels.
    class_weights (Optional[Union[Dict[str, float], str]]): The setting.
    label_smoothing (float): The setting.
    RAISES (UserError): If a weight is for a label that is not there or not above 0, the weights
        are another word than `balanced`, or the smoothing is not in [0, 1).
    """
    place = f"[components.{component}]"
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"{place} label_smoothing = {label_smoothing} is not from 0.0 to below 1.0",
            "0.1 is usual; 0.0 turns it off.",
        )
    if isinstance(class_weights, str) and class_weights != BALANCED:
        raise UserError(
            f"{place} class_weights = {class_weights!r} is no weighting",
            f'Use "{BALANCED}", a section [components.{component}.class_weights] with a weight for '
            "each of some labels, or null.",
        )
    if not isinstance(class_weights, dict):
        return
    for label, weight in class_weights.items():
        if label not in labels:
            raise UserError(
                f"[components.{component}.class_weights] has a weight for {label!r}, which is no "
                "label of the component",
                f"It has these: {', '.join(labels)}.",
            )
        if not (weight > 0 and isfinite(weight)):
            raise UserError(
                f"[components.{component}.class_weights] {label} = {weight} is not above 0",
                "Leave the label out for a weight of 1.0; to keep it from being learned, leave its "
                "documents out.",
            )


def balanced_weights(truths: Iterable[torch.Tensor], *, multi_label: bool) -> torch.Tensor:
    """Weights with which rare labels count as much as frequent ones.

    truths (Iterable[torch.Tensor]): Categories, uint8, `(documents, labels)` each: 0 no, 1 yes,
        255 not annotated.
    multi_label (bool): Whether a document may have several of the labels, or none.
    RETURNS (torch.Tensor): float64, `(labels,)`. Of exclusive labels, documents / (labels *
        documents of the label), as scikit-learn has it; else the label's negatives / positives.
        A label that is in no document, or in all, has nothing to balance, and has 1.0.
    """
    counts = [torch.stack([(truth == 1).sum(0), (truth == 0).sum(0)]) for truth in truths]
    positives, negatives = workers.add_up(torch.stack(counts).sum(0)).cpu().double()
    if multi_label:
        return torch.where((positives > 0) & (negatives > 0), negatives / positives, 1.0)
    occur = positives > 0
    return torch.where(occur, positives.sum() / (occur.sum() * positives), 1.0)
