"""The operations that decide a step's time, with gradients written by hand.

Each computes what thinc's layer of that name computes, on whole columns. Where torch's own gradient
would be slow (dense embeddings), or another than thinc's (ties, clipping), it is written out here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function


class GatherSum(Function):
    """Rows of a table, gathered and summed: `table[keys].sum(1)`.

    The gradient is added to `d_table` row by row. As autograd would have it, a dense gradient would
    be filled with zeros and added to the parameter's at every step: for 20,000 rows of 96 that is
    15 MB of memory traffic for the 200 KB that a batch of 500 types touches.

    table (Tensor): `(rows, width)`.
    keys (Tensor): int32, `(items, keys)`.
    d_table (Tensor): Where the gradient of the table goes, `(rows, width)`.
    RETURNS (Tensor): `(items, width)`.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, keys: Tensor, d_table: Tensor) -> Tensor:
        ctx.keys, ctx.d_table = keys, d_table
        return torch.nn.functional.embedding_bag(keys, table, mode="sum")

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[None, None, None]:
        # A key at a time: the gradient is not repeated in memory for every key.
        for column in ctx.keys.unbind(1):
            ctx.d_table.index_add_(0, column, d_output)
        return None, None, None


class SegmentGatherSum(Function):
    """Rows of a table, summed over segments of items: what a bag of words is.

    table (Tensor): `(rows, width)`; the last row is zeros and stays so.
    keys (Tensor): int32, `(items, keys)`, a segment after another.
    starts (Tensor): First item of each segment, int64, `(segments,)`.
    segments (Tensor): Segment of each item, int64, `(items,)`.
    d_table (Tensor): Where the gradient of the table is added, `(rows, width)`.
    RETURNS (Tensor): `(segments, width)`.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, keys: Tensor, starts: Tensor, segments: Tensor, d_table: Tensor
    ) -> Tensor:
        ctx.keys, ctx.segments, ctx.d_table = keys, segments, d_table
        offsets = (starts * keys.shape[1]).to(keys.dtype)
        return torch.nn.functional.embedding_bag(keys.reshape(-1), table, offsets, mode="sum")

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[None, None, None, None, None]:
        d_rows = d_output.index_select(0, ctx.segments)
        for column in ctx.keys.unbind(1):
            ctx.d_table.index_add_(0, column, d_rows)
        ctx.d_table[-1].zero_()
        return None, None, None, None, None


class WeightedSegmentSum(Function):
    """Rows of a table, each times a weight, summed over segments of items.

    table (Tensor): `(rows, width)`.
    keys (Tensor): int32, `(items,)`, a segment after another.
    weights (Tensor): `(items,)`.
    starts (Tensor): First item of each segment, int64, `(segments,)`.
    segments (Tensor): Segment of each item, int64, `(items,)`.
    d_table (Tensor): Where the gradient of the table is added, `(rows, width)`.
    RETURNS (Tensor): `(segments, width)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        keys: Tensor,
        weights: Tensor,
        starts: Tensor,
        segments: Tensor,
        d_table: Tensor,
    ) -> Tensor:
        ctx.keys, ctx.weights, ctx.segments, ctx.d_table = keys, weights, segments, d_table
        return torch.nn.functional.embedding_bag(
            keys, table, starts.to(keys.dtype), mode="sum", per_sample_weights=weights
        )

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[None, None, None, None, None, None]:
        d_rows = d_output.index_select(0, ctx.segments).mul_(ctx.weights[:, None])
        ctx.d_table.index_add_(0, ctx.keys, d_rows)
        return None, None, None, None, None, None


class Maxout(Function):
    """`max over p of (X @ W[:, p].T + b[:, p])`; of equal pieces the first wins, as in thinc.

    X (Tensor): `(rows, nI)`.
    W (Tensor): `(nO, nP, nI)`.
    b (Tensor): `(nO, nP)`.
    RETURNS (Tensor): `(rows, nO)`.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, W: Tensor, b: Tensor) -> Tensor:
        nO, nP, nI = W.shape
        # Pieces become blocks of columns, so that their maximum is taken over whole vectors
        # instead of over neighbours three at a time: 20 times faster, for a copy of W.
        blocks = W.transpose(0, 1).reshape(nP * nO, nI)
        Y = torch.addmm(b.t().reshape(-1), X, blocks.t()).view(-1, nP, nO)
        best = Y[:, 0]
        for piece in range(1, nP):
            best = torch.maximum(best, Y[:, piece])
        best = best.contiguous()
        ctx.save_for_backward(X, blocks, Y, best)
        return best

    @staticmethod
    def backward(ctx: Any, d_best: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        X, blocks, Y, best = ctx.saved_tensors
        rows, nP, nO = Y.shape
        d_Y = torch.empty_like(Y)
        # The first piece that equals the maximum takes the gradient, and what is left is for the
        # later ones: of an element of the gradient either all is left or nothing.
        left = d_best
        for piece in range(nP - 1):
            torch.mul(left, Y[:, piece] == best, out=d_Y[:, piece])
            left = left - d_Y[:, piece]
        d_Y[:, nP - 1] = left
        d_Y = d_Y.view(rows, nP * nO)
        d_X = d_Y @ blocks if ctx.needs_input_grad[0] else None
        d_W = (d_Y.t() @ X).view(nP, nO, -1).transpose(0, 1)
        return d_X, d_W, d_Y.sum(0).view(nP, nO).t()


class ExpandWindow(Function):
    """Each row with `size` rows before and after it: `(rows, width)` to
    `(rows, (2 * size + 1) * width)`, zeros beyond the ends.

    X (Tensor): `(rows, width)`.
    size (int): Rows on either side.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, size: int) -> Tensor:
        ctx.size = size
        rows, width = X.shape
        padded = torch.nn.functional.pad(X, (0, 0, size, size))
        # Neighbouring rows are neighbours in memory: a window is a longer row that starts
        # `width` further on each time.
        return padded.as_strided((rows, (2 * size + 1) * width), (width, 1)).contiguous()

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None]:
        pieces = 2 * ctx.size + 1
        rows, width = len(d_output), d_output.shape[1] // pieces
        d_padded = d_output.new_zeros(rows + 2 * ctx.size, width)
        for piece in range(pieces):
            d_padded[piece : piece + rows] += d_output[:, piece * width : (piece + 1) * width]
        return d_padded[ctx.size : ctx.size + rows], None


class SegmentMax(Function):
    """The maximum of each column over segments of rows; of equal rows the first one's gradient.

    X (Tensor): `(rows, width)`.
    segments (Tensor): Segment of each row, ascending, int64, `(rows,)`.
    count (int): Number of segments; one without rows gives zeros.
    RETURNS (Tensor): `(count, width)`.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, segments: Tensor, count: int) -> Tensor:
        rows, width = X.shape
        index = segments[:, None].expand(rows, width)
        best = X.new_zeros(count, width)
        best.scatter_reduce_(0, index, X, "amax", include_self=False)
        if ctx.needs_input_grad[0]:
            numbers = torch.arange(rows, device=X.device)[:, None]
            candidates = torch.where(best[segments] == X, numbers, rows)
            which = torch.full((count, width), rows, device=X.device)
            which.scatter_reduce_(0, index, candidates, "amin")
            ctx.save_for_backward(which)
            ctx.rows = rows
        return best

    @staticmethod
    def backward(ctx: Any, d_best: Tensor) -> tuple[Tensor, None, None]:
        (which,) = ctx.saved_tensors
        # One row more takes the gradient of segments without rows.
        d_X = d_best.new_zeros(ctx.rows + 1, d_best.shape[1])
        return d_X.scatter_(0, which, d_best)[:-1], None, None


class CharacterRows(Function):
    """A row of a table for each character of each token, side by side.

    As in spaCy, of a document's tokens with the same character in the same place only the last
    one's gradient counts: NumPy's `+=` keeps one of repeated indices.

    table (Tensor): `(places, 256, width)`.
    characters (Tensor): uint8, `(tokens, places)`.
    docs (Tensor): Document of each token, int64, `(tokens,)`.
    count (int): Number of documents.
    d_table (Tensor): Where the gradient of the table is added, of its shape.
    RETURNS (Tensor): `(tokens, places * width)`.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, characters: Tensor, docs: Tensor, count: int, d_table: Tensor
    ) -> Tensor:
        places, values, width = table.shape
        keys = characters.long() + values * torch.arange(places, device=table.device)
        ctx.keys, ctx.docs, ctx.count, ctx.d_table = keys, docs, count, d_table
        rows = table.view(-1, width).index_select(0, keys.view(-1))
        return rows.view(len(keys), places * width)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[None, None, None, None, None]:
        places, values, width = ctx.d_table.shape
        slots = (ctx.keys + (places * values) * ctx.docs[:, None]).view(-1)
        tokens = torch.arange(len(ctx.keys), device=slots.device).repeat_interleave(places)
        last = torch.zeros(ctx.count * places * values, dtype=torch.int64, device=slots.device)
        last.scatter_reduce_(0, slots, tokens, "amax")
        counts = (last.index_select(0, slots) == tokens)[:, None]
        d_rows = d_output.reshape(-1, width) * counts
        ctx.d_table.view(-1, width).index_add_(0, ctx.keys.view(-1), d_rows)
        return None, None, None, None, None


def segment_sum(X: Tensor, segments: Tensor, count: int) -> Tensor:
    """The sum of rows over segments.

    X (Tensor): `(rows, width)`.
    segments (Tensor): Segment of each row, int64, `(rows,)`.
    count (int): Number of segments.
    RETURNS (Tensor): `(count, width)`.
    """
    return X.new_zeros(count, X.shape[1]).index_add(0, segments, X)


class ScaleGradient(Function):
    """Its input as it is, and the gradient times a factor.

    X (Tensor): Any shape.
    factor (float): The factor.
    RETURNS (Tensor): X.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return X.view_as(X)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None]:
        return d_output * ctx.factor, None


class StraightThrough(Function):
    """The value of `Y` with the gradient of `X`.

    thinc clips before exponentials and gives its Softmax layer the gradient of the logits: in
    both, the gradient passes as though nothing had been done.

    X (Tensor): What the gradient goes to.
    Y (Tensor): The value, of the same shape.
    RETURNS (Tensor): Y.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, Y: Tensor) -> Tensor:
        return Y.clone()

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor, None]:
        return d_output, None


def dropout_mask(shape: tuple[int, ...], rate: float, device: torch.device) -> Tensor:
    """A mask of zeros (a share `rate` of it) and `1 / (1 - rate)`.

    Sixteen random bits decide each element, cut from 64-bit integers: torch's generator takes as
    long for an element as for an integer, so this is nine times faster on a CPU. The rate is met
    to 1 / 65,536.

    shape (Tuple[int, ...]): Shape of the mask.
    rate (float): Between 0 and 1; from 1 on all is dropped.
    device (torch.device): Where to make it.
    RETURNS (Tensor): float32.
    """
    if rate >= 1.0:
        return torch.zeros(shape, device=device)
    size = 1
    for dim in shape:
        size *= dim
    bits = torch.empty((size + 3) // 4, dtype=torch.int64, device=device)
    bits.random_(-(2**63), None)
    threshold = round(rate * 2**16) - 2**15
    kept = bits.view(torch.int16)[:size].view(shape) >= threshold
    return kept.float().mul_(1.0 / (1.0 - rate))
