"""Long-lived processes that work on a stream, and hand results back in its order."""

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from sys import platform
from typing import Any, TypeVar

from zero_copy.errors import UserError
from zero_copy.files import uninterrupted

# Items read ahead for each process, which it works on while results are written.
ITEMS_AHEAD = 8
# Forked workers need not import spaCy again. Only on Linux is it safe.
START_METHOD = "fork" if platform == "linux" else "spawn"
Item = TypeVar("Item")
Work = Callable[[Any], Any]


def choose_processes(processes: int) -> int:
    """Choose the number of processes.

    processes (int): As asked for; -1 is one for every core.
    RETURNS (int): How many to use.
    RAISES (UserError): If it is neither -1 nor at least 1.
    """
    if processes == 0 or processes < -1:
        raise UserError(
            f"--n-process is {processes}", "Choose at least 1, or -1 for one process a core."
        )
    if processes > 0:
        return processes
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work_in_order(
    items: Iterable[Item],
    argument: Callable[[Item], Any],
    work: Work,
    processes: int,
    *,
    method: str = "",
) -> Generator[tuple[Item, Any], None, None]:
    """Do something with every item of a stream, in parallel.

    items (Iterable[Item]): The stream; only a few items are read ahead.
    argument (Callable[[Item], Any]): What of an item the work is done with.
    work (Callable[[Any], Any]): What is done; each process has its own, forked or unpickled.
    processes (int): How many processes work; with 1, this one does.
    method (str): How they start, "fork" or "spawn"; empty for the best of this system.
    YIELDS (Tuple[Item, Any]): The items in the same order, and the results.
    RAISES (UserError): If a process dies.
    """
    if processes == 1:
        for item in items:
            yield item, work(argument(item))
        return
    try:
        yield from _work_in_pool(items, argument, work, processes, method or START_METHOD)
    except BrokenProcessPool as error:
        raise UserError(
            "A process that tokenizes has died",
            "Most often the memory was full: try again with a smaller --n-process.",
        ) from error


_work: Work | None = None  # What a worker process does.


def _work_in_pool(
    items: Iterable[Item],
    argument: Callable[[Item], Any],
    work: Work,
    processes: int,
    method: str,
) -> Generator[tuple[Item, Any], None, None]:
    pool = ProcessPoolExecutor(processes, get_context(method), _prepare, (work,))
    running: deque[tuple[Item, Future]] = deque()
    try:
        with uninterrupted():  # Workers start at the first use of a pool.
            gc.freeze()  # Else the workers' collectors make copies of what they share.
            pool.submit(int)
        for item in items:
            running.append((item, pool.submit(_call, argument(item))))
            if len(running) > ITEMS_AHEAD * processes:
                done, future = running.popleft()
                yield done, future.result()
        while running:
            done, future = running.popleft()
            yield done, future.result()
    finally:
        gc.unfreeze()
        pool.shutdown(cancel_futures=True)


def _prepare(work: Work) -> None:
    global _work
    # Ctrl-C reaches every process of a terminal, and the one that asked for the work tidies up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work = work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that was killed can't end its workers, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(argument: Any) -> Any:
    assert _work is not None
    return _work(argument)
