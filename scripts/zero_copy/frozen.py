"""What a frozen transformer computes, once: a vector for every token of a corpus, kept in a file.

The file lies beside the packed corpus, so that the next training, with another head or seed, finds
it there. On the CPU it is memory-mapped; on a GPU it is placed on the device where it fits.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from rich.console import Console
from rich.progress import track

from zero_copy.corpus import PackedBatch, ResidentCorpus

# Words of documents that are computed at a time.
WORDS_AT_ONCE = 8_192
# The share of a GPU's free memory that the vectors of a corpus may take.
SHARE_OF_MEMORY = 0.5


def vectors_path(corpus: ResidentCorpus, identity: str) -> Path:
    """Where the vectors of a corpus are kept.

    corpus (ResidentCorpus): The corpus.
    identity (str): What they follow from, beside the corpus.
    RETURNS (Path): A `.npy` file beside the packed corpus.
    """
    packed = corpus.packed
    content = f"{packed.info.model_dump_json()} {corpus.lengths.sum()} {identity}"
    key = hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()[:12]
    return packed.path.with_name(f"{packed.path.stem}.vectors-{key}.npy")


def kept_vectors(
    corpus: ResidentCorpus,
    identity: str,
    width: int,
    compute: Callable[[PackedBatch], torch.Tensor],
) -> torch.Tensor:
    """The vectors of all tokens of a corpus, computed at the first call and kept.

    corpus (ResidentCorpus): The corpus.
    identity (str): What they follow from, beside the corpus.
    width (int): Width of a vector.
    compute (Callable[[PackedBatch], torch.Tensor]): From documents to the vectors of their tokens,
        `(tokens, width)`.
    RETURNS (torch.Tensor): float32, `(tokens, width)`, on the device or on the host.
    RAISES (OSError): If they can't be written.
    """

    def make() -> torch.Tensor:
        path = vectors_path(corpus, identity)
        if not path.exists():
            _fill(path, corpus, width, compute)
        # Copy on write: torch wants an array that it may write to, and nothing does.
        return _place(torch.from_numpy(numpy.load(path, mmap_mode="c")), corpus.device)

    return corpus.cached(("vectors", identity), make)


def _fill(
    path: Path,
    corpus: ResidentCorpus,
    width: int,
    compute: Callable[[PackedBatch], torch.Tensor],
) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    shape = (int(corpus.lengths.sum()), width)
    batches = list(_batches(corpus))
    try:
        vectors = numpy.lib.format.open_memmap(unfinished, "w+", "float32", shape)
        console = Console(stderr=True)
        title = f"Vectors of {corpus.packed.path.name}"
        for batch in track(batches, title, console=console, transient=True):
            rows = compute(batch).cpu().numpy()
            for doc, end in zip(batch.docs, batch.ends.tolist(), strict=True):
                length = corpus.lengths[doc]
                start = int(corpus.packed.columns["doc_offsets"][doc])
                vectors[start : start + length] = rows[end - length : end]
        vectors.flush()
        del vectors
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _batches(corpus: ResidentCorpus) -> Iterator[PackedBatch]:
    """All documents, those of like length together."""
    docs = numpy.argsort(corpus.lengths, kind="stable")
    words = corpus.lengths[docs].cumsum()
    cuts = numpy.searchsorted(words, numpy.arange(WORDS_AT_ONCE, words[-1], WORDS_AT_ONCE))
    for part in numpy.split(docs, numpy.unique(cuts)):
        if len(part):
            yield PackedBatch(corpus, part)


def _place(vectors: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if vectors.nbytes <= free * SHARE_OF_MEMORY:
            return vectors.to(device)
    return vectors


def gather(vectors: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """The vectors of a batch's tokens.

    vectors (torch.Tensor): Those of the whole corpus, `(tokens, width)`.
    batch (PackedBatch): The documents.
    RETURNS (torch.Tensor): `(tokens, width)`, on the device of the corpus.
    """
    tokens = batch.tokens.to(vectors.device)
    return vectors.index_select(0, tokens).to(batch.corpus.device)
