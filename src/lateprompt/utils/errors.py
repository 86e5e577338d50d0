"""The one exception for what a user can mend."""

from __future__ import annotations


class LatePromptError(ValueError):
    """Say what is wrong with a setting, a file or a call, quote the value, and name the remedy.

    The command line prints it as one line and exits with code 2. Any other exception is a fault of the library and
    keeps its traceback. It is a `ValueError`, so that scikit-learn's and PEFT's conventions hold.

    Example:
        >>> raise LatePromptError("lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3")
        Traceback (most recent call last):
        lateprompt.utils.errors.LatePromptError: lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3
    """


def option(name: str, *values: str) -> str:
    """How a setting is given, on the command line and in Python, for an error's advice.

    Example:
        >>> option("readout", "masked_lm", "head")
        '--readout masked_lm or head (in Python: readout="masked_lm" or "head")'
    """
    quoted = " or ".join(f'"{value}"' for value in values)
    return f"--{name.replace('_', '-')} {' or '.join(values)} (in Python: {name}={quoted})"


def first_line(error: BaseException) -> str:
    """The first line of another library's message that says something, or the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
