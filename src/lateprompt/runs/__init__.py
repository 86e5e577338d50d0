"""A training run, from data files to a run folder."""
