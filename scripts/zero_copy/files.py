"""Replacing files all at once, so that an interruption leaves nothing half-written."""

import ctypes
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
    """Give a temporary name, and rename what has been written under it when all is well.

    path (Path): The file to write; what stands there stays until the new one is complete.
    YIELDS (Path): A name beside it.
    RAISES (OSError): If it can't be renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # Else a machine that stops may leave the name of nothing.
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
            # The first process may have ended, and removed the file, since it was opened here.
            is_current = os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            raise UserError(title, advice)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another, which is removed.

    Linux can exchange two folders, so that there is one at any moment; elsewhere there is none for
    the time between two renames.

    new (Path): The folder, on the same file system.
    target (Path): Its place.
    RAISES (OSError): If it can't be renamed.
    """
    if target.exists() and not _exchange(new, target):
        old = new.with_name(f"{new.name}.old")
        os.replace(target, old)
        os.replace(new, target)
        new = old
    elif not target.exists():
        os.replace(new, target)
    shutil.rmtree(new, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; returns whether the system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    current_folder, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(current_folder, names[0], current_folder, names[1], exchange) == 0


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
