"""The benchmark's table on a tiny model: every method makes a step, the figures hang together; no time is asserted."""

from __future__ import annotations

import json

import pytest

from lateprompt.cli.app import main
from lateprompt.experiments import bench
from lateprompt.experiments.bench import BASELINE, METHODS, BenchSettings, Cost, run_bench

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "roberta-base", TINY)


def test_every_method_makes_steps(capsys):
    assert main(["bench", "--batch", "2", "--length", "8", "--repeats", "2", "--memory", "false", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ceiling_gflops"] > 0
    assert [row["name"] for row in result["rows"]] == [name for name, method in METHODS.items() if method.by_default]
    assert {row["dtype"] for row in result["rows"]} == {"float32", "bfloat16"}
    for row in result["rows"]:
        assert row["step_ms"] > 0
        assert row["tokens_per_second"] == pytest.approx(2 * 8 / row["step_ms"] * 1000)
        assert row["ceiling_fraction"] > 0
    assert result["rows"][0]["speed_vs_prompt_tuning"] == 1.0


def test_a_step_trains_the_method_and_nothing_else():
    setup = bench.Bench(BenchSettings(batch=2, length=8))
    frozen = {name: p.detach().clone() for name, p in setup.shared.named_parameters()}
    for name in (BASELINE, "prompt-tuning-20-quick", "prefix-tuning-20", "npg-states"):
        setup.step_of(METHODS[name])()
    assert all((p == frozen[name]).all() for name, p in setup.shared.named_parameters())


def test_kept_states_leave_no_trunk_in_memory():
    setup = bench.Bench(BenchSettings(batch=2, length=8))
    models = []
    setup.fresh_model = lambda dtype=None: models.append(bench.Bench.fresh_model(setup, dtype)) or models[-1]
    setup.step_of(METHODS["npg-states"])()
    (model,) = models
    left = {name for name, p in model.named_parameters() if p.numel() and "late_prompt" not in name}
    assert left
    assert not any(".layer.0." in name or ".layer.1." in name or "embeddings" in name for name in left)
    assert "lm_head.decoder.weight" not in left


def test_the_cost_model_in_layers():
    costs = {name: method.cost(24, 12) for name, method in METHODS.items()}
    total = {name: cost.forward + cost.backward + cost.weights for name, cost in costs.items()}
    assert total["full-tuning"] == 72
    assert total[BASELINE] == total["lora"] == 48
    lean = 2 + 3 / 12  # the last layer both ways, of the first one's backward pass its projections
    assert total["npg"] == pytest.approx(36 - lean)
    assert total["npg-states"] == pytest.approx(24 - lean)
    setup = bench.Bench(BenchSettings(batch=2, length=8))
    linear, attention = 2 * (4 * 32 * 32 + 2 * 32 * 64), 4 * 8 * 32
    assert setup.floating_operations(Cost(1, 0)) == 2 * 8 * (linear + attention)
    assert setup.floating_operations(Cost(0, 1)) == 2 * 8 * (linear + 2 * attention)
    assert setup.floating_operations(Cost(0, 0, 1)) == 2 * 8 * linear


def test_a_table_with_bars(capsys):
    assert main(["bench", "--batch", "2", "--length", "8", "--repeats", "1", "--memory", "false"]) == 0
    out = capsys.readouterr().out
    assert "matrix-product ceiling" in out
    assert "█" in out


def test_memory_of_a_fresh_process(headless, masked_lm):
    settings = BenchSettings(model=masked_lm, batch=2, length=8, repeats=1, methods=[BASELINE, "npg-states"])
    rows = run_bench(settings)["rows"]
    assert all(row["peak_memory_bytes"] > 10_000_000 for row in rows)
    assert rows[0]["memory_vs_prompt_tuning"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "batch 0"),
        (["--dtype", "int4"], "dtype 'int4'"),
        (["--prompt-layer", "9"], "prompt_layer 9"),
        (["--methods", "[magic]"], "method 'magic'"),
        (["--length", "420"], "length 420 and 100 prompt tokens of prompt-tuning-100 exceed the 512 positions"),
        (["--length", "513", "--methods", "[npg-states]"], "length 513 and 0 prompt tokens"),
    ],
)
def test_settings_that_cannot_be(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda *_: pytest.fail("measured before the settings were looked at"))
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
