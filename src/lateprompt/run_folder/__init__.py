"""A run folder on disk: which files are ours, one writer at a time, a new run in the place of an old one."""
