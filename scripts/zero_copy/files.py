"""Replacing files all at once, so that an interruption leaves nothing half-written."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from zero_copy.errors import UserError


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a temporary folder whose contents `publish` can move into another, and remove it.

    folder (Path): The folder that is to receive the contents; it is made if it is missing, and
        removed again if it stays empty.
    YIELDS (Path): The temporary folder, on the same file system.
    RAISES (OSError): If a folder cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        temporary = Path(mkdtemp(prefix=".unfinished-", dir=folder))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        for made in missing:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def publish(temporary: Path, folder: Path) -> None:
    """Move what is in a temporary folder to its place, over what stands there.

    temporary (Path): The temporary folder of `staging`.
    folder (Path): The folder that receives the contents.
    RAISES (OSError): If a file or folder cannot be moved.
    """
    replaced = temporary / ".replaced"
    with uninterrupted():
        new = sorted(temporary.iterdir())
        replaced.mkdir()
        for path in new:
            target = folder / path.name
            if target.is_dir() or (path.is_dir() and target.exists()):
                os.replace(target, replaced / path.name)  # A folder replaces nothing in one step.
            os.replace(path, target)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under, which then replaces another.

    path (Path): The file to replace, or to make; so is its folder.
    YIELDS (Path): The temporary name, in the same folder.
    RAISES (OSError): If the disk is full or not writable; what stood at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, title: str, advice: str) -> Iterator[None]:
    """Keep a second process out.

    path (Path): The file that says so; the system lets go of it when the process ends.
    title (str): What to say to the second one.
    advice (str): What it should do.
    RAISES (UserError): If there is a process inside.
    """
    import fcntl  # Not on Windows.

    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(title, advice) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C for a moment, in this process and those which it starts meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
