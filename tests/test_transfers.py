"""Copies and waits, counted in traces as torch's profiler exports them."""

from types import SimpleNamespace

import pytest
import torch

from zero_copy import transfers
from zero_copy.transfers import (
    FIRST_STEP,
    RANGE,
    STEPS,
    TransferCounter,
    Transfers,
    count_transfers,
    watched,
)

NOTHING = Transfers(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


def event(cat: str, name: str, ts: float, dur: float = 2.0, **args) -> dict:
    place = {"pid": 0, "tid": 7} if cat in transfers.DEVICE_WORK else {"pid": 41, "tid": 41}
    return {"ph": "X", "cat": cat, "name": name, **place, "ts": ts, "dur": dur, "args": args}


def call(name: str, ts: float, kind: str = "cuda_runtime") -> dict:
    return event(kind, name, ts, cbid=211, correlation=int(ts))


def copy(direction: str, ts: float, size: int, dur: float = 2.0) -> dict:
    return event("gpu_memcpy", f"Memcpy {direction}", ts, dur, stream=7, bytes=size)


# What a trace has beside: metadata, arrows and moments, none of which has a duration.
OTHERS = [
    {"ph": "M", "name": "process_name", "pid": 41, "tid": 0, "ts": 0, "args": {"name": "python"}},
    {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": 5, "pid": 41, "tid": 41, "ts": 120.0},
    {"ph": "i", "s": "g", "name": "Iteration Start: PyTorch Profiler", "ts": 1.0},
]
WATCHED = event("user_annotation", RANGE, 100.0, 100.0)


def count(*events: dict) -> Transfers:
    on_device = {"ph": "X", "cat": "gpu_user_annotation", "name": RANGE, "ts": 150.0, "dur": 500.0}
    return count_transfers([*OTHERS, on_device, WATCHED, *events])


def test_copies_by_direction_and_memory():
    seen = count(
        copy("HtoD (Pinned -> Device)", 110, 80),
        copy("HtoD (Pageable -> Device)", 120, 4000),
        copy("DtoH (Device -> Pageable)", 130, 4),
        copy("DtoD (Device -> Device)", 140, 9999),
    )
    assert (seen.to_device, seen.to_device_bytes) == (2, 4080)
    assert (seen.to_host, seen.to_host_bytes) == (1, 4)
    assert seen.pageable == 2


@pytest.mark.parametrize(
    "name",
    [
        *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
        *("cuStreamSynchronize", "cuCtxSynchronize", "cuMemcpyHtoD_v2", "cudaFree"),
    ],
)
def test_calls_that_wait(name):
    assert count(call(name, 110), call(name, 150, "cuda_driver")).waits == 2


@pytest.mark.parametrize(
    "name", ["cudaMemcpyAsync", "cudaStreamWaitEvent", "cudaEventRecord", "cudaFreeAsync"]
)
def test_calls_that_do_not(name):
    assert count(call(name, 110)).waits == 0


def test_launches_and_kernels():
    seen = count(
        call("cudaLaunchKernel", 110),
        call("cuLaunchKernel", 115, "cuda_driver"),  # CuPy's
        call("cudaGraphLaunch", 120),
        *(event("kernel", "void at::native::add", 130 + 3 * number) for number in range(5)),
    )
    assert (seen.launches, seen.kernels) == (3, 5)


def test_time_is_counted_once_and_to_the_end_of_the_last_work():
    seen = count(
        event("kernel", "one", 110, 20),
        event("kernel", "another stream's", 120, 20),
        event("kernel", "inside of both", 122, 3),
        event("gpu_memset", "Memset (Device)", 150, 10),
        event("kernel", "after the last call", 290, 10),
    )
    assert seen.busy_seconds == pytest.approx(50e-6)
    assert seen.seconds == pytest.approx(200e-6)
    assert count().seconds == pytest.approx(100e-6)


def test_what_was_before_and_the_profiler_s_own_calls_are_not_counted():
    before = [call("cudaMemcpy", 50), copy("HtoD (Pageable -> Device)", 60, 8)]
    after = [call("cudaDeviceSynchronize", 201), event("cpu_op", "aten::item", 110)]
    assert count(*before, *after) == NOTHING._replace(seconds=100e-6)


def test_a_trace_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no range"):
        count_transfers([*OTHERS, call("cudaLaunchKernel", 10)])


def test_a_trace_of_torch_s_own():
    """Without a GPU there is nothing but the range."""
    seen = watched(lambda: torch.ones(3).sum().item())
    assert seen == NOTHING._replace(seconds=seen.seconds)
    assert seen.seconds > 0


def test_some_steps_are_watched(monkeypatch):
    """Where there is a GPU; here it is said that there is one."""
    moments, steps = [], 0

    class Watch:
        def start(self) -> None:
            moments.append(steps)

        def stop(self) -> Transfers:
            moments.append(steps)
            return NOTHING._replace(to_device=10, to_host=5, waits=20)

    monkeypatch.setattr(transfers, "Watch", Watch)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_initialized=lambda: True))
    counter = TransferCounter()
    for step in range(1, FIRST_STEP + STEPS + 5):
        steps = step
        counter()
    assert moments == [FIRST_STEP, FIRST_STEP + STEPS]
    assert (counter.copies, counter.waits) == (1.5, 2.0)
