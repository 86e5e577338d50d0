"""The one exception for what a user can mend."""

from __future__ import annotations


class LatePromptError(ValueError):
    """Say what is wrong with a setting, a file or a call, quote the value, and name the remedy.

    The command line prints it as one line and exits with code 2. Any other exception is a fault of the library and
    keeps its traceback. It is a `ValueError`, so that scikit-learn's and PEFT's conventions hold.

    Example:
        >>> raise LatePromptError("lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3")
        Traceback (most recent call last):
        lateprompt.errors.LatePromptError: lr -1.0 is no learning rate; give a number above 0, e.g. 1e-3
    """
