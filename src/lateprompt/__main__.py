"""`python -m lateprompt`."""

from lateprompt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
