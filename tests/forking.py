"""Commands run as `python` would run them, without importing spaCy and torch once more."""

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


def run_script(*command, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module that is named after -m, in a fork of this process.

    Five of the six seconds that a short training takes in a process of its own are imports. What
    must show that it needs nothing of this project is started afresh, not so.

    command (Any): The script and its arguments.
    cwd (Optional[Path]): The working directory.
    RETURNS (CompletedProcess): The exit code, and what was printed.
    """
    arguments = [str(argument) for argument in command]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        child = os.fork()
        if not child:
            os._exit(_run(arguments, out.fileno(), error.fileno(), cwd))
        _, status = os.waitpid(child, 0)
        printed = []
        for file in (out, error):
            file.seek(0)
            printed.append(file.read())
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(status), *printed)


def _run(arguments: list[str], out: int, error: int, cwd: Path | None) -> int:
    os.dup2(out, 1)
    os.dup2(error, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf8"), os.fdopen(2, "w", encoding="utf8")
    code: int | str | None = 0
    try:
        os.chdir(cwd or ".")
        is_module = arguments[0] == "-m"
        sys.argv = arguments[is_module:]
        run = runpy.run_module if is_module else runpy.run_path
        run(sys.argv[0], run_name="__main__")
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)
