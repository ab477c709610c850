"""A pipeline as a function from texts to plain data, whose memory does not grow with what it reads.

spaCy keeps every new word it meets: a lexeme, strings, an entry in the tokenizer's cache. In a
memory zone all of them are freed at its end, so nothing that points to them may leave it: a Doc, a
token, or an exception, whose traceback holds both.

One thing outlasts a zone: in the hash tables of the vocab, the place of a word that is gone is not
free for any other. They double whenever they are full, so that a word takes some 50 bytes for good
(in preshed 3.0.15, 16 bytes a place, three strings a word). So now and then the vocab is replaced.
"""

import warnings
from collections import Counter
from contextlib import nullcontext
from math import inf, isfinite
from pathlib import Path
from textwrap import shorten
from typing import Any

from spacy.cli._util import setup_gpu
from spacy.language import Language
from spacy.pipeline import TextCategorizer, Tok2Vec
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from spacy.tokens import Doc
from spacy.util import load_model_from_config

from zero_copy.errors import UserError, describe_error
from zero_copy.pipelines import load_pipeline
from zero_copy.predictions import read_docs

# {"categories": [...], "scores": {label: score}}, or {"error": what went wrong}
Answer = dict[str, Any]

WARM_UP_WORDS = 1_000_000
# New words after which the vocab is replaced: by then its tables have grown by 2 to 5 MB.
RENEW_AFTER = 50_000
LONGEST_ERROR = 500


class Classifier:
    """A pipeline that classifies. To be used by one thread at a time, as a memory zone is.

    nlp (Language): The pipeline; a `doc_cleaner` is added if it has none.
    memory_zones (bool): Whether to forget the words of every batch. Without, memory grows.
    RAISES (UserError): If no component of the pipeline is a text classifier.
    """

    def __init__(self, nlp: Language, memory_zones: bool = True) -> None:
        find_classifiers(nlp)
        if "doc_cleaner" not in nlp.pipe_factories.values():
            nlp.add_pipe("doc_cleaner")
        self.memory_zones = memory_zones
        self.known: list[str] = []
        self._use(nlp)
        # A model's scores for no words at all depend on what else is in the batch: these do not.
        self.empty = {"categories": [], "scores": self._classify_batch([""])[0]["scores"]}

    @classmethod
    def load(
        cls,
        model: str,
        gpu_id: int = -1,
        warm_up: Path | None = None,
        memory_zones: bool = True,
    ) -> "Classifier":
        """Load a pipeline, and let its tokenizer read some texts.

        model (str): Folder or package of the pipeline.
        gpu_id (int): GPU, or -1 for the CPU. A GPU is one of the thread that calls this.
        warm_up (Optional[Path]): A `.spacy` file with texts like those to come. In a memory zone
            the tokenizer learns nothing, so what it has not read before it takes apart anew.
        memory_zones (bool): Whether to forget the words of every batch.
        RETURNS (Classifier): The classifier.
        RAISES (UserError): If there is no such pipeline, or no text classifier in it.
        """
        setup_gpu(gpu_id, silent=True)
        classifier = cls(load_pipeline(model), memory_zones)
        if warm_up:
            classifier.warm_up(warm_up)
        return classifier

    def warm_up(self, path: Path, words: int = WARM_UP_WORDS) -> None:
        """Let the tokenizer read texts outside a memory zone, so that it remembers their words.

        path (Path): A `.spacy` file.
        words (int): How many words are enough.
        RAISES (UserError): If there is no such file.
        """
        if not path.exists():
            raise UserError(
                f"There is no {path} to warm the tokenizer with",
                "Run `python -m spacy project run convert` first, or leave it out.",
            )
        found: Counter[str] = Counter()
        for doc in read_docs(path):
            found.update(doc.text.split())
            words -= len(doc)
            if words <= 0:
                break
        # The tokenizer's cache has room for 10,000: the most frequent are to have it.
        self.known = [word for word, _ in found.most_common()]
        self._use(self.nlp)

    @property
    def is_worn(self) -> bool:
        """Whether so many words have come and gone that the vocab should be replaced."""
        return self.memory_zones and len(self.nlp.vocab) > self._worn_at

    def renew(self) -> None:
        """Replace the pipeline by a copy that has met none of the texts."""
        try:
            self._use(copy_pipeline(self.nlp))
        except Exception as error:  # Better a pipeline that grows a little than none.
            self._worn_at = inf
            warnings.warn(f"The vocab can't be replaced: {error}", stacklevel=2)

    def _use(self, nlp: Language) -> None:
        self.nlp = nlp
        self.components = find_classifiers(nlp)
        self.zone = nlp.memory_zone if self.memory_zones else nullcontext
        for word in self.known:
            nlp.tokenizer(word)
        self._worn_at = len(nlp.vocab) + RENEW_AFTER  # counts words that are gone, too

    def classify(self, texts: list[str]) -> list[Answer]:
        """Classify texts together. One that makes the pipeline fail does not spoil the others.

        texts (List[str]): The texts.
        RETURNS (List[Dict[str, Any]]): In the same order, `categories` and `scores` of each text,
            or its `error`.
        """
        filled = [text for text in texts if text]
        answers = self._classify_batch(filled) if filled else []
        if len(filled) > 1 and any("error" in answer for answer in answers):
            answers = [self._classify_batch([text])[0] for text in filled]
        rest = iter(answers)
        return [next(rest) if text else self.empty for text in texts]

    def _classify_batch(self, texts: list[str]) -> list[Answer]:
        with self.zone():
            try:
                return self._plain_answers(texts)
            except Exception as error:
                return [explain(error)] * len(texts)

    def _plain_answers(self, texts: list[str]) -> list[Answer]:
        docs = list(self.nlp.pipe(texts, batch_size=len(texts)))
        if len(docs) != len(texts):
            raise ValueError("the pipeline left the text out")
        return [self._plain_answer(doc) for doc in docs]

    def _plain_answer(self, doc: Doc) -> Answer:
        scores = doc.cats
        if not all(map(isfinite, scores.values())):
            raise ValueError("the pipeline's scores are not numbers")
        chosen = [label for it in self.components.values() for label in categories(it, scores)]
        return {"categories": chosen, "scores": scores}


def explain(error: Exception) -> Answer:
    """An answer that says why there is none.

    error (Exception): What went wrong.
    RETURNS (Dict[str, str]): It as `error`, short, and fit for UTF-8.
    """
    short = shorten(describe_error(error), LONGEST_ERROR, placeholder=" …")
    return {"error": short.encode("utf8", "replace").decode("utf8")}


def copy_pipeline(nlp: Language) -> Language:
    """Copy a pipeline, with a vocab of its own. What is large is shared: vectors and parameters.

    nlp (Language): The pipeline, outside any memory zone; not to be used any more afterwards.
    RETURNS (Language): The copy.
    """
    copy = load_model_from_config(nlp.config)
    copy.vocab.from_bytes(nlp.vocab.to_bytes(exclude=["vectors"]))
    copy.vocab.vectors = nlp.vocab.vectors
    pairs: list[tuple[Any, Any]] = [(nlp.tokenizer, copy.tokenizer)]
    pairs += [(component, copy.get_pipe(name)) for name, component in nlp.components]
    for component, copied in pairs:
        if isinstance(component, TextCategorizer | Tok2Vec):
            copied.model, copied.cfg = component.model, component.cfg
        elif hasattr(component, "to_bytes"):
            content = component.to_bytes(exclude=["vocab"])
            copied.from_bytes(content, exclude=["vocab"])
    copy.meta.update(nlp.meta)
    return copy


def find_classifiers(nlp: Language) -> dict[str, TextCategorizer]:
    """The text classifiers of a pipeline.

    nlp (Language): The pipeline.
    RETURNS (Dict[str, TextCategorizer]): Its text classifiers by name.
    RAISES (UserError): If there are none.
    """
    found = {name: pipe for name, pipe in nlp.pipeline if isinstance(pipe, TextCategorizer)}
    if not found:
        raise UserError(
            "The pipeline has no text classifier",
            f"Its components are: {', '.join(nlp.pipe_names) or 'none'}.",
        )
    return found


def categories(component: TextCategorizer, scores: dict[str, float]) -> list[str]:
    """The categories that scores stand for, as `Scorer.score_cats` decides it.

    component (TextCategorizer): The text classifier.
    scores (Dict[str, float]): Scores of its labels, and perhaps of others.
    RETURNS (List[str]): The labels whose score reaches the threshold; without `multilabel` only
        the highest of them.
    """
    threshold = component.cfg["threshold"]
    labels = component.labels
    if not isinstance(component, MultiLabel_TextCategorizer):
        labels = (max(labels, key=scores.__getitem__),)
    return [label for label in labels if scores[label] >= threshold]
