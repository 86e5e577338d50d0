"""Few-shot samples, as the paper draws them (section 4.1): a given number of rows, and a dev set from the others.

Rows with several labels each are drawn by iterative stratification (Sechidis et al., ECML PKDD 2011).
"""

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
            Rows with several labels are drawn so that each label keeps its share, and has a row if there are enough.
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
        if row.label is None and row.target is None and row.labels is None:
            raise LatePromptError(f"row {index + 1} has no label; few-shot samples need labelled rows")
    if any(row.labels is not None for row in rows):
        train, dev = draw_by_labels([row.labels or () for row in rows], shots, seed, dev_size=dev_size)
    else:  # rows with targets are one class
        train, dev = draw([row.label or "" for row in rows], shots, seed, dev_size=dev_size)
    return [rows[index] for index in train], [rows[index] for index in dev]


def draw(classes: Sequence[str], shots: int, seed: int, *, dev_size: int) -> tuple[list[int], list[int]]:
    """`few_shot` of row numbers.

    Args:
        classes: of each row, its class.
        shots, seed, dev_size: as in `few_shot`.
    """
    _check_sizes(len(classes), shots, dev_size)
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


def draw_by_labels(
    labels: Sequence[Sequence[str]], shots: int, seed: int, *, dev_size: int
) -> tuple[list[int], list[int]]:
    """`few_shot` of row numbers, of rows with several labels.

    Args:
        labels: of each row, its labels; none is a label of its own here.
        shots, seed, dev_size: as in `few_shot`.
    """
    _check_sizes(len(labels), shots, dev_size)
    generator = np.random.default_rng(seed)
    names = sorted({name for own in labels for name in own})
    column = {name: number for number, name in enumerate(names)}
    rows = [[column[name] for name in dict.fromkeys(own)] or [len(names)] for own in labels]
    train = _stratified(rows, list(range(len(rows))), len(names) + 1, shots, generator, each=True)
    left = sorted(set(range(len(rows))) - set(train))
    dev = _stratified(rows, left, len(names) + 1, min(dev_size, len(left)), generator, each=False)
    return sorted(train), sorted(dev)


def _stratified(
    rows: Sequence[Sequence[int]],
    pool: Sequence[int],
    width: int,
    total: int,
    generator: np.random.Generator,
    *,
    each: bool,
) -> list[int]:
    """Draw `total` rows of a pool, of the label that lacks the most first.

    Args:
        rows: of each row, the numbers of its labels, below `width`.
        pool: numbers of rows.
        width: how many labels there are.
        total: how many rows.
        generator: where chance comes from.
        each: whether every label that occurs gets a row, if total allows it.
    """
    waiting: list[list[int]] = [[] for _ in range(width)]
    for row in generator.permutation(np.array(pool, dtype=np.int64)).tolist():
        for label in rows[row]:
            waiting[label].append(row)
    counts = np.array([len(own) for own in waiting], dtype=np.float64)
    lacking = counts * total / max(1, len(pool))
    if each and total >= np.count_nonzero(counts):
        lacking = np.where(counts > 0, np.maximum(lacking, 1.0), 0.0)
        # A label of few rows has its one before frequent labels fill up the sample.
        lacking[(counts > 0) & (counts * total < len(pool))] += total
    lacking[counts == 0] = -np.inf
    taken: dict[int, None] = {}
    while len(taken) < total:
        label = int(lacking.argmax())
        own = waiting[label]
        while own and own[-1] in taken:
            own.pop()
        if not own:
            lacking[label] = -np.inf
            continue
        taken[own.pop()] = None
        for other in rows[next(reversed(taken))]:
            lacking[other] -= 1 + (total if lacking[other] > total else 0)
    return list(taken)


def _check_sizes(rows: int, shots: int, dev_size: int) -> None:
    if not 0 < shots <= rows:
        raise LatePromptError(f"shots {shots!r} cannot be drawn from {rows} rows; give 1 to {rows}")
    if dev_size < 0:
        raise LatePromptError(f"dev_size {dev_size!r} is no size; give 0 or more")


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
