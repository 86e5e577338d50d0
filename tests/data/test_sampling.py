"""Few-shot samples: sizes, proportions, disjointness, seeds."""

from __future__ import annotations

from collections import Counter

import pytest

from lateprompt.data import Row, few_shot


def rows_of(**counts: int) -> list[Row]:
    rows = [Row(f"{label} {index}", label=label) for label, count in counts.items() for index in range(count)]
    return sorted(rows, key=lambda row: hash((row.text, 1)) % 97)


def counts(rows: list[Row]) -> dict[str | None, int]:
    return dict(Counter(row.label for row in rows))


def test_sizes_and_proportions() -> None:
    train, dev = few_shot(rows_of(a=1200, b=600, c=200), 100, 13)
    assert counts(train) == {"a": 60, "b": 30, "c": 10}
    assert counts(dev) == {"a": 600, "b": 300, "c": 100}
    assert not {row.text for row in train} & {row.text for row in dev}


def test_the_largest_remainder_gets_the_last_place() -> None:
    train, _ = few_shot(rows_of(a=54, b=27, c=19), 10, 0)
    assert counts(train) == {"a": 5, "b": 3, "c": 2}


def test_every_class_gets_one() -> None:
    rows = rows_of(a=990, b=6, c=4)
    assert counts(few_shot(rows, 10, 1)[0]) == {"a": 8, "b": 1, "c": 1}
    assert counts(few_shot(rows, 3, 1)[0]) == {"a": 1, "b": 1, "c": 1}
    assert counts(few_shot(rows, 2, 1)[0]) == {"a": 2}


def test_the_seed_decides() -> None:
    rows = rows_of(a=300, b=200)
    assert few_shot(rows, 50, 13) == few_shot(rows, 50, 13)
    assert few_shot(rows, 50, 13) != few_shot(rows, 50, 21)


def test_the_order_of_classes_does_not_matter() -> None:
    a = [Row(f"a {index}", label="a") for index in range(30)]
    b = [Row(f"b {index}", label="b") for index in range(20)]
    one, other = few_shot([*a, *b], 10, 3), few_shot([*b, *a], 10, 3)
    assert [{row.text for row in part} for part in one] == [{row.text for row in part} for part in other]


def test_the_dev_set_is_what_is_left() -> None:
    rows = rows_of(a=30, b=20)
    train, dev = few_shot(rows, 40, 5)
    assert len(dev) == 10
    assert {row.text for row in train} | {row.text for row in dev} == {row.text for row in rows}
    assert few_shot(rows, 50, 5)[1] == []
    assert few_shot(rows, 40, 5, dev_size=0)[1] == []
    assert len(few_shot(rows, 10, 5, dev_size=7)[1]) == 7


def test_the_draw_is_random_within_a_class() -> None:
    rows = [Row(str(index), label="ab"[index % 2]) for index in range(1000)]
    positions = [int(row.text) for row in few_shot(rows, 100, 42)[0]]
    assert positions == sorted(positions)
    assert 400 < sum(positions) / 100 < 600


@pytest.mark.parametrize("shots", [0, -1, 6])
def test_impossible_shots(shots: int) -> None:
    with pytest.raises(ValueError, match=f"shots {shots} cannot be drawn from 5 rows"):
        few_shot(rows_of(a=3, b=2), shots, 1)


def test_impossible_rows() -> None:
    with pytest.raises(ValueError, match="row 1 has no label"):
        few_shot([Row("x")], 1, 1)
    with pytest.raises(ValueError, match="dev_size -1"):
        few_shot(rows_of(a=3), 1, 1, dev_size=-1)
