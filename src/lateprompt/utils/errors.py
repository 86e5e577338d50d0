"""`LatePromptError`, the exception for what a user can correct."""

from __future__ import annotations


class LatePromptError(ValueError):
    """A setting, file or call that the user can correct; the message quotes the value and says what to do.

    The command line prints it as one line and exits with code 2. Any other exception is a bug of the library and keeps
    its traceback. It is a `ValueError`, as scikit-learn and PEFT expect.

    Example:
        >>> from lateprompt import LatePromptError
        >>> raise LatePromptError("lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3")
        Traceback (most recent call last):
        lateprompt.utils.errors.LatePromptError: lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3
    """


def option(name: str, *values: str) -> str:
    """Say how a setting is given, on the command line and in Python, for an error message.

    Example:
        >>> option("readout", "masked_lm", "head")
        '--readout masked_lm or head (in Python: readout="masked_lm" or "head")'
    """
    quoted = " or ".join(f'"{value}"' for value in values)
    return f"--{name.replace('_', '-')} {' or '.join(values)} (in Python: {name}={quoted})"


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an error's message, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
