"""The resident corpus: packed columns that have been placed on the device, once."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy
import torch

from zero_copy.errors import UserError
from zero_copy.store import MISSING, PackedCorpus

# Some documents of a corpus: the part of it that the device holds together, and their numbers in
# that part, int64, `(documents,)`.
Documents = tuple["ResidentCorpus", numpy.ndarray]


class Placed(NamedTuple):
    """The columns on the device that batches are gathered from.

    token_types (torch.Tensor): The type of each token, int32, `(tokens,)`.
    doc_offsets (torch.Tensor): Where each document starts in `token_types`, int64,
        `(documents + 1,)`.
    cats (torch.Tensor): uint8, `(documents, labels)`: 0 no, 1 yes, 255 not annotated.
    """

    token_types: torch.Tensor
    doc_offsets: torch.Tensor
    cats: torch.Tensor


class ResidentCorpus:
    """A packed corpus whose columns are placed on the device, once.

    A corpus that is too large for that is seen through windows: parts of it that have the same
    face. What follows from the types alone belongs to the `whole`, all else to the part.

    packed (PackedCorpus): The memory-mapped corpus. On the CPU it stays where it is.
    device (torch.device): Where the columns go.
    """

    def __init__(self, packed: PackedCorpus, device: torch.device) -> None:
        self.packed = packed
        self.info = packed.info
        self.device = device
        self.lengths = packed.lengths
        self._derived: dict[tuple, Any] = {}

    @property
    def whole(self) -> "ResidentCorpus":
        """The corpus that this is all or a part of."""
        return self

    @property
    def placed(self) -> Placed:
        """The columns on the device, placed there at the first use."""
        columns = self.packed.columns

        def place() -> Placed:
            return Placed(*(columns[name].to(self.device) for name in Placed._fields))

        return self.cached(("placed",), place)

    @property
    def is_placed(self) -> bool:
        """Whether the columns can be had without copying any."""
        return True

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

        A window drops it when it leaves the device, so what follows from the types alone is asked
        of the `whole`.

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
        return self.cached(
            ("truths", labels), lambda: choose_labels(self.placed.cats, self.info.labels, labels)
        )

    def numbers_of(self, docs: numpy.ndarray) -> numpy.ndarray:
        """The numbers that documents have in the whole corpus.

        docs (numpy.ndarray): Their numbers here, int64, `(documents,)`.
        RETURNS (numpy.ndarray): int64, `(documents,)`.
        """
        return docs

    def in_order(self, docs: numpy.ndarray) -> Iterator[Documents]:
        """Documents of a whole corpus in their order, by the parts in which they are used.

        docs (numpy.ndarray): Their numbers, ascending, int64, `(documents,)`.
        YIELDS (Documents): Parts, and those of the documents that they have.
        """
        yield self, docs

    def shuffled(self, docs: numpy.ndarray, order: numpy.random.Generator) -> Iterator[Documents]:
        """Documents of a whole corpus in a random order, by the parts in which they are used.

        docs (numpy.ndarray): Their numbers, ascending, int64, `(documents,)`.
        order (numpy.random.Generator): What draws the order.
        YIELDS (Documents): Parts, and those of the documents that they have.
        """
        docs = docs.copy()
        order.shuffle(docs)
        yield self, docs


def choose_labels(cats: torch.Tensor, known: list[str], labels: tuple[str, ...]) -> torch.Tensor:
    """The categories of some documents for the given labels.

    cats (torch.Tensor): Their categories as packed, uint8, `(documents, known)`.
    known (List[str]): The labels of its columns.
    labels (Tuple[str, ...]): Labels, in the order wanted.
    RETURNS (torch.Tensor): uint8, `(documents, labels)`, 255 for labels that are not known.
    """
    if list(labels) == known:
        return cats
    column = {label: number for number, label in enumerate(known)}
    chosen = cats.new_full((len(cats), len(labels)), MISSING)
    for number, label in enumerate(labels):
        if label in column:
            chosen[:, number] = cats[:, column[label]]
    return chosen


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
