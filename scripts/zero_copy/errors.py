"""What goes wrong because of a file or a setting, said in one message without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thinc.api import ConfigValidationError
from wasabi import msg


class UserError(ConfigValidationError):
    """A mistake that the person at the keyboard can mend: what is wrong, and what to do.

    It is a ConfigValidationError because that is the one error that `spacy train` prints as a
    message, with exit code 1, when it comes out of the initialization of a pipeline.

    title (str): What is wrong, in one line.
    desc (str): Where (file, line, value) and what to do.
    """

    def __init__(self, title: str, desc: str = "", **settings: Any) -> None:
        # `settings` are those of the parent, whose `from_error` passes all of them on.
        super().__init__(title=title, desc=desc, **settings)

    def __str__(self) -> str:
        return f"{self.title}. {self.desc}" if self.desc else str(self.title)


def describe_error(error: Exception) -> str:
    """What went wrong, in one line.

    error (Exception): Whatever was raised.
    RETURNS (str): Its kind and its message.
    """
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End a command with one message and exit code 1 where the input is at fault.

    RAISES (SystemExit): With code 1 after a UserError or an OSError (a full disk, say), and with
        code 130, as shells expect it, after Ctrl-C.
    """
    try:
        yield
    except UserError as error:
        msg.fail(error.title, error.desc or None, exits=1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        msg.fail(f"{error.strerror or error}{where}", exits=1)
    except KeyboardInterrupt:
        msg.fail("Interrupted; what was there before is unchanged")
        raise SystemExit(130) from None
