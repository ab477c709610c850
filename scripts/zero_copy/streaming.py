"""A corpus larger than the device: parts of it come and go while training goes on.

Documents that follow each other make a shard, and as many shards as fit into half the memory make
a window. There are two windows on the device: batches are gathered from one, while a thread fills
the other. What follows from the types is computed once for all windows.

How well documents are mixed. An epoch draws the shards in a fresh order, cuts that order into
windows of like size, and shuffles all documents of a window. So every document is seen once an
epoch, and in each epoch with others: those of some `SHARDS_PER_WINDOW` random places of the
corpus. Documents of one shard always meet in the same window. Where a corpus is sorted, by label
say, a window has the labels of its shards; the more memory, the nearer is the order to that of a
resident corpus. Batches are cut window by window, so that the last of each may be a small one.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy
import torch

from zero_copy.copying import Copier, make_copier
from zero_copy.errors import UserError
from zero_copy.resident import Documents, Placed, ResidentCorpus, choose_labels
from zero_copy.store import PackedCorpus, offsets_of

AUTO = "auto"
UNITS = {unit: 2 ** (10 * power) for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))}
# More shards mix better, and are read in smaller pieces.
SHARDS_PER_WINDOW = 16
# The share of a GPU's free memory that `auto` lets the columns of a corpus take.
SHARE_OF_MEMORY = 0.5
WORD_BYTES, OFFSET_BYTES = 4, 8


def bytes_of(memory: str | int) -> int | None:
    """Read the setting `memory`.

    memory (Union[str, int]): `auto`, a size such as `8GB`, or a number of bytes.
    RETURNS (Optional[int]): Bytes, or None for `auto`.
    RAISES (UserError): If it is none of these.
    """
    if memory == AUTO:
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) ?([KMGT]?B)?", str(memory).strip(), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[(found[2] or "B").upper()]) if found else 0
    if not size:
        raise UserError(
            f"[corpora] memory = {memory!r} is no size",
            f'Use "{AUTO}", a size such as "8GB" or "500MB", or a number of bytes.',
        )
    return size


def describe_bytes(size: int) -> str:
    """A size as the setting `memory` takes it, rounded up.

    size (int): Bytes.
    RETURNS (str): At most four digits and a unit.
    """
    for unit, value in UNITS.items():
        if size <= 9999 * value:
            return f"{-(-size // value)}{unit}"
    return f"{-(-size // UNITS['TB'])}TB"


def place(packed: PackedCorpus, device: torch.device, memory: int | None) -> ResidentCorpus:
    """Make a corpus resident if it fits, and else one that is streamed.

    packed (PackedCorpus): The corpus.
    device (torch.device): Where it goes.
    memory (Optional[int]): Bytes that its words and categories may take there; by default a share
        of a GPU's free memory, and any number on a CPU, where nothing is placed.
    RETURNS (ResidentCorpus): The corpus.
    RAISES (UserError): If the memory is too small to stream it, or more than a GPU has free.
    """
    size = sum(packed.columns[name].nbytes for name in Placed._fields)
    if device.type == "cuda":
        free = free_bytes(device)
        if memory is None:
            memory = share_of(free)
        elif min(size, memory) > free:
            raise UserError(
                f"{packed.path} may take {describe_bytes(min(size, memory))} on the GPU, and "
                f"{describe_bytes(free)} are free",
                f'Set memory = "{AUTO}" in [corpora], or a size that leaves room for the model: '
                "the corpus is streamed then.",
            )
    if memory is None or size <= memory:
        return ResidentCorpus(packed, device)
    return StreamedCorpus(packed, device, memory)


def free_bytes(device: torch.device) -> int:
    """The free memory of a GPU.

    device (torch.device): The GPU.
    RETURNS (int): Bytes.
    """
    return torch.cuda.mem_get_info(device)[0]


def share_of(free: int) -> int:
    """What `auto` lets a corpus take of a GPU.

    free (int): Bytes that are free.
    RETURNS (int): Bytes, a power of two: the windows of a training that is resumed should be those
        of before, even if a little more or less is free.
    """
    return 1 << (int(free * SHARE_OF_MEMORY).bit_length() - 1)


def refuse_streamed(corpus: ResidentCorpus, component: str) -> None:
    """Refuse to stream what a component needs that looks at more than words.

    corpus (ResidentCorpus): The corpus.
    component (str): Name of a component that takes wordpieces, or vectors kept beside the corpus.
    RAISES (UserError): If the corpus is streamed.
    """
    if isinstance(corpus, StreamedCorpus):
        size = sum(corpus.packed.columns[name].nbytes for name in Placed._fields)
        raise UserError(
            f"{corpus.packed.path} is streamed, and component {component!r} needs all of it on "
            "the device: wordpieces can't be streamed",
            f'Set memory = "{describe_bytes(size)}" or more in [corpora] if the device has it, or '
            "pack fewer documents, or take a config without a transformer.",
        )


class StreamedCorpus(ResidentCorpus):
    """A packed corpus of which the device holds two windows at a time.

    packed (PackedCorpus): The memory-mapped corpus.
    device (torch.device): Where the windows go.
    memory (int): Bytes that the two windows may take together.
    RAISES (UserError): If a window would have no room for two of the largest shards.
    """

    def __init__(self, packed: PackedCorpus, device: torch.device, memory: int) -> None:
        super().__init__(packed, device)
        self.window_bytes = memory // 2
        costs = self.lengths * WORD_BYTES + OFFSET_BYTES + len(self.info.labels)
        ends = costs.cumsum()
        per_shard = max(self.window_bytes // SHARDS_PER_WINDOW, 1)
        cuts = numpy.searchsorted(ends, numpy.arange(per_shard, ends[-1], per_shard))
        # Where each shard starts, and where the last one ends, among the documents.
        self.shards = numpy.unique(numpy.concatenate([[0], cuts, [len(ends)]]))
        self.shard_bytes = numpy.diff(numpy.concatenate([[0], ends])[self.shards])
        if 2 * (self.shard_bytes.max() + OFFSET_BYTES) > self.window_bytes:
            longest = int(costs.max())
            raise UserError(
                f"{packed.path} can't be streamed in {describe_bytes(memory)}: its longest "
                f"document takes {describe_bytes(longest)}, and each of two windows must hold "
                "several like it",
                f'Set memory = "{describe_bytes(6 * (longest + OFFSET_BYTES))}" or more in '
                "[corpora].",
            )
        self.stage = Stage(self)

    @property
    def placed(self) -> Placed:
        """Only windows are placed."""
        raise RuntimeError("Of a streamed corpus no more than two windows are on the device")

    @property
    def is_placed(self) -> bool:
        """Whether the columns can be had without copying any."""
        return False

    def truths(self, labels: tuple[str, ...]) -> torch.Tensor:
        """The categories of all documents for the given labels; they stay on the host."""
        return choose_labels(self.packed.columns["cats"], self.info.labels, labels)

    def in_order(self, docs: numpy.ndarray) -> Iterator[Documents]:
        """Documents in their order, by windows."""
        for window in self.windows(self.shards_of(docs)):
            yield window, window.numbers_among(docs)

    def shuffled(self, docs: numpy.ndarray, order: numpy.random.Generator) -> Iterator[Documents]:
        """Documents in a random order of shards, and shuffled in each window."""
        for window in self.windows(order.permutation(self.shards_of(docs))):
            numbers = window.numbers_among(docs)
            order.shuffle(numbers)
            yield window, numbers

    def shards_of(self, docs: numpy.ndarray) -> numpy.ndarray:
        """The shards that documents are in.

        docs (numpy.ndarray): Their numbers, int64, `(documents,)`.
        RETURNS (numpy.ndarray): Numbers of shards, ascending, int64, `(shards,)`.
        """
        return numpy.unique(numpy.searchsorted(self.shards, docs, side="right") - 1)

    def windows(self, shards: numpy.ndarray) -> Iterator["Window"]:
        """Cut a sequence of shards into as few windows as can be, of like size.

        shards (numpy.ndarray): Numbers of shards, int64, `(shards,)`.
        YIELDS (Window): The windows. Each knows the next one, so that it can come in time.
        """
        if not len(shards):
            return
        sizes = self.shard_bytes[shards]
        ends = sizes.cumsum()
        # None exceeds its share by more than a shard.
        room = self.window_bytes - OFFSET_BYTES - int(sizes.max())
        count = -(-int(ends[-1]) // room)
        cuts = numpy.searchsorted(ends, ends[-1] * numpy.arange(1, count) // count)
        first, *others = (part for part in numpy.split(shards, cuts) if len(part))
        window = Window(self, first)
        for part in others:
            window.following = Window(self, part)
            yield window
            window = window.following
        yield window


class Window(ResidentCorpus):
    """Some shards of a streamed corpus, with the face of a resident corpus.

    They come to the device when a batch is first gathered, and leave it when that has happened to
    another window; a batch of this one then brings them back.

    streamed (StreamedCorpus): The corpus.
    shards (numpy.ndarray): Numbers of the shards, in their order here, int64, `(shards,)`.
    """

    def __init__(self, streamed: StreamedCorpus, shards: numpy.ndarray) -> None:
        self.streamed = streamed
        self.starts, self.ends = streamed.shards[shards], streamed.shards[shards + 1]
        # The numbers that the first documents of the shards have here.
        self.first_docs = offsets_of(self.ends - self.starts)[:-1]
        self.following: Window | None = None
        packed = streamed.packed
        columns = _WindowColumns(packed, self.starts, self.ends)
        super().__init__(PackedCorpus(packed.path, packed.info, columns), streamed.device)

    @property
    def whole(self) -> ResidentCorpus:
        """The streamed corpus."""
        return self.streamed

    @property
    def placed(self) -> Placed:
        """The columns on the device, brought there if they are not."""
        return self.streamed.stage.bring(self)

    @property
    def is_placed(self) -> bool:
        """Whether the columns can be had without copying any."""
        return self.streamed.stage.window is self

    def numbers_of(self, docs: numpy.ndarray) -> numpy.ndarray:
        """The numbers that documents of the window have in the whole corpus."""
        shards = numpy.searchsorted(self.first_docs, docs, side="right") - 1
        return docs - self.first_docs[shards] + self.starts[shards]

    def numbers_among(self, docs: numpy.ndarray) -> numpy.ndarray:
        """The numbers that those of some documents have here which the window has.

        docs (numpy.ndarray): Numbers in the whole corpus, ascending, int64, `(documents,)`.
        RETURNS (numpy.ndarray): int64, `(documents,)`.
        """
        firsts, ends = numpy.searchsorted(docs, self.starts), numpy.searchsorted(docs, self.ends)
        shifts = self.first_docs - self.starts
        parts = zip(firsts.tolist(), ends.tolist(), shifts.tolist(), strict=True)
        return numpy.concatenate([docs[first:end] + shift for first, end, shift in parts])

    def forget(self) -> None:
        """Drop what was computed of the columns, which leave the device."""
        self._derived.clear()
        self.packed.columns.pop("token_types", None)


class _WindowColumns(dict[str, torch.Tensor]):
    """The columns of a window on the host. Those of words and categories are gathered from the file
    where something is computed of them, which of most models nothing is."""

    def __init__(self, packed: PackedCorpus, starts: numpy.ndarray, ends: numpy.ndarray) -> None:
        super().__init__(packed.columns)
        self.whole = packed.columns
        follows = starts[1:] == ends[:-1]
        # Runs of shards that follow each other are read as one.
        self.starts = starts[numpy.concatenate([[True], ~follows])]
        self.ends = ends[numpy.concatenate([~follows, [True]])]
        offsets = self.whole["doc_offsets"].numpy()
        lengths = [numpy.diff(offsets[start : end + 1]) for start, end in self._runs()]
        self["doc_offsets"] = torch.from_numpy(offsets_of(numpy.concatenate(lengths)))
        del self["token_types"], self["cats"]

    def _runs(self) -> list[tuple[int, int]]:
        return list(zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def __missing__(self, name: str) -> torch.Tensor:
        if name not in Placed._fields:
            raise KeyError(name)
        runs = self._runs()
        if name == "token_types":
            offsets = self.whole["doc_offsets"]
            runs = [(int(offsets[start]), int(offsets[end])) for start, end in runs]
        parts = [self.whole[name][start:end] for start, end in runs]
        self[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self[name]


class Coming(NamedTuple):
    """A window on its way to the device.

    window (Window): The window.
    placed (Future[Placed]): Where its columns are.
    """

    window: Window
    placed: Future[Placed]


class Stage:
    """The two places on the device, one for the window in use and one for the next.

    corpus (StreamedCorpus): The corpus.
    """

    def __init__(self, corpus: StreamedCorpus) -> None:
        self.corpus = corpus
        self.window: Window | None = None
        # Made when the first window comes: a training that only passes over steps needs none.
        self.places: list[torch.Tensor] = []
        self.copier: Copier
        self._placed: Placed
        self._turn = 0
        self._coming: Coming | None = None

    def bring(self, window: Window) -> Placed:
        """Bring a window to the device if it is not there, and send for the one that follows it.

        window (Window): The window that is used from now on. The last one leaves the device.
        RETURNS (Placed): Its columns.
        """
        if self.window is not window:
            if self.window is not None:
                self.window.forget()
            self.window = None
            coming = self._coming
            if coming is not None and coming.window is not window:
                coming.placed.result()  # another order than was foreseen: its place is needed
                coming = None
            coming = coming or self._send_for(window)
            self._coming = None
            self._placed = coming.placed.result()
            self.copier.finish()
            self.window, self._turn = window, 1 - self._turn
            if window.following is not None:
                self._coming = self._send_for(window.following)
        return self._placed

    def _send_for(self, window: Window) -> Coming:
        if not self.places:
            corpus = self.corpus
            size = int(corpus.shard_bytes.max()) + OFFSET_BYTES
            self.copier = make_copier(corpus.device, size)
            self.places = [
                torch.empty(corpus.window_bytes, dtype=torch.uint8, device=corpus.device)
                for _ in range(2)
            ]
        self.copier.start()
        thread = ThreadPoolExecutor(1)
        placed = thread.submit(self.fill, window, self.places[1 - self._turn])
        thread.shutdown(wait=False)  # it ends when the window is there: none idles, or is forked
        return Coming(window, placed)

    def fill(self, window: Window, place: torch.Tensor) -> Placed:
        """Copy the columns of a window to the device, shard by shard.

        window (Window): The window.
        place (torch.Tensor): Where they go, uint8, `(bytes,)`.
        RETURNS (Placed): Views of the place.
        """
        columns, offsets = self.corpus.packed.columns, window.packed.columns["doc_offsets"]
        first_tokens = self.corpus.packed.columns["doc_offsets"].numpy()
        placed = carve(place, len(offsets) - 1, int(offsets[-1]), len(self.corpus.info.labels))
        doc = token = 0
        for start, end in zip(window.starts.tolist(), window.ends.tolist(), strict=True):
            first, last = first_tokens[start], first_tokens[end]
            next_doc, next_token = doc + end - start, token + int(last - first)
            self.copier.copy(
                columns["token_types"][first:last], placed.token_types[token:next_token]
            )
            self.copier.copy(offsets[doc : next_doc + 1], placed.doc_offsets[doc : next_doc + 1])
            self.copier.copy(columns["cats"][start:end], placed.cats[doc:next_doc])
            doc, token = next_doc, next_token
        return placed


def carve(place: torch.Tensor, documents: int, tokens: int, labels: int) -> Placed:
    """Lay out the columns of a window in one piece of memory.

    place (torch.Tensor): uint8, `(bytes,)`.
    documents (int): How many the window has.
    tokens (int): How many it has.
    labels (int): How many the corpus has.
    RETURNS (Placed): Views of the place, the column of the largest items first, as each must start
        at a multiple of the size of its items.
    """
    sizes = [OFFSET_BYTES * (documents + 1), WORD_BYTES * tokens, documents * labels]
    offsets, token_types, cats = place[: sum(sizes)].split(sizes)
    return Placed(
        token_types.view(torch.int32), offsets.view(torch.int64), cats.view(documents, labels)
    )
