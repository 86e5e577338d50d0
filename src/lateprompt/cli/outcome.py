"""How a command ends: an exit code, and one line on stderr for whatever a user can mend."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from lateprompt.cli.interruption import exit_code, terminable
from lateprompt.runs.environment import versions
from lateprompt.utils.errors import LatePromptError, first_line

BAD_INPUT = 2
FAULT = 1
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.ENOENT: "check how it is written",
    errno.EMFILE: "close other programs, or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the limit of open files (ulimit -n)",
}


def finish(work: Callable[[], int | None], *, going_on: str = "", debug: bool = False) -> int:
    """Do the work of a command, and turn what comes of it into an exit code.

    Args:
        work: does it; may give an exit code of its own.
        going_on: what to say, after an interruption, of how the work is taken up again.
        debug: show the traceback of errors that a user can mend, too.

    Returns:
        0, or the command's own code; 2 for what a user can mend; 130 after SIGINT and 143 after SIGTERM; 1 for a fault
        of the library, whose traceback is shown.
    """
    try:
        with terminable(), _short_warnings():
            return work() or 0
    except LatePromptError as error:
        return _say(str(error), debug)
    except BrokenPipeError:  # the reader (head, less) has gone
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except OSError as error:
        return _say(_of_file(error), debug)
    except KeyboardInterrupt as stop:
        print(f"lateprompt: interrupted{'; ' if going_on else ''}{going_on}", file=sys.stderr)
        return exit_code(stop)
    except Exception as error:
        if _is_out_of_memory(error):
            return _say(f"out of memory ({first_line(error)}); use a smaller model, batch or length", debug)
        traceback.print_exc()
        print(
            "lateprompt: this is a fault in lateprompt, not in what you gave it. Please report it, with the lines "
            f"above and these versions: {', '.join(f'{name} {number}' for name, number in environment().items())}",
            file=sys.stderr,
        )
        return FAULT


def environment() -> dict[str, str]:
    """What a report of a fault should say: versions, and the machine's kind; nothing is imported for it."""
    return {**versions(), platform.system(): platform.machine()}


def _say(text: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"lateprompt: {' '.join(text.split())}", file=sys.stderr)
    return BAD_INPUT


def _of_file(error: OSError) -> str:
    """What an operating system's error means, with the file that it is about."""
    advice = _ADVICE.get(error.errno or 0, "choose another place or mend its permissions")
    if error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}; {advice}"
    return f"{error.strerror}; {advice}" if error.strerror else first_line(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's, or torch's on a CPU, which is a plain RuntimeError."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show our own warnings as one line each, once, without file and source line; others as ever."""
    with warnings.catch_warnings():
        show, seen = warnings.showwarning, set()

        def ours(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            # Python says what was left open when it collects it, in whatever code that happens.
            if issubclass(category, ResourceWarning) or not _from_here():
                show(message, category, filename, lineno, file, line)
                return
            text = " ".join(str(message).split())
            if text not in seen:
                seen.add(text)
                print(f"lateprompt: warning: {text}", file=sys.stderr if file is None else file)

        warnings.showwarning = ours
        yield


def _from_here() -> bool:
    """Whether the warning that is being shown comes from this package, whatever line it was laid at."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] == __name__.partition(".")[0]
