"""The harness behind docs/results.md: compare, report and bench."""
