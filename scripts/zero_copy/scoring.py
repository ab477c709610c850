"""The scores of packed predictions: those of `Scorer.score_cats`, counted on whole columns."""

from typing import Any

import numpy
from spacy.scorer import PRFScore, ROCAUCScore

from zero_copy.store import MISSING


def score_cats(
    scores: numpy.ndarray,
    truths: numpy.ndarray,
    *,
    labels: tuple[str, ...],
    multi_label: bool,
    positive_label: str | None = None,
    threshold: float | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Score predicted categories as `spacy.scorer.Scorer.score_cats` does, with the same keys.

    scores (numpy.ndarray): What a text classifier predicted, float32, `(documents, labels)`.
    truths (numpy.ndarray): What is right, uint8, `(documents, labels)`: 0, 1 or 255 for missing.
    labels (Tuple[str, ...]): The classifier's labels.
    multi_label (bool): Whether a document may have several labels.
    positive_label (Optional[str]): Of two exclusive labels the one whose F-score counts.
    threshold (Optional[float]): From which score on a label is predicted; 0.5 by default.
    RETURNS (Dict[str, Any]): The scores.
    """
    if multi_label:
        f_per_type = _count_each(scores, truths, labels, 0.5 if threshold is None else threshold)
    else:
        f_per_type = _count_highest(scores, truths, labels)
    auc_per_type = {}
    for number, label in enumerate(labels):
        auc = ROCAUCScore()
        gold = truths[:, number]
        # Without exclusive labels a missing one is left out; with them it counts as wrong.
        chosen = gold != MISSING if multi_label else slice(None)
        auc.golds = numpy.where(gold == MISSING, 0, gold)[chosen]  # type: ignore[assignment]
        auc.cands = scores[chosen, number]  # type: ignore[assignment]
        auc_per_type[label] = auc.score if auc.is_binary() else None
    return _results(f_per_type, auc_per_type, multi_label, positive_label)


def _count_each(
    scores: numpy.ndarray, truths: numpy.ndarray, labels: tuple[str, ...], threshold: float
) -> dict[str, PRFScore]:
    predicted, right, wrong = scores >= threshold, truths == 1, truths == 0
    return {
        label: PRFScore(
            tp=int((predicted & right)[:, number].sum()),
            fp=int((predicted & wrong)[:, number].sum()),
            fn=int((~predicted & right)[:, number].sum()),
        )
        for number, label in enumerate(labels)
    }


def _count_highest(
    scores: numpy.ndarray, truths: numpy.ndarray, labels: tuple[str, ...]
) -> dict[str, PRFScore]:
    """Of the highest scores the first counts, as with Python's `max`, on either side."""
    present = numpy.where(truths == MISSING, -1, truths.astype("int16"))
    is_gold = (truths != MISSING).any(axis=1)
    predicted, gold = scores.argmax(axis=1), present.argmax(axis=1)
    hits = numpy.bincount(gold[is_gold & (gold == predicted)], minlength=len(labels))
    misses = is_gold & (gold != predicted)
    missed = numpy.bincount(gold[misses], minlength=len(labels))
    # A document without any annotation still has a prediction, which is then wrong.
    false = numpy.bincount(predicted[misses | ~is_gold], minlength=len(labels))
    return {
        label: PRFScore(tp=int(hits[number]), fp=int(false[number]), fn=int(missed[number]))
        for number, label in enumerate(labels)
    }


def _results(
    f_per_type: dict[str, PRFScore],
    auc_per_type: dict[str, float | None],
    multi_label: bool,
    positive_label: str | None,
) -> dict[str, Any]:
    micro = sum(f_per_type.values(), PRFScore())
    count = len(f_per_type) + 1e-100
    results: dict[str, Any] = {
        "cats_score": None,
        "cats_score_desc": None,
        "cats_micro_p": micro.precision,
        "cats_micro_r": micro.recall,
        "cats_micro_f": micro.fscore,
        "cats_macro_p": sum(prf.precision for prf in f_per_type.values()) / count,
        "cats_macro_r": sum(prf.recall for prf in f_per_type.values()) / count,
        "cats_macro_f": sum(prf.fscore for prf in f_per_type.values()) / count,
        "cats_macro_auc": sum(auc or 0.0 for auc in auc_per_type.values()) / count,
        "cats_f_per_type": {label: prf.to_dict() for label, prf in f_per_type.items()},
        "cats_auc_per_type": auc_per_type,
    }
    if multi_label:
        name, value = "macro AUC", results["cats_macro_auc"]
    elif len(f_per_type) == 2 and positive_label:
        name, value = f"F ({positive_label})", results["cats_f_per_type"][positive_label]["f"]
    else:
        name, value = "macro F", results["cats_macro_f"]
    return results | {"cats_score": value, "cats_score_desc": name}
