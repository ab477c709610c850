"""What a variant has to beat: text classifiers of other libraries, on the same files."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from zero_copy.machine import cores
from zero_copy.predictions import Predictions, read_docs, read_truths

SEED = 0
EPOCHS, LEARN_RATE = 25, 0.5  # of fastText

# Scores of texts, `(texts, labels)`; and what makes such a function from texts, what is right for
# them, bool, `(texts, labels)`, and whether a text may have several labels.
Predict = Callable[[list[str]], numpy.ndarray]
Fit = Callable[[list[str], numpy.ndarray, bool], Predict]


@dataclass(frozen=True)
class Baseline:
    """A text classifier of another library.

    It is fitted on train and dev together, since it chooses nothing on dev.

    name (str): Its name, for people.
    folder (str): What the folder of its result is called.
    package (str): The package that it needs, as pip calls it.
    module (str): The same, as Python calls it.
    fit (Callable): Fits it.
    threshold (float): From which score on a label is predicted, where a text may have several.
    """

    name: str
    folder: str
    package: str
    module: str
    fit: Fit
    threshold: float

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.module) is not None

    def evaluate(
        self, corpus: Path, labels: tuple[str, ...], multi_label: bool
    ) -> tuple[Predictions, float, int]:
        """Fit on train and dev, predict test.

        corpus (Path): Folder with train, dev and test as .spacy.
        labels (Tuple[str, ...]): The labels to tell apart.
        multi_label (bool): Whether a text may have several of them.
        RETURNS (Tuple[Predictions, float, int]): The predictions, the seconds that fitting took,
            and the words fitted on.
        """
        docs = [doc for split in ("train", "dev") for doc in read_docs(corpus / f"{split}.spacy")]
        texts, targets = [doc.text for doc in docs], read_truths(docs, labels) == 1
        start = perf_counter()
        predict = self.fit(texts, targets, multi_label)
        seconds = perf_counter() - start
        test = list(read_docs(corpus / "test.spacy"))
        scores = predict([doc.text for doc in test]).astype("float32")
        settings = {
            "labels": labels,
            "multi_label": multi_label,
            "threshold": self.threshold,
            "positive_label": None,
        }
        predictions = Predictions("test", self.folder, settings, scores, read_truths(test, labels))
        return predictions, seconds, sum(map(len, docs))


def fit_svm(texts: list[str], targets: numpy.ndarray, multi_label: bool) -> Predict:
    """Fit a linear support vector machine on TF-IDF, with scikit-learn's settings but for
    `sublinear_tf`.

    texts (List[str]): The texts.
    targets (numpy.ndarray): What is right for them, bool, `(texts, labels)`.
    multi_label (bool): Whether a text may have several labels.
    RETURNS (Callable): The distances to the planes, of other texts.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    features = vectorizer.fit_transform(texts)
    machine = LinearSVC(random_state=SEED)
    if multi_label:
        machine = OneVsRestClassifier(machine).fit(features, targets.astype("int8"))
        columns = numpy.arange(targets.shape[1])
    else:
        columns = machine.fit(features, targets.argmax(1)).classes_
    unseen = ~targets.any(0)

    def predict(texts: list[str]) -> numpy.ndarray:
        distances = machine.decision_function(vectorizer.transform(texts))
        if distances.ndim == 1:
            distances = numpy.stack([-distances, distances], axis=1)
        scores = numpy.empty((len(texts), targets.shape[1]))
        scores[:, columns] = distances
        # A label without a text to learn from has no plane: it is never predicted.
        scores[:, unseen] = min(distances.min(), 0.0) - 1
        return scores

    return predict


def fit_fasttext(texts: list[str], targets: numpy.ndarray, multi_label: bool) -> Predict:
    """Fit fastText's classifier.

    texts (List[str]): The texts.
    targets (numpy.ndarray): What is right for them, bool, `(texts, labels)`.
    multi_label (bool): Whether a text may have several labels.
    RETURNS (Callable): The probabilities of the labels, of other texts.
    """
    import fasttext

    with TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        with path.open("w", encoding="utf8") as file:
            for text, row in zip(texts, targets, strict=True):
                labels = " ".join(f"__label__{number}" for number in numpy.flatnonzero(row))
                file.write(f"{labels} {_line(text)}")
        model = fasttext.train_supervised(
            input=str(path),
            epoch=EPOCHS,
            lr=LEARN_RATE,
            loss="ova" if multi_label else "softmax",
            thread=cores(),
            verbose=0,
        )

    def predict(texts: list[str]) -> numpy.ndarray:
        scores = numpy.zeros((len(texts), targets.shape[1]))
        for row, text in enumerate(texts):
            # The method without the f fails with NumPy 2.
            for score, label in model.f.predict(_line(text), -1, 0.0, "strict"):
                scores[row, int(label.removeprefix("__label__"))] = score
        return scores

    return predict


def _line(text: str) -> str:
    return " ".join(text.split()) + "\n"


BASELINES = (
    Baseline("TF-IDF + linear SVM", "baseline-svm", "scikit-learn", "sklearn", fit_svm, 0.0),
    Baseline("fastText", "baseline-fasttext", "fasttext-wheel", "fasttext", fit_fasttext, 0.5),
)
