"""Why a pipeline decided as it did, and where it was wrong."""

from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import numpy
from spacy.language import Language
from spacy.pipeline import TextCategorizer
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc, Span

from zero_copy.classifying import categories, find_classifiers
from zero_copy.predictions import read_docs

# The words that are read to explain one text: three seconds' worth for a tok2vec on one core. A
# text of up to 245 words is explained word by word.
MOST_WORDS = 60_000
# Of float32 scores near 1 the next one is 6e-8 away.
LEAST_SCORE = 1e-8


@dataclass(frozen=True)
class Effect:
    """What a part of a text did to the score of a label.

    start (int): Number of its first word.
    end (int): Number after its last word.
    text (str): The part, as it was written.
    effect (float): The log-odds of the label less what they would be without this part: above zero,
        it spoke for the label. Scores near 0 and 1 hardly move, whatever is left out; odds do.
    """

    start: int
    end: int
    text: str
    effect: float


def explain(nlp: Language, doc: Doc, label: str, most_words: int = MOST_WORDS) -> list[Effect]:
    """Leave out one part of a text after the other, and see what becomes of a score.

    nlp (Language): The pipeline.
    doc (Doc): The text, classified.
    label (str): The label.
    most_words (int): How many words may be read for it. A text of n words has n parts of n - 1
        words to read; a longer text is cut into fewer parts, of several words each.
    RETURNS (List[Effect]): The parts, in their order.
    """
    if not len(doc):
        return []
    parts = max(min(len(doc), most_words // len(doc)), min(len(doc), 2))
    bounds = numpy.linspace(0, len(doc), parts + 1).round().astype(int).tolist()
    spans = [doc[start:end] for start, end in pairwise(bounds)]
    rivals = find_rivals(nlp, label)
    odds = log_odds(doc.cats, label, rivals)
    without = nlp.pipe(leave_out(span) for span in spans)
    return [
        Effect(span.start, span.end, span.text_with_ws, odds - log_odds(it.cats, label, rivals))
        for span, it in zip(spans, without, strict=True)
    ]


def find_rivals(nlp: Language, label: str) -> list[str]:
    """The labels that a text has if it has not some label.

    nlp (Language): The pipeline.
    label (str): The label.
    RETURNS (List[str]): The others of its classifier; none if a text may have several.
    """
    for component in find_classifiers(nlp).values():
        if label in component.labels and not isinstance(component, MultiLabel_TextCategorizer):
            return [other for other in component.labels if other != label]
    return []


def log_odds(scores: dict[str, float], label: str, rivals: list[str]) -> float:
    """The natural logarithm of how many times likelier a label is than not.

    scores (Dict[str, float]): Scores of all labels.
    label (str): The label.
    rivals (List[str]): Labels that exclude it. Their scores add up to what its own lacks of 1, more
        exactly than a difference of float32 numbers would be.
    RETURNS (float): The log-odds.
    """
    score = scores[label]
    rest = sum(scores[rival] for rival in rivals) if rivals else 1.0 - score
    return log(max(score, LEAST_SCORE)) - log(max(rest, LEAST_SCORE))


def leave_out(span: Span) -> Doc:
    """A text without a part.

    span (Span): The part.
    RETURNS (Doc): The other words, not classified yet.
    """
    words = [token for token in span.doc if not span.start <= token.i < span.end]
    return Doc(
        span.doc.vocab,
        words=[token.text for token in words],
        spaces=[bool(token.whitespace_) for token in words],
    )


@dataclass(frozen=True)
class Mistake:
    """A text that was classified wrongly.

    number (int): Number of the text in its file, from 0 on.
    right (Tuple[str, ...]): The categories that it has.
    predicted (Tuple[str, ...]): Those that were predicted.
    confidence (float): How far the score that is most wrong is from where it should be.
    text (str): The text.
    """

    number: int
    right: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: float
    text: str


def find_mistakes(nlp: Language, path: Path, name: str) -> tuple[list[Mistake], int]:
    """Classify a test set, and find what is wrong.

    nlp (Language): The pipeline.
    path (Path): The test set, a `.spacy` file.
    name (str): Name of the text classifier.
    RETURNS (Tuple[List[Mistake], int]): The mistakes, the most confident first, and how many texts
        there are.
    """
    component: Any = nlp.get_pipe(name)
    references = list(read_docs(path))
    mistakes = []
    for number, (reference, doc) in enumerate(
        zip(references, nlp.pipe(it.text for it in references), strict=True)
    ):
        mistake = find_mistake(component, number, reference, doc)
        if mistake:
            mistakes.append(mistake)
    return sorted(mistakes, key=lambda it: -it.confidence), len(references)


def find_mistake(
    component: TextCategorizer, number: int, reference: Doc, doc: Doc
) -> Mistake | None:
    """What is wrong with the categories of a text.

    component (TextCategorizer): The text classifier.
    number (int): Number of the text.
    reference (Doc): The text with the categories that it has.
    doc (Doc): The same, classified.
    RETURNS (Optional[Mistake]): The mistake. Labels that are not annotated can't be wrong.
    """
    known = [label for label in component.labels if label in reference.cats]
    right = {label for label in known if reference.cats[label] == 1.0}
    predicted = set(categories(component, doc.cats)) & set(known)
    wrong = right ^ predicted
    if not wrong:
        return None
    return Mistake(
        number,
        tuple(sorted(right)),
        tuple(sorted(predicted)),
        max(abs(doc.cats[label] - float(label in right)) for label in wrong),
        reference.text,
    )
