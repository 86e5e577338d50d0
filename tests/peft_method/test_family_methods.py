"""LoRA, adapters and BitFit, early and late, on every family of the table, by their own defaults."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from test_methods import AUTO, batch_of, make, readout_of, settings_of, train
from tiny_models import CONFIGS, ENCODERS, tiny_model

from lateprompt.backbone.families import FAMILIES, core_of
from lateprompt.methods import parameter_count

TUNERS = ("lora", "late-lora", "adapter", "late-adapter", "bitfit", "late-bitfit")


def test_every_family_has_a_tiny_model():
    assert set(CONFIGS) == {name for name in FAMILIES if not name.startswith("my_")}


@pytest.mark.slow
@pytest.mark.parametrize("method", TUNERS)
@pytest.mark.parametrize("family", CONFIGS)
def test_defaults_of_every_family(family, method, tmp_path):
    readout = "masked_lm" if family in ENCODERS else "causal_lm"
    model = make(family, readout, method)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in trained.values())
    assert count == parameter_count(settings_of(method), tiny_model(family, AUTO[readout]), 2)
    before = {name: p.detach().clone() for name, p in trained.items()}
    train(model, readout_of(model, readout), batch_of(family), steps=1)
    assert any(not torch.equal(p, before[name]) for name, p in trained.items())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(family, AUTO[readout]), tmp_path).eval()
    with torch.no_grad():
        scores, again = (readout_of(m, readout).scores(batch_of(family)) for m in (model, loaded))
    assert torch.allclose(scores, again, atol=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_late_lora_wraps_query_and_value_above_the_prompt_layer_alone(family):
    model = make(family, "head", "late-lora")
    names = [name for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    projections = FAMILIES[family].projections
    layers = 1 if family == "albert" else 2  # of 4, ALBERT's in groups of two that share their weights
    assert len(names) == layers * (1 if len(projections) == 1 else 2)
    ends = {path.rpartition(".")[2] for path in (projections[0], projections[-1])}
    assert {name.rpartition(".")[2] for name in names} == ends
    stack = core_of(model.get_base_model()).get_submodule(FAMILIES[family].layers)
    below = list(stack.children())[: len(stack) // 2]
    assert not any(isinstance(m, LoraLayer) for layer in below for m in layer.modules())
