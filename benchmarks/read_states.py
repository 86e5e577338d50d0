"""How long reading a random batch of cached states takes: 32 rows of 32 tokens of width 1024 from a 2 GB store.

.venv/bin/python benchmarks/read_states.py [FOLDER]

The store is made of random rows in a temporary folder (or FOLDER) and removed; the page cache is warm when it is read.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lateprompt.state_cache.keys import row_key
from lateprompt.state_cache.store import TrunkStates

ROWS, TOKENS, WIDTH, BATCH = 16384, 32, 1024, 32


def main(folder: Path) -> None:
    """Make the store, read every row once (checksums), and time random batches."""
    store = TrunkStates(folder, None, WIDTH, "float32", 1)
    states = torch.randn(256, TOKENS, WIDTH)
    with store.writing():
        for start in range(0, ROWS, 256):
            store.append([row_key([start + i]) for i in range(256)], list(states))
    print(f"store: {store.nbytes / 1e9:.2f} GB, {len(store):,} rows")
    for start in range(0, ROWS, BATCH):
        store.get(range(start, start + BATCH))
    random = np.random.default_rng(0)
    times = []
    for _ in range(200):
        rows = random.integers(0, ROWS, BATCH)
        started = time.perf_counter()
        store.get(rows)
        times.append(1000 * (time.perf_counter() - started))
    middle, slowest = statistics.median(times), max(times)
    print(f"a batch of {BATCH} x {TOKENS} x {WIDTH}: median {middle:.2f} ms, slowest {slowest:.2f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        main(Path(name))
