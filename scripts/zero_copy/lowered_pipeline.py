"""A stock pipeline of text classifiers, run lowered on packed columns that belong to no file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from spacy.language import Language
from spacy.pipeline import TextCategorizer, Tok2Vec
from spacy.pipeline.textcat_multilabel import MultiLabel_TextCategorizer
from thinc.api import Model

from zero_copy.corpus import WORDS_PER_EXAMPLE, PackedBatch, ResidentCorpus, ops_device
from zero_copy.errors import UserError, describe_error
from zero_copy.layers import compact_rows
from zero_copy.lowering import Run, check_lowered, predict
from zero_copy.parameters import Parameters
from zero_copy.store import (
    LEXICAL_ATTRS,
    TOKEN_ATTRS,
    PackedCorpus,
    PackedInfo,
    Source,
    describe_types,
    find_types,
    offsets_of,
)
from zero_copy.textcat import PackedMultiLabelTextCategorizer, PackedTextCategorizer
from zero_copy.tok2vec import PackedTok2Vec
from zero_copy.tokenizing import Words, collect_words

Columns = dict[str, torch.Tensor]
CLASSIFIERS = (
    *(TextCategorizer, MultiLabel_TextCategorizer),
    *(PackedTextCategorizer, PackedMultiLabelTextCategorizer),
)
# A subclass may do something else with the scores, so only the classes themselves will do.
LOWERED = (Tok2Vec, PackedTok2Vec, *CLASSIFIERS)
# Whatever the pipeline is, these are words that it can say something of.
PROBE = "One probe of 2 sentences. It asks what the models look at!"


class LoweredPipeline:
    """Gives texts the scores that `nlp(text).cats` has, from packed columns.

    nlp (Language): A stock pipeline, or one of this project's that has been trained.
    RAISES (UserError): If one of its components can't be lowered, naming it.
    """

    def __init__(self, nlp: Language) -> None:
        self.nlp = nlp
        self.device = torch.device("cpu")
        self._parameters: dict[str, Parameters] = {}
        self.labels: list[str] = []
        for name, component in nlp.pipeline:
            _check(nlp, name, component)
            self.device = ops_device(component.model.ops)  # type: ignore[attr-defined]
            if isinstance(component, CLASSIFIERS):
                self.labels += [label for label in component.labels if label not in self.labels]
        if not self.labels:
            raise UserError("The pipeline has no text classifier", "There is nothing to annotate.")
        self.attrs = self._find_attrs()

    def score(self, columns: Columns) -> tuple[numpy.ndarray, dict[int, str]]:
        """Score documents.

        columns (Dict[str, torch.Tensor]): What `pack_words` made of their words.
        RETURNS (Tuple[numpy.ndarray, Dict[int, str]]): The scores in the order of `labels`,
            float32, `(documents, labels)`, and by the numbers of those documents on which the
            models fail what went wrong.
        """
        corpus = self._resident(self._packed(columns, self.attrs))
        scores = numpy.zeros((len(corpus.lengths), len(self.labels)), "float32")
        failures: dict[int, str] = {}
        for docs in _runs(corpus.lengths, WORDS_PER_EXAMPLE[self.device.type]):
            try:
                scores[docs] = self._score(corpus, docs)
            except Exception:  # whatever a layer may raise, out of memory say
                for doc in docs:
                    try:
                        scores[doc] = self._score(corpus, docs=numpy.array([doc]))
                    except Exception as error:
                        failures[int(doc)] = describe_error(error)
        finite = numpy.isfinite(scores).all(1)
        failures |= {int(doc): "A score is no number" for doc in numpy.flatnonzero(~finite)}
        return scores, failures

    def _score(self, corpus: ResidentCorpus, docs: numpy.ndarray) -> numpy.ndarray:
        batch = PackedBatch(corpus, docs)
        columns = numpy.zeros((len(docs), len(self.labels)), "float32")
        for name, component in self.nlp.pipeline:
            parameters = self._parameters_of(name, component.model, corpus)  # type: ignore[attr-defined]
            if isinstance(component, Tok2Vec):
                run = Run(batch, parameters, self.nlp.vocab, is_train=False)
                with torch.no_grad():
                    vectors = run.tokens(run(component.model))
                batch.vectors.update({listener.id: vectors for listener in component.listeners})
            else:
                scores = predict(component.model, batch, parameters, self.nlp.vocab)  # type: ignore[attr-defined]
                places = [self.labels.index(label) for label in component.labels]  # type: ignore[attr-defined]
                columns[:, places] = scores.cpu().numpy()
        return columns

    def _parameters_of(self, name: str, model: Model, corpus: ResidentCorpus) -> Parameters:
        # Buckets of a bag of words that are zero now are not kept, and no corpus changes them.
        if name not in self._parameters:
            rows = compact_rows(model, corpus)
            self._parameters[name] = Parameters(model, self.device, rows)
        return self._parameters[name]

    def _resident(self, packed: PackedCorpus) -> ResidentCorpus:
        return ResidentCorpus(packed, self.device)

    def _packed(self, columns: Columns, attrs: tuple[str, ...]) -> PackedCorpus:
        nowhere = Source(name="", size=0, md5="")
        info = PackedInfo(lang=self.nlp.lang or "", attrs=list(attrs), labels=[], source=nowhere)
        documents = len(columns["doc_offsets"]) - 1
        cats = torch.zeros((documents, 0), dtype=torch.uint8)
        return PackedCorpus(Path("texts"), info, {**columns, "cats": cats})

    def _find_attrs(self) -> tuple[str, ...]:
        """The token attributes that the models look at: those they ask a sample for."""
        words = collect_words([self.nlp.make_doc(PROBE)])
        packed = self._packed(pack_words(self.nlp, words, LEXICAL_ATTRS), LEXICAL_ATTRS)
        asked = _Asked(packed.path, packed.info, packed.columns)
        self._score(self._resident(asked), numpy.array([0]))
        return tuple(dict.fromkeys((*TOKEN_ATTRS, *asked.attrs)))


class _Asked(PackedCorpus):
    """A packed corpus that notes for which attributes it is asked."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.attrs: list[str] = []

    def attribute(self, name: str) -> numpy.ndarray:
        self.attrs.append(name)
        return super().attribute(name)


def _check(nlp: Language, name: str, component: Any) -> None:
    factory = nlp.get_pipe_meta(name).factory
    if type(component) not in LOWERED:
        raise UserError(f"Component {name!r} ({factory}) can't be lowered")
    try:
        check_lowered(component.model)
    except UserError as error:
        raise UserError(
            f"The model of component {name!r} ({factory}) can't be lowered", str(error)
        ) from error


def _runs(lengths: numpy.ndarray, words: int) -> Iterator[numpy.ndarray]:
    """Cut the documents that have words into runs of about so many words."""
    docs = numpy.flatnonzero(lengths > 0)
    if len(docs):
        ends = lengths[docs].cumsum()
        cuts = numpy.unique(numpy.searchsorted(ends, numpy.arange(words, ends[-1], words)))
        yield from (run for run in numpy.split(docs, cuts) if len(run))


def pack_words(nlp: Language, words: Words, attrs: tuple[str, ...]) -> Columns:
    """Pack the words of documents.

    nlp (Language): The pipeline that has tokenized them.
    words (Words): The words.
    attrs (Tuple[str, ...]): The token attributes to pack, TOKEN_ATTRS among them.
    RETURNS (Dict[str, torch.Tensor]): The columns of a packed corpus but the categories.
    """
    rows, token_types = find_types(*words.attrs.T)
    types = numpy.stack([column.astype("uint64") for column in rows], axis=1)
    columns = {
        **describe_types(nlp.vocab, attrs, types),
        "token_types": token_types.astype("int32"),
        "doc_offsets": offsets_of(words.lengths),
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}
