"""The command line: arguments and printing; the work is done elsewhere."""

from lateprompt.cli.app import main as main
