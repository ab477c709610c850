"""What a process does with texts that are to be annotated: tokenize them, or all of it.

A process lives as long as the job. Texts come in lists, and each list is worked on inside a memory
zone, as soon as the process knows the words that are frequent: what it then makes of new words is
dropped with the list.
"""

from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from typing import NamedTuple

import numpy
import spacy
import torch
from spacy.attrs import IDS
from spacy.language import Language
from spacy.tokens import Doc

from zero_copy.docbins import EncodedDocs
from zero_copy.errors import describe_error
from zero_copy.lowered_pipeline import Columns, pack_words
from zero_copy.tokenizing import FlatTokenizer, collect_words, encode_words


class Result(NamedTuple):
    """What a process has made of some texts.

    words (int): How many words they have.
    failures (Dict[int, str]): By the numbers of those texts that failed what went wrong.
    columns (Optional[Dict[str, torch.Tensor]]): Their words packed, in shared memory; texts that
        failed have none.
    scores (Optional[numpy.ndarray]): Their scores, float32, `(texts, labels)`, where the process
        has run the whole pipeline.
    encoded (Optional[EncodedDocs]): Their part of a DocBin file, if one is to be written.
    """

    words: int
    failures: dict[int, str]
    columns: Columns | None = None
    scores: numpy.ndarray | None = None
    encoded: EncodedDocs | None = None


class Tokenize:
    """Tokenizes texts and packs their words.

    make (Callable[[], Language]): Makes a pipeline with the tokenizer.
    attrs (Tuple[str, ...]): The token attributes to pack.
    encode (bool): Whether to encode the documents for a DocBin file, too.
    """

    def __init__(
        self, make: Callable[[], Language], attrs: tuple[str, ...], encode: bool = False
    ) -> None:
        self._attrs = attrs
        self._encode = encode
        self._tokenizer = FlatTokenizer(make, [IDS[name] for name in attrs])

    def __call__(self, texts: list[str]) -> Result:
        """Tokenize texts.

        texts (List[str]): The texts, at least one.
        RETURNS (Result): Their words in columns.
        """
        share_cores()
        failures: dict[int, str] = {}
        with self._tokenizer.session() as nlp:
            words = collect_words(each(nlp.make_doc, nlp, texts, failures))
            columns = pack_words(nlp, words, self._attrs)
            encoded = encode_words(words, nlp.vocab.strings) if self._encode else None
        return Result(len(words.attrs), failures, columns, encoded=encoded)


class Annotate:
    """Runs a whole stock pipeline, for those that can't be lowered.

    make (Callable[[], Language]): Loads it.
    labels (List[str]): The categories whose scores to keep.
    encode (bool): Whether to encode the documents for a DocBin file, too.
    """

    def __init__(
        self, make: Callable[[], Language], labels: list[str], encode: bool = False
    ) -> None:
        self._labels = labels
        self._encode = encode
        self._tokenizer = FlatTokenizer(make)

    def __call__(self, texts: list[str]) -> Result:
        """Annotate texts.

        texts (List[str]): The texts, at least one.
        RETURNS (Result): Their scores.
        """
        share_cores()
        failures: dict[int, str] = {}
        with self._tokenizer.session() as nlp:
            try:
                docs = list(nlp.pipe(texts))
            except Exception:  # whatever a component may raise
                docs = list(each(nlp, nlp, texts, failures))
            rows = [[doc.cats.get(label, 0.0) for label in self._labels] for doc in docs]
            words = collect_words(docs)
            encoded = encode_words(words, nlp.vocab.strings) if self._encode else None
            del docs  # They must not be there any longer when the memory zone ends.
        scores = numpy.array(rows, "float32")
        return Result(len(words.attrs), failures, scores=scores, encoded=encoded)


def share_cores() -> None:
    """Leave the other cores to the other processes: each of these computes with one thread."""
    if parent_process() is not None:
        torch.set_num_threads(1)


def each(
    make_doc: Callable[[str], Doc], nlp: Language, texts: list[str], failures: dict[int, str]
) -> Iterator[Doc]:
    """Make a Doc of each text, an empty one where that fails.

    make_doc (Callable[[str], Doc]): Makes one.
    nlp (Language): The pipeline.
    texts (List[str]): The texts.
    failures (Dict[int, str]): Where to note by its number why a text failed.
    YIELDS (Doc): The Docs.
    """
    for number, text in enumerate(texts):
        try:
            doc = make_doc(text)
        except Exception as error:  # whatever a tokenizer or a component may raise
            failures[number] = describe_error(error)
            doc = Doc(nlp.vocab)
        yield doc


def load_tokenizer(model: str, components: tuple[str, ...]) -> Language:
    """Load a pipeline without its components and word vectors.

    model (str): Its folder, or the name of its package.
    components (Tuple[str, ...]): Names of all its components.
    RETURNS (Language): The pipeline.
    """
    return spacy.load(model, exclude=[*components, "vectors"])
