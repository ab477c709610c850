"""Copies through two buffers in turns."""

import numpy
import torch

from zero_copy.copying import make_copier, upload


def test_pieces_arrive_whatever_their_types_and_shapes():
    copier = make_copier(torch.device("cpu"), 80)
    pieces = [
        torch.arange(10),
        torch.arange(20, dtype=torch.int32),
        torch.arange(80, dtype=torch.uint8).view(20, 4),
        torch.zeros(5, 0, dtype=torch.uint8),
        torch.arange(6, dtype=torch.uint8).view(2, 3).t(),
    ]
    targets = [torch.empty_like(piece) for piece in pieces]
    for piece, target in zip(pieces, targets, strict=True):
        copier.copy(piece, target)
    assert all(torch.equal(*pair) for pair in zip(pieces, targets, strict=True))


def test_numbers_arrive():
    numbers = numpy.arange(6).reshape(2, 3)
    sent = upload(numbers, torch.device("cpu"))
    assert sent.tolist() == numbers.tolist()
    assert upload(numbers, torch.device("meta")).device.type == "meta"


def test_buffers_take_turns():
    copier = make_copier(torch.device("cpu"), 8)
    for number in (1, 2, 3):
        copier.copy(torch.tensor([number]), torch.empty(1, dtype=torch.int64))
    assert {int(buffer.view(torch.int64)) for buffer in copier.buffers} == {2, 3}
