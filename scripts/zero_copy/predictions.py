"""Predictions for whole splits, a row a text, and the scores that they get."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import srsly
from safetensors import safe_open
from safetensors.numpy import save_file
from spacy.tokens import Doc
from spacy.training import Corpus
from spacy.training.corpus import FILE_TYPE, walk_corpus
from spacy.vocab import Vocab

from zero_copy.scoring import score_cats
from zero_copy.store import MISSING

SPLITS = ("dev", "test")


@dataclass
class Predictions:
    """What one text classifier predicted for one split.

    split (str): `dev` or `test`.
    classifier (str): Name of the component.
    settings (Dict[str, Any]): Its `labels`, whether it is `multi_label`, its `threshold` and its
        `positive_label`.
    scores (numpy.ndarray): float32, `(documents, labels)`.
    truths (numpy.ndarray): uint8, `(documents, labels)`: 0, 1 or 255 for not annotated.
    """

    split: str
    classifier: str
    settings: dict[str, Any]
    scores: numpy.ndarray
    truths: numpy.ndarray

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns."""
        return tuple(self.settings["labels"])

    @property
    def is_exclusive(self) -> bool:
        """Whether every text has exactly one label."""
        return not self.settings["multi_label"] and bool(((self.truths == 1).sum(1) == 1).all())

    def evaluate(self) -> dict[str, Any]:
        """Score the predictions.

        RETURNS (Dict[str, Any]): What `spacy evaluate` would say, with the same keys.
        """
        settings = self.settings | {"labels": self.labels}
        return score_cats(self.scores, self.truths, **settings)


def read_predictions(path: Path) -> list[Predictions]:
    """Read what `scripts/predict.py` or `save_predictions` wrote.

    path (Path): The `.safetensors` file.
    RETURNS (List[Predictions]): The predictions of every classifier for every split, dev first.
    """
    with safe_open(path, framework="numpy") as file:
        classifiers = srsly.json_loads(file.metadata()["classifiers"])
        return [
            Predictions(
                split,
                name,
                settings,
                file.get_tensor(f"{split}.{name}.scores"),
                file.get_tensor(f"{split}.{name}.truths"),
            )
            for name, settings in classifiers.items()
            for split in SPLITS
            if f"{split}.{name}.scores" in file.keys()  # noqa: SIM118  not a dict
        ]


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write the predictions of one classifier for one split, in the form of scripts/predict.py.

    path (Path): The `.safetensors` file.
    predictions (Predictions): The predictions.
    """
    key = f"{predictions.split}.{predictions.classifier}"
    columns = {f"{key}.scores": predictions.scores, f"{key}.truths": predictions.truths}
    classifiers = {predictions.classifier: predictions.settings}
    save_file(columns, path, {"classifiers": srsly.json_dumps(classifiers)})


def read_docs(path: Path) -> Iterator[Doc]:
    """Read the documents of a split, in the order of the predictions.

    path (Path): A `.spacy` file, or a folder of them.
    YIELDS (Doc): The documents.
    """
    yield from Corpus(path).read_docbin(Vocab(), walk_corpus(path, FILE_TYPE))


def read_truths(docs: list[Doc], labels: tuple[str, ...]) -> numpy.ndarray:
    """What is right for documents.

    docs (List[Doc]): The documents.
    labels (Tuple[str, ...]): The labels, in the order wanted.
    RETURNS (numpy.ndarray): uint8, `(documents, labels)`: 0, 1 or 255 for not annotated.
    """
    truths = numpy.full((len(docs), len(labels)), MISSING, "uint8")
    for row, doc in enumerate(docs):
        for column, label in enumerate(labels):
            if label in doc.cats:
                truths[row, column] = doc.cats[label] == 1.0
    return truths
