"""The operations with gradients written by hand, against torch's own gradients of the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zero_copy import kernels


def compare(ours, formula, *inputs):
    """Same value, and same gradient of a random projection, for every float input."""
    ours_in = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    formula_in = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    value, expected = ours(*ours_in), formula(*formula_in)
    torch.testing.assert_close(value, expected)
    projection = torch.randn_like(expected)
    value.backward(projection)
    expected.backward(projection)
    for one, other in zip(ours_in, formula_in, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), pieces=st.integers(1, 4), seed=st.integers(0, 99))
def test_maxout(rows, pieces, seed):
    torch.manual_seed(seed)
    X, W, b = torch.randn(rows, 5), torch.randn(3, pieces, 5), torch.randn(3, pieces)
    compare(
        kernels.Maxout.apply,
        lambda X, W, b: (torch.einsum("ni,opi->nop", X, W) + b).max(dim=2).values,
        *(X, W, b),
    )


def test_maxout_gives_the_gradient_of_equal_pieces_to_the_first():
    W = torch.zeros(2, 3, 4, requires_grad=True)
    b = torch.zeros(2, 3, requires_grad=True)
    kernels.Maxout.apply(torch.ones(5, 4), W, b).sum().backward()
    assert b.grad.tolist() == [[5, 0, 0], [5, 0, 0]]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 9), size=st.integers(1, 3))
def test_expand_window(rows, size):
    def formula(X):
        padded = torch.nn.functional.pad(X, (0, 0, size, size))
        return torch.cat([padded[k : k + len(X)] for k in range(2 * size + 1)], dim=1)

    compare(lambda X: kernels.ExpandWindow.apply(X, size), formula, torch.randn(rows, 4))


def test_gather_sum_adds_its_gradient():
    keys = torch.tensor([[0, 1, 1, 4], [2, 2, 2, 2], [4, 3, 0, 1]], dtype=torch.int32)
    table = torch.randn(5, 3)
    ours, formula = table.clone().requires_grad_(), table.clone().requires_grad_()
    d_table = torch.ones(5, 3)
    value = kernels.GatherSum.apply(ours, keys, d_table)
    expected = formula[keys.long()].sum(1)
    torch.testing.assert_close(value, expected)
    projection = torch.randn(3, 3)
    value.backward(projection)
    expected.backward(projection)
    torch.testing.assert_close(d_table, formula.grad + 1)
    assert ours.grad is None


def test_segment_gather_sum_leaves_the_last_row_at_zero():
    table = torch.randn(5, 3)
    table[-1] = 0
    keys = torch.tensor([[0, 1], [4, 2], [4, 4], [3, 3]], dtype=torch.int32)
    starts, segments = torch.tensor([0, 2, 2]), torch.tensor([0, 0, 2, 2])
    d_table = torch.zeros(5, 3)
    ours = table.clone().requires_grad_()
    value = kernels.SegmentGatherSum.apply(ours, keys, starts, segments, d_table)
    expected = torch.stack([table[[0, 1, 2]].sum(0), torch.zeros(3), 2 * table[3]])
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert d_table[:, 0].tolist() == [1, 1, 1, 2, 0]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_segment_max(lengths):
    segments = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def formula(X):
        parts = X.split(lengths)
        return torch.stack([p.max(0).values if len(p) else X.new_zeros(4) for p in parts])

    compare(
        lambda X: kernels.SegmentMax.apply(X, segments, len(lengths)),
        formula,
        torch.randn(sum(lengths), 4),
    )


def test_segment_max_gives_the_gradient_of_equal_rows_to_the_first():
    X = torch.ones(5, 2, requires_grad=True)
    kernels.SegmentMax.apply(X, torch.tensor([0, 0, 0, 1, 1]), 2).sum().backward()
    assert X.grad[:, 0].tolist() == [1, 0, 0, 1, 0]


def test_straight_through_keeps_the_value_exactly():
    X = torch.tensor([-5000.0, 0.1], requires_grad=True)
    Y = X.detach().softmax(0)
    value = kernels.StraightThrough.apply(X, Y)
    assert torch.equal(value, Y)
    value.backward(torch.tensor([2.0, 3.0]))
    assert X.grad.tolist() == [2, 3]


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_dropout_mask(rate):
    torch.manual_seed(0)
    mask = kernels.dropout_mask((1001, 333), rate, torch.device("cpu"))
    values = mask.unique().tolist()
    assert values == pytest.approx([0, 1 / (1 - rate)])
    dropped = (mask == 0).float()
    assert dropped.mean().item() == pytest.approx(rate, abs=0.005)
    # Columns and rows are dropped independently of one another.
    assert dropped.mean(0).std().item() < 0.05
    assert dropped.mean(1).std().item() < 0.05


def test_dropout_of_all():
    assert not kernels.dropout_mask((3, 4), 1.0, torch.device("cpu")).any()
