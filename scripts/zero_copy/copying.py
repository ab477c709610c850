"""Copies to the device while something else is computed there: of numbers, and from a mapped file.

Those from a file go through two host buffers in turns: while one is on its way to the device, the
other is filled. For a GPU the buffers are pinned and the copies have a stream of their own. On a
CPU the same copies are made, between places in the same memory.
"""

import numpy
import torch


def upload(numbers: numpy.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a few numbers to a device, without waiting for it.

    numbers (numpy.ndarray): Of any shape.
    device (torch.device): Where they go.
    RETURNS (torch.Tensor): The same on the device; on a CPU in the same memory.
    """
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        # From other memory the host would wait. torch keeps pinned memory for later copies, and
        # gives it to none before this one has been made.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Copier:
    """Copies pieces of columns to the device of the host itself.

    device (torch.device): Where they go.
    size (int): Bytes of the largest piece.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self.buffers = [self.make_buffer(size) for _ in range(2)]
        self._turn = 0

    def make_buffer(self, size: int) -> torch.Tensor:
        """A buffer on the host.

        size (int): Its bytes.
        RETURNS (torch.Tensor): uint8, `(size,)`.
        """
        return torch.empty(size, dtype=torch.uint8)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy a piece; on a GPU it is there once `finish` has been called.

        source (torch.Tensor): On the host.
        target (torch.Tensor): On the device, of the same shape and type.
        """
        self._turn = 1 - self._turn
        self.wait(self._turn)
        buffer = self.buffers[self._turn][: source.nbytes]
        staged = buffer.view(source.dtype).view(source.shape)
        staged.copy_(source)
        self.send(self._turn, staged, target)

    def wait(self, turn: int) -> None:
        """Wait until a buffer has been sent.

        turn (int): Which.
        """

    def send(self, turn: int, staged: torch.Tensor, target: torch.Tensor) -> None:
        """Send what a buffer holds to the device.

        turn (int): Which.
        staged (torch.Tensor): A view of it.
        target (torch.Tensor): Where it goes.
        """
        target.copy_(staged)

    def start(self) -> None:
        """Make the copies to come wait for all that the device has been asked to compute so far,
        as it may read what they overwrite."""

    def finish(self) -> None:
        """Make all that the device will be asked to compute wait for the copies so far."""


class CudaCopier(Copier):
    """Copies pieces of columns to a GPU, on a stream of their own.

    device (torch.device): The GPU.
    size (int): Bytes of the largest piece.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        super().__init__(device, size)
        self.stream = torch.cuda.Stream(device)
        self.sent = [torch.cuda.Event() for _ in self.buffers]

    def make_buffer(self, size: int) -> torch.Tensor:
        """A pinned buffer."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def wait(self, turn: int) -> None:
        """Wait until a buffer has been sent; at once if nothing ever was."""
        self.sent[turn].synchronize()

    def send(self, turn: int, staged: torch.Tensor, target: torch.Tensor) -> None:
        """Send what a buffer holds to the device, and do not wait for it."""
        with torch.cuda.stream(self.stream):
            target.copy_(staged, non_blocking=True)
            self.sent[turn].record(self.stream)
        # Should all else let go of the target, its memory is not given away under the copy.
        target.record_stream(self.stream)

    def start(self) -> None:
        """Let the copies to come wait for the current stream."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def finish(self) -> None:
        """Let the current stream wait for the copies so far."""
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


def make_copier(device: torch.device, size: int) -> Copier:
    """What copies to a device.

    device (torch.device): The device.
    size (int): Bytes of the largest piece.
    RETURNS (Copier): The copier.
    """
    return (CudaCopier if device.type == "cuda" else Copier)(device, size)
