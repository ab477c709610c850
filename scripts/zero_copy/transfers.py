"""How often training steps copy between host and device, and wait for it, as the driver sees it.

CUPTI, the driver's own interface for profilers, records every call of CUDA and all that the device
does, whoever asked for it: torch, CuPy or thinc. torch's profiler writes the records into a trace.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import srsly
import torch
from torch.profiler import ProfilerActivity, profile, record_function

# What lies between the beginning and the end of this range is counted; the profiler's own calls,
# a cudaDeviceSynchronize among them, lie outside.
RANGE = "zero_copy.watched"
HOST_CALLS = ("cuda_runtime", "cuda_driver")
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
# Calls that return when the device has come to a point, if `Async` is not in their names.
WAITS = ("Synchronize", "Memcpy", "Free")
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch")
FIRST_STEP, STEPS = 20, 10


class Transfers(NamedTuple):
    """What was asked of a device, and what it did.

    to_device (int): Copies from host to device.
    to_device_bytes (int): Their bytes.
    to_host (int): Copies from device to host.
    to_host_bytes (int): Their bytes.
    pageable (int): Those of the copies from or to memory that is not pinned, which the host may
        have to wait for.
    waits (int): Calls that wait for the device.
    launches (int): Launches of kernels and graphs.
    kernels (int): Kernels that ran, those of graphs included.
    busy_seconds (float): Time in which the device did something.
    seconds (float): Time from the first call to the end of the last work.
    """

    to_device: int
    to_device_bytes: int
    to_host: int
    to_host_bytes: int
    pageable: int
    waits: int
    launches: int
    kernels: int
    busy_seconds: float
    seconds: float


class Watch:
    """Watches what is asked of the device from `start` to `stop`.

    It can be used once. Where there is no GPU, nothing is to be seen.
    """

    def __init__(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._range = record_function(RANGE)

    def start(self) -> None:
        """Begin to watch."""
        wait()
        self._profiler.start()
        self._range.__enter__()

    def stop(self) -> Transfers:
        """Cease to watch.

        RETURNS (Transfers): What was seen.
        """
        self._range.__exit__(None, None, None)
        wait()
        self._profiler.stop()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            return count_transfers(srsly.read_json(path)["traceEvents"])


def watched(work: Callable[[], Any]) -> Transfers:
    """Watch a piece of work.

    work (Callable[[], Any]): The work.
    RETURNS (Transfers): What was seen.
    """
    watch = Watch()
    watch.start()
    work()
    return watch.stop()


def wait() -> None:
    """Wait for the GPU, if one is used."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def count_transfers(events: Iterable[dict[str, Any]]) -> Transfers:
    """Count what a trace tells of the range that was watched.

    events (Iterable[Dict[str, Any]]): The `traceEvents` of a trace, as torch's profiler exports it:
        those that have a duration have a category `cat`, a `name`, and `ts` and `dur` in
        microseconds. Before and after the range the device has nothing to do.
    RETURNS (Transfers): What was seen.
    RAISES (ValueError): If nothing was watched.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    ranges = [event for event in timed if event["name"] == RANGE]
    ranges = [event for event in ranges if event.get("cat") == "user_annotation"]
    if not ranges:
        raise ValueError("The trace has no range that was watched")
    start, end = ranges[0]["ts"], _end(ranges[0])
    calls = [
        event
        for event in timed
        if event.get("cat") in HOST_CALLS and start <= event["ts"] and _end(event) <= end
    ]
    # Work goes on after the call for it, beyond the end of the range.
    work = [event for event in timed if event.get("cat") in DEVICE_WORK and event["ts"] >= start]
    copies = [event for event in work if event["cat"] == "gpu_memcpy"]
    to_device = [event for event in copies if event["name"].startswith("Memcpy HtoD")]
    to_host = [event for event in copies if event["name"].startswith("Memcpy DtoH")]
    return Transfers(
        to_device=len(to_device),
        to_device_bytes=sum(event["args"]["bytes"] for event in to_device),
        to_host=len(to_host),
        to_host_bytes=sum(event["args"]["bytes"] for event in to_host),
        pageable=sum("Pageable" in event["name"] for event in (*to_device, *to_host)),
        waits=sum(_waits(event["name"]) for event in calls),
        launches=sum(event["name"].startswith(LAUNCHES) for event in calls),
        kernels=sum(event["cat"] == "kernel" for event in work),
        busy_seconds=_covered(work) / 1e6,
        seconds=(max([end, *map(_end, work)]) - start) / 1e6,
    )


def _end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]


def _waits(call: str) -> bool:
    return any(word in call for word in WAITS) and "Async" not in call


def _covered(events: Iterable[dict[str, Any]]) -> float:
    """Microseconds in which at least one of the events goes on."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted((event["ts"], _end(event)) for event in events):
        covered += max(end - max(start, until), 0.0)
        until = max(until, end)
    return covered


class TransferCounter:
    """Counts copies and waits of some training steps, where there is a GPU.

    Call it at the end of each step; it watches STEPS of them, from FIRST_STEP on.
    """

    def __init__(self) -> None:
        self.copies: float | None = None
        self.waits: float | None = None
        self._steps = 0
        self._watch: Watch | None = None

    def __call__(self) -> None:
        """Note that a step has ended."""
        self._steps += 1
        if self._steps == FIRST_STEP and torch.cuda.is_initialized():
            self._watch = Watch()
            self._watch.start()
        elif self._steps == FIRST_STEP + STEPS and self._watch is not None:
            seen = self._watch.stop()
            self.copies = (seen.to_device + seen.to_host) / STEPS
            self.waits = seen.waits / STEPS
            self._watch = None
