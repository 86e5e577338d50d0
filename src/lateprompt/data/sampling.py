"""Few-shot samples, as the paper draws them (section 4.1): a given number of rows, and a dev set from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lateprompt.data.rows import Row
from lateprompt.utils.errors import LatePromptError


def few_shot(rows: Sequence[Row], shots: int, seed: int, *, dev_size: int = 1000) -> tuple[list[Row], list[Row]]:
    """Draw a few-shot training set, and a dev set from the other rows; both keep the classes' proportions.

    Args:
        rows: labelled rows.
        shots: size of the training set, all classes together. Each class gets at least one row if there are enough.
        seed: seed of the draw: the same seed, rows and shots give the same sets.
        dev_size: size of the dev set, smaller if fewer rows are left.

    Returns:
        Training rows and dev rows, each in the order they have in `rows`.

    Raises:
        LatePromptError: shots outside 1..len(rows), a negative dev_size, or a row without label.

    Example:
        >>> from lateprompt.data import Row, few_shot
        >>> rows = [Row(f"text {i}", label="good" if i % 4 else "bad") for i in range(40)]
        >>> train, dev = few_shot(rows, shots=8, seed=42, dev_size=20)
        >>> sorted(row.label for row in train)
        ['bad', 'bad', 'good', 'good', 'good', 'good', 'good', 'good']
        >>> len(dev)
        20
    """
    for index, row in enumerate(rows):
        if row.label is None and row.target is None:
            raise LatePromptError(f"row {index + 1} has no label; few-shot samples need labelled rows")
    # Rows with targets are one class.
    train, dev = draw([row.label or "" for row in rows], shots, seed, dev_size=dev_size)
    return [rows[index] for index in train], [rows[index] for index in dev]


def draw(classes: Sequence[str], shots: int, seed: int, *, dev_size: int) -> tuple[list[int], list[int]]:
    """`few_shot` of row numbers.

    Args:
        classes: of each row, its class.
        shots, seed, dev_size: as in `few_shot`.
    """
    if not 0 < shots <= len(classes):
        raise LatePromptError(f"shots {shots!r} cannot be drawn from {len(classes)} rows; give 1 to {len(classes)}")
    if dev_size < 0:
        raise LatePromptError(f"dev_size {dev_size!r} is no size; give 0 or more")
    pools: dict[str, list[int]] = {}
    for index, name in enumerate(classes):
        pools.setdefault(name, []).append(index)
    generator = np.random.default_rng(seed)
    # Sorted, so that the draw does not depend on which class comes first in the file.
    shuffled = {label: generator.permutation(pools[label]).tolist() for label in sorted(pools)}
    train = _shares({label: len(pool) for label, pool in shuffled.items()}, shots, each=True)
    rest = {label: pool[train[label] :] for label, pool in shuffled.items()}
    left = len(classes) - shots
    dev = _shares({label: len(pool) for label, pool in rest.items()}, min(dev_size, left), each=False)
    return (
        sorted(index for label, pool in shuffled.items() for index in pool[: train[label]]),
        sorted(index for label, pool in rest.items() for index in pool[: dev[label]]),
    )


def _shares(counts: Mapping[str, int], total: int, *, each: bool) -> dict[str, int]:
    """Split `total` over classes in proportion to `counts` by largest remainder; ties go to the first name.

    Args:
        counts: rows per class.
        total: at most the sum of counts.
        each: whether every class gets at least one, if total allows it.
    """
    size = sum(counts.values())
    if total == 0:
        return dict.fromkeys(counts, 0)
    # Whole numbers, so that rounding of fractions changes no share.
    shares = {label: total * count // size for label, count in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(total * counts[label] % size), label))
    for label in by_remainder[: total - sum(shares.values())]:
        shares[label] += 1
    if each and total >= len(counts):
        for label in sorted(label for label, share in shares.items() if share == 0):
            largest = max(sorted(shares), key=lambda name: shares[name])
            shares[largest] -= 1
            shares[label] += 1
    return shares
