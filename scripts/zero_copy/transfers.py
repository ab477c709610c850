"""How often training steps copy between host and device, and wait for it, as the driver sees it."""

from collections.abc import Iterable

import torch
from torch.profiler import ProfilerActivity, profile

# Every copy between host and device is an event of the device, whoever asked for it: torch or CuPy.
COPIES = ("Memcpy HtoD", "Memcpy DtoH")
# The profiler itself ends with a cudaDeviceSynchronize, which is therefore not counted.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
FIRST_STEP, STEPS = 20, 10


class TransferCounter:
    """Counts copies and waits of some training steps, where there is a GPU.

    Call it at the end of each step; it watches STEPS of them, from FIRST_STEP on.
    """

    def __init__(self) -> None:
        self.copies: float | None = None
        self.waits: float | None = None
        self._steps = 0
        self._profiler: profile | None = None

    def __call__(self) -> None:
        """Note that a step has ended."""
        self._steps += 1
        if self._steps == FIRST_STEP and torch.cuda.is_initialized():
            self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profiler.start()
        elif self._steps == FIRST_STEP + STEPS and self._profiler is not None:
            torch.cuda.synchronize()
            self._profiler.stop()
            names = [event.name for event in self._profiler.events() or []]
            self.copies, self.waits = count_transfers(names, STEPS)
            self._profiler = None


def count_transfers(names: Iterable[str], steps: int) -> tuple[float, float]:
    """Count copies and waits a step.

    names (Iterable[str]): Names of the profiler's events.
    steps (int): How many steps it watched.
    RETURNS (Tuple[float, float]): Copies and waits, a step.
    """
    names = list(names)
    copies = sum(name.startswith(COPIES) for name in names)
    return copies / steps, sum(name in WAITS for name in names) / steps
