"""`python -m lateprompt`."""

from lateprompt.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
