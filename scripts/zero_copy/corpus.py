"""The resident corpus, the batches that are cut from it, and the Examples that stand for them.

spaCy's training loop and `Language.evaluate` ask little of an Example: `len(eg)`,
`len(eg.predicted)` and `eg.reference`. A packed example answers these for a whole run of documents,
and what rides in its Docs' `user_data` is the packed batch: the numbers of the documents, and
nothing else of them.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import spacy
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import CupyOps, Ops, get_current_ops

from zero_copy import workers
from zero_copy.errors import UserError
from zero_copy.store import MISSING, PackedCorpus, read

USER_DATA_KEY = "zero_copy.batch"
# Words that one packed example of the reader stands for. They bound the memory of an evaluation;
# larger ones gain nothing on a CPU, whose caches they outgrow.
WORDS_PER_EXAMPLE = {"cpu": 8_192, "cuda": 262_144}
# An example with its two Docs takes some 10 KB, so a large corpus gets larger examples, not more.
MOST_EXAMPLES = 1_000
_resident: dict[tuple[Path, str], tuple[int, "ResidentCorpus"]] = {}


class ResidentCorpus:
    """A packed corpus whose columns have been placed on the device, once.

    packed (PackedCorpus): The memory-mapped corpus. On the CPU it stays where it is.
    device (torch.device): Where the columns go.
    """

    def __init__(self, packed: PackedCorpus, device: torch.device) -> None:
        self.packed = packed
        self.info = packed.info
        self.device = device
        self.lengths = packed.lengths
        self.token_types = packed.columns["token_types"].to(device)
        self.doc_offsets = packed.columns["doc_offsets"].to(device)
        self.cats = packed.columns["cats"].to(device)
        self._derived: dict[tuple, Any] = {}

    def cached(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What a model needs and that follows from the packed columns; computed once.

        key (tuple): What identifies it.
        make (Callable[[], Any]): Computes it.
        RETURNS (Any): What `make` returned.
        """
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def derived(self, key: tuple, make: Callable[[], numpy.ndarray]) -> torch.Tensor:
        """A column that a model needs and that follows from the packed ones; computed once.

        key (tuple): What identifies the column.
        make (Callable[[], numpy.ndarray]): Computes it, on the host.
        RETURNS (torch.Tensor): The column on the device.
        """
        return self.cached(key, lambda: torch.from_numpy(make()).to(self.device))

    def truths(self, labels: tuple[str, ...]) -> torch.Tensor:
        """The categories of all documents for the given labels.

        labels (Tuple[str, ...]): Labels, in the order wanted.
        RETURNS (torch.Tensor): uint8, `(documents, labels)`: 0 no, 1 yes, 255 not annotated, as
            are labels that the corpus does not know.
        """

        def make() -> numpy.ndarray:
            cats = self.packed.columns["cats"].numpy()
            column = {label: number for number, label in enumerate(self.info.labels)}
            chosen = numpy.full((len(cats), len(labels)), MISSING, "uint8")
            for number, label in enumerate(labels):
                if label in column:
                    chosen[:, number] = cats[:, column[label]]
            return chosen

        if list(labels) == self.info.labels:
            return self.cats
        return self.derived(("truths", labels), make)


def stripe(packed: PackedCorpus, number: int, count: int) -> PackedCorpus:
    """A worker's share of a packed corpus: documents that follow each other, and all types.

    packed (PackedCorpus): The corpus; of its columns nothing is read but where documents start.
    number (int): Number of the worker.
    count (int): How many workers there are.
    RETURNS (PackedCorpus): Documents with as many words as any other worker's, to within one.
    RAISES (UserError): If there are fewer documents than workers.
    """
    offsets = packed.columns["doc_offsets"].numpy()
    documents = len(offsets) - 1
    if documents < count:
        raise UserError(
            f"{packed.path} has {documents} documents for {count} workers",
            "Train with fewer workers.",
        )
    shares = offsets[-1] * numpy.arange(count + 1) // count
    cuts = numpy.searchsorted(offsets[:-1], shares)
    # Each has a document, even if others have all the words.
    cuts = numpy.maximum(cuts, numpy.arange(count + 1))
    cuts = numpy.minimum(cuts, documents - count + numpy.arange(count + 1))
    start, end = cuts[number], cuts[number + 1]
    columns = packed.columns | {
        "token_types": packed.columns["token_types"][offsets[start] : offsets[end]],
        "doc_offsets": packed.columns["doc_offsets"][start : end + 1] - int(offsets[start]),
        "cats": packed.columns["cats"][start:end],
    }
    return PackedCorpus(packed.path, packed.info, columns)


def resident(path: Path, device: torch.device) -> ResidentCorpus:
    """The resident corpus of a file, placed on the device at the first call and kept.

    Of several workers each has its stripe. spaCy resolves the config's readers several times a
    training, so it is the file, not the reader, that owns the corpus.

    path (Path): A packed corpus.
    device (torch.device): Where to place it.
    RETURNS (ResidentCorpus): The corpus; placed anew if the file has changed.
    RAISES (UserError): If the file can't be read, or has fewer documents than there are workers.
    """
    key = (path.resolve(), str(device))
    changed = path.stat().st_mtime_ns if path.exists() else 0
    if key not in _resident or _resident[key][0] != changed:
        packed = read(path)
        if workers.count() > 1:
            packed = stripe(packed, workers.rank(), workers.count())
        _resident[key] = (changed, ResidentCorpus(packed, device))
    return _resident[key][1]


class PackedBatch:
    """Some documents of a resident corpus, by their numbers; all else is gathered on the device.

    corpus (ResidentCorpus): Where the documents are.
    docs (numpy.ndarray): Numbers of the documents, int64, `(documents,)`.
    share (float): Their share of the documents that all workers have in this step.
    """

    def __init__(self, corpus: ResidentCorpus, docs: numpy.ndarray, share: float = 1.0) -> None:
        self.corpus = corpus
        self.docs = docs
        self.share = share
        self.words = int(corpus.lengths[docs].sum())
        # What components make of the batch: scores by component; by ID of the listener its token
        # vectors and, in training, the way back for their gradient.
        self.scores: dict[str, torch.Tensor] = {}
        self.vectors: dict[int, Any] = {}
        self.send_back: dict[int, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self.docs)

    def __deepcopy__(self, memo: dict) -> "PackedBatch":
        # `Doc.copy`, which spaCy calls at every step and evaluation, deep-copies the user data.
        return self

    @cached_property
    def numbers(self) -> torch.Tensor:
        """Numbers of the documents on the device, int64, `(documents,)`."""
        return torch.from_numpy(self.docs).to(self.corpus.device, non_blocking=True)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Words of each document, int64, `(documents,)`."""
        offsets = self.corpus.doc_offsets
        return offsets[self.numbers + 1] - offsets[self.numbers]

    @cached_property
    def ends(self) -> torch.Tensor:
        """Where each document ends among the tokens of the batch, int64, `(documents,)`."""
        return self.lengths.cumsum(0)

    @cached_property
    def starts(self) -> torch.Tensor:
        """Where each document starts among the tokens of the batch, int64, `(documents,)`."""
        return self.ends - self.lengths

    @cached_property
    def doc_of_token(self) -> torch.Tensor:
        """Position in the batch of each token's document, int64, `(tokens,)`."""
        positions = torch.arange(len(self), device=self.corpus.device)
        # With `output_size` known, the device need not be asked how many there are.
        return positions.repeat_interleave(self.lengths, output_size=self.words)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Position in the corpus of each token, int64, `(tokens,)`."""
        shift = self.corpus.doc_offsets[self.numbers] - self.starts
        return torch.arange(self.words, device=self.corpus.device) + shift[self.doc_of_token]

    @cached_property
    def token_types(self) -> torch.Tensor:
        """The type of each token, int32, `(tokens,)`."""
        return self.corpus.token_types[self.tokens]

    @cached_property
    def types(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct types of the batch, int32, `(types,)`, and which of them each token has,
        int64, `(tokens,)`."""
        types, which = torch.unique(self.token_types, return_inverse=True)
        return types, which

    def truths(self, labels: tuple[str, ...]) -> torch.Tensor:
        """The categories of the documents, as `ResidentCorpus.truths` gives them."""
        return self.corpus.truths(labels)[self.numbers]


class PackedExample(Example):
    """An Example that stands for a packed batch.

    batch (PackedBatch): The documents that it stands for.
    vocab (Vocab): Vocab of the pipeline.
    """

    def __init__(self, batch: PackedBatch, vocab: Vocab) -> None:
        self.batch = batch
        user_data = {USER_DATA_KEY: batch}
        super().__init__(Doc(vocab, user_data=user_data), Doc(vocab, user_data=user_data))

    def __len__(self) -> int:
        return self.batch.words


def packed_batches(docs: Iterable[Doc]) -> list[PackedBatch] | None:
    """The packed batches that Docs stand for.

    docs (Iterable[Doc]): The Docs of packed examples, predicted or reference, or ordinary ones.
    RETURNS (Optional[List[PackedBatch]]): The batches, or None where the Docs are ordinary ones.
    RAISES (ValueError): If there are some of both.
    """
    batches = [doc.user_data.get(USER_DATA_KEY) for doc in docs]
    packed = [batch for batch in batches if batch is not None]
    if not packed:
        return None
    if len(packed) != len(batches):
        raise ValueError("Packed and ordinary examples can't be mixed in one batch")
    return packed


class Corpus:
    """Yields packed examples for a packed corpus, each for a run of documents in their order.

    path (Path): The `.safetensors` file.
    max_length (int): Documents of this many words and more are left out; 0 keeps all.
    limit (int): Only the first so many documents; 0 for all.
    """

    def __init__(self, path: Path, *, max_length: int = 0, limit: int = 0) -> None:
        self.path = Path(path)
        self.max_length = max_length
        self.limit = limit

    def __call__(self, nlp: Language) -> Iterator[PackedExample]:
        """Yield the packed examples.

        nlp (Language): The pipeline that trains or is evaluated.
        YIELDS (PackedExample): Consecutive documents, together as many words as fill the device.
        RAISES (UserError): If the file can't be read, or the pipeline can't train from it.
        """
        refuse_pipeline(nlp)
        device = ops_device(get_current_ops())
        corpus = resident(self.path, device)
        if corpus.info.lang != nlp.lang:
            raise UserError(
                f"{self.path} was packed for language {corpus.info.lang}, "
                f"and the pipeline's is {nlp.lang}",
                f"Convert and pack with --lang {nlp.lang}, or change [nlp] lang.",
            )
        for _, component in nlp.components:  # those that are frozen included
            if hasattr(component, "check_corpus"):
                component.check_corpus(corpus, nlp)
        lengths = corpus.lengths
        docs = numpy.flatnonzero(lengths > 0)
        if self.limit:
            docs = docs[: self.limit]
        if self.max_length:
            docs = docs[lengths[docs] < self.max_length]
        if not len(docs):
            raise UserError(
                f"{self.path}: no document has fewer than {self.max_length} words",
                "Raise max_length in [corpora], or set it to 0.",
            )
        ends = lengths[docs].cumsum()
        words = max(WORDS_PER_EXAMPLE[device.type], int(ends[-1]) // MOST_EXAMPLES)
        cuts = numpy.arange(words, ends[-1], words)
        for run in numpy.split(docs, numpy.unique(numpy.searchsorted(ends, cuts))):
            if len(run):
                yield PackedExample(PackedBatch(corpus, run), nlp.vocab)


def ops_device(ops: Ops) -> torch.device:
    """The torch device on which thinc's operations work.

    ops (Ops): thinc's operations.
    RETURNS (torch.device): The GPU for CuPy's, the CPU for all others.
    """
    if isinstance(ops, CupyOps):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def refuse_pipeline(nlp: Language) -> None:
    """Refuse what can't be trained from a packed corpus, before training starts.

    nlp (Language): The pipeline with its whole config.
    RAISES (UserError): If a component that is not frozen needs ordinary Docs, naming it.
    """
    training = nlp.config.interpolate()["training"]
    frozen = training.get("frozen_components", [])
    for name, component in nlp.pipeline:
        trains = getattr(component, "is_trainable", False) and name not in frozen
        if trains and not getattr(component, "trains_packed", False):
            factory = nlp.get_pipe_meta(name).factory
            ours = f"zero_copy_{factory}"
            way = (
                f'Use factory = "{ours}" in [components.{name}]'
                if nlp.has_factory(ours)
                else f"Train {name!r} in a pipeline of its own"
            )
            raise UserError(
                f"Component {name!r} ({factory}) can't train from a packed corpus",
                f"{way}, name it in [training] frozen_components, or read the corpus with "
                "spacy.Corpus.v1.",
            )


@spacy.registry.readers("zero_copy.Corpus.v1")
def create_corpus(path: Path | None, max_length: int = 0, limit: int = 0) -> Corpus:
    """Read a packed corpus.

    path (Optional[Path]): The `.safetensors` file that `pack` made.
    max_length (int): Documents of this many words and more are left out; 0 keeps all.
    limit (int): Only the first so many documents; 0 for all.
    RETURNS (Corpus): The reader.
    RAISES (UserError): If no path is given.
    """
    if path is None:
        raise UserError(
            "No path to a packed corpus", "Give --paths.train and --paths.dev, or set [paths]."
        )
    return Corpus(path, max_length=max_length, limit=limit)
