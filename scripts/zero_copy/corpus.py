"""The reader of packed corpora, their batches, and the Examples that stand for these.

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
from zero_copy.copying import upload
from zero_copy.errors import UserError
from zero_copy.resident import ResidentCorpus, choose_labels, stripe
from zero_copy.store import read
from zero_copy.streaming import AUTO, bytes_of, place, refuse_streamed

USER_DATA_KEY = "zero_copy.batch"
# Words that one packed example of the reader stands for. They bound the memory of an evaluation;
# larger ones gain nothing on a CPU, whose caches they outgrow.
WORDS_PER_EXAMPLE = {"cpu": 8_192, "cuda": 262_144}
# An example with its two Docs takes some 10 KB, so a large corpus gets larger examples, not more.
MOST_EXAMPLES = 1_000
_kept: dict[tuple[Path, str, int | None], tuple[int, ResidentCorpus]] = {}


def kept_corpus(path: Path, device: torch.device, memory: int | None = None) -> ResidentCorpus:
    """The corpus of a file, resident or streamed, made at the first call and kept.

    Of several workers each has its stripe. spaCy resolves the config's readers several times a
    training, so it is the file, not the reader, that owns the corpus.

    path (Path): A packed corpus.
    device (torch.device): Where to place it.
    memory (Optional[int]): Bytes that it may take there, if that is not left to `place`.
    RETURNS (ResidentCorpus): The corpus; made anew if the file has changed.
    RAISES (UserError): If the file can't be read, has fewer documents than there are workers, or
        can't be streamed in so little memory.
    """
    key = (path.resolve(), str(device), memory)
    changed = path.stat().st_mtime_ns if path.exists() else 0
    if key not in _kept or _kept[key][0] != changed:
        packed = read(path)
        if workers.count() > 1:
            packed = stripe(packed, workers.rank(), workers.count())
        _kept[key] = (changed, place(packed, device, memory))
    return _kept[key][1]


class PackedBatch:
    """Some documents of a corpus, by their numbers; all else is gathered on the device.

    corpus (ResidentCorpus): Where the documents are: a resident corpus, or a window of a streamed
        one.
    docs (numpy.ndarray): Numbers that the documents have there, int64, `(documents,)`.
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

    @property
    def numbers_in_whole(self) -> numpy.ndarray:
        """Numbers that the documents have in the whole corpus, int64, `(documents,)`."""
        return self.corpus.numbers_of(self.docs)

    @cached_property
    def numbers(self) -> torch.Tensor:
        """Numbers of the documents on the device, int64, `(documents,)`.

        This is all of a batch that goes to a GPU: 8 bytes a document, once.
        """
        return upload(self.docs, self.corpus.device)

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Words of each document, int64, `(documents,)`."""
        offsets = self.corpus.placed.doc_offsets
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
        shift = self.corpus.placed.doc_offsets[self.numbers] - self.starts
        return torch.arange(self.words, device=self.corpus.device) + shift[self.doc_of_token]

    @cached_property
    def token_types(self) -> torch.Tensor:
        """The type of each token, int32, `(tokens,)`."""
        return self.corpus.placed.token_types[self.tokens]

    @cached_property
    def types(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The distinct types of the batch, int32, `(types,)`, and which of them each token has,
        int64, `(tokens,)`."""
        types, which = torch.unique(self.token_types, return_inverse=True)
        return types, which

    def truths(self, labels: tuple[str, ...]) -> torch.Tensor:
        """The categories of the documents, as `ResidentCorpus.truths` gives them."""
        if self.corpus.is_placed:
            return self.corpus.truths(labels)[self.numbers]
        # An evaluation asks when all is predicted. For a few bytes a document no window comes back.
        cats = self.corpus.packed.columns["cats"][torch.from_numpy(self.docs)]
        return choose_labels(cats, self.corpus.info.labels, labels).to(self.corpus.device)


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
    memory (Union[str, int]): What the corpus may take on the device; see `create_corpus`.
    RAISES (UserError): If the memory is no size.
    """

    def __init__(
        self, path: Path, *, max_length: int = 0, limit: int = 0, memory: str | int = AUTO
    ) -> None:
        self.path = Path(path)
        self.max_length = max_length
        self.limit = limit
        self.memory = bytes_of(memory)

    def __call__(self, nlp: Language) -> Iterator[PackedExample]:
        """Yield the packed examples.

        nlp (Language): The pipeline that trains or is evaluated.
        YIELDS (PackedExample): Consecutive documents, together as many words as fill the device.
        RAISES (UserError): If the file can't be read, or the pipeline can't train from it.
        """
        refuse_pipeline(nlp)
        device = ops_device(get_current_ops())
        corpus = kept_corpus(self.path, device, self.memory)
        if corpus.info.lang != nlp.lang:
            raise UserError(
                f"{self.path} was packed for language {corpus.info.lang}, "
                f"and the pipeline's is {nlp.lang}",
                f"Convert and pack with --lang {nlp.lang}, or change [nlp] lang.",
            )
        for name, component in nlp.components:  # those that are frozen included
            if hasattr(component, "check_corpus"):
                refuse_streamed(corpus, name)
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
        words = max(WORDS_PER_EXAMPLE[device.type], int(lengths[docs].sum()) // MOST_EXAMPLES)
        for part, numbers in corpus.in_order(docs):
            ends = part.lengths[numbers].cumsum()
            cuts = numpy.arange(words, ends[-1], words)
            for run in numpy.split(numbers, numpy.unique(numpy.searchsorted(ends, cuts))):
                if len(run):
                    yield PackedExample(PackedBatch(part, run), nlp.vocab)


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
def create_corpus(
    path: Path | None, max_length: int = 0, limit: int = 0, memory: str | int = AUTO
) -> Corpus:
    """Read a packed corpus.

    A corpus that does not fit is streamed: windows of it come to the device while training goes on.
    Every epoch still has each document once, in an order that the batcher's seed draws, but mixed
    only with those of the same window: see `streaming.py`.

    path (Optional[Path]): The `.safetensors` file that `pack` made.
    max_length (int): Documents of this many words and more are left out; 0 keeps all.
    limit (int): Only the first so many documents; 0 for all.
    memory (Union[str, int]): What words and categories may take on the device: a size such as
        `8GB` (2^30 bytes each), or a number of bytes. `auto` leaves half of a GPU's free memory to
        the model, and knows no limit on a CPU, which reads from the mapped file.
    RETURNS (Corpus): The reader.
    RAISES (UserError): If no path is given, or the memory is no size.
    """
    if path is None:
        raise UserError(
            "No path to a packed corpus", "Give --paths.train and --paths.dev, or set [paths]."
        )
    return Corpus(path, max_length=max_length, limit=limit, memory=memory)
