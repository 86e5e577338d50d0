"""The demo on fewer reviews: its table, predictions, and the error when its packages are missing."""

from __future__ import annotations

import pytest

from lateprompt import demo


def test_the_demo_runs(monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZES", (24,))
    monkeypatch.setattr(demo, "HELD_OUT", 40)
    monkeypatch.setattr(demo, "_recipe", lambda size, seed: demo.RecipeSettings(max_steps=2, batch_size=8, seed=seed))
    results = demo.run_demo(quiet=True)
    out = capsys.readouterr().out
    assert [row["method"] for row in results] == ["tfidf", "embedding-lr", "head", "npg", "mppg"]
    assert all(0 <= row["accuracy"] <= 1 for row in results)
    assert all(row["speed"] > 0 for row in results[2:])
    assert [row["parameters"] for row in results[1:3]] == [384 + 1, 2 * 384 + 2]
    assert "late prompt (npg)" in out
    assert "read 64 texts once" in out
    assert "lateprompt train --model" in out
    assert all(text in out for text in demo.EXAMPLES)


def test_reviews_are_snippets_only():
    rows = demo.reviews()
    assert len(rows) > 12_000
    assert {row.label for row in rows} == {"fresh", "rotten"}
    assert len({row.text for row in rows}) == len(rows)


def test_missing_packages_are_named():
    with pytest.raises(ValueError, match=r"'no_such_package'.*make demo"):
        demo.package_file("no_such_package", "model")
    with pytest.raises(ValueError, match="'json' with 'model'"):
        demo.package_file("json", "model")
