"""The training recipe: settings, batches, the loop, evaluation, and resuming."""
