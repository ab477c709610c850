"""Files and folders that are replaced whole, or not at all."""

import contextlib
import fcntl
import threading
from pathlib import Path

import pytest

from zero_copy import files
from zero_copy.errors import UserError
from zero_copy.files import locked, replace_folder, replacing


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_folder_is_replaced_and_is_there_at_any_moment(tmp_path):
    target, missing, is_over = folder_of(tmp_path / "target", "0"), [], threading.Event()

    def look() -> None:
        while not is_over.is_set():
            if not (target / "file").exists():
                missing.append(1)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(1, 200):
        replace_folder(folder_of(tmp_path / "new", str(number)), target)
        assert (target / "file").read_text() == str(number)
    is_over.set()
    thread.join()
    assert not missing
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("is_there", [True, False])
def test_where_the_system_can_not_exchange_it_is_renamed(
    tmp_path, monkeypatch, can_exchange, is_there
):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    if is_there:
        folder_of(tmp_path / "target", "old")
    replace_folder(folder_of(tmp_path / "new", "new"), tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_file_is_replaced_only_when_all_is_well(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("one")
    with contextlib.suppress(ValueError), replacing(path) as temporary:
        temporary.write_text("two")
        raise ValueError("stop")
    assert path.read_text() == "one"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_second_process_is_kept_out(tmp_path):
    path = tmp_path / "lock"
    with (
        locked(path, "one", "wait"),
        pytest.raises(UserError, match="one"),
        locked(path, "one", "wait"),
    ):
        pass
    with locked(path, "one", "wait"):
        assert path.exists()
    assert not path.exists()


def test_a_lock_that_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """A third process would make a file of its own, and both would be inside."""
    path = tmp_path / "lock"
    original = fcntl.flock

    def after_the_first_has_ended(lock, operation):
        path.unlink()
        original(lock, operation)

    monkeypatch.setattr(fcntl, "flock", after_the_first_has_ended)
    with pytest.raises(UserError, match="one"), locked(path, "one", "wait"):
        pass
