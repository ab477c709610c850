"""Deciding which split a text goes to: stratified and seeded, with no memory of the texts."""

from fractions import Fraction
from hashlib import blake2b
from math import ceil


class BlockSampler:
    """Takes a fraction of a stream: one item, at a random place, of every block of 1 / fraction.

    After any number of items the number taken is within one of the fraction.

    fraction (Fraction): The fraction to take, from 0 (never) to 1 (always).
    key (str): What the random places depend on, and nothing else does.
    keep_first (bool): Never to take the very first item.
    """

    __slots__ = ("_block", "_end", "_fraction", "_keep_first", "_key", "_position", "_taken")

    def __init__(self, fraction: Fraction, key: str, keep_first: bool = False) -> None:
        self._fraction = fraction
        self._key = key
        self._keep_first = keep_first
        self._position = self._block = self._end = 0
        self._taken = -1

    def take(self) -> bool:
        """Decide about the next item.

        RETURNS (bool): Whether it is taken.
        """
        if not self._fraction:
            return False
        if self._position == self._end:
            self._begin_block()
        self._position += 1
        return self._position - 1 == self._taken

    def _begin_block(self) -> None:
        start = self._position + (self._keep_first and self._block == 0)
        self._end = ceil((self._block + 1) / self._fraction)
        # A hash rather than a generator: the state of one is kilobytes, and there may be as many
        # samplers as there are combinations of labels.
        digest = blake2b(f"{self._key}\0{self._block}".encode(), digest_size=8).digest()
        self._taken = start + int.from_bytes(digest, "big") * (self._end - start) // 2**64
        self._block += 1


class Splitter:
    """Splits dev and test texts off the training texts, keeping the share of every label.

    Texts with the same combination of labels form a stratum, of which the first text always
    stays in training: there is no use in testing a label that was never seen.

    sizes (Dict[str, float]): The share of "dev", of "test" or of both, each between 0 and 0.5.
    seed (int): The same seed gives the same split.
    """

    def __init__(self, sizes: dict[str, float], seed: int) -> None:
        shares = {name: Fraction(str(size)) for name, size in sizes.items()}
        self._held_out = sum(shares.values(), Fraction(0))
        self._test = shares.get("test", Fraction(0)) / (self._held_out or 1)
        self._seed = seed
        self._strata: dict[tuple[str, ...], tuple[BlockSampler, BlockSampler]] = {}

    def assign(self, labels: tuple[str, ...]) -> str:
        """Choose the split of the next text.

        labels (Tuple[str, ...]): The labels of the text, sorted.
        RETURNS (str): "train", "dev" or "test".
        """
        if labels not in self._strata:
            key = "\0".join((str(self._seed), *labels))
            self._strata[labels] = (
                BlockSampler(self._held_out, f"held out\0{key}", keep_first=True),
                BlockSampler(self._test, f"test\0{key}"),
            )
        held_out, test = self._strata[labels]
        if not held_out.take():
            return "train"
        return "test" if test.take() else "dev"
