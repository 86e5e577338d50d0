"""Read-only prompts: exact for the text, equal to their slow form, on all families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from lateprompt import FAMILIES as FAMILY_TABLE
from lateprompt import LatePromptConfig
from lateprompt.backbone.read_only import read_pass
from tests.read_only_reference import slow_read
from tests.tiny_models import CONFIGS, DECODERS, EAGER_ONLY, LAYERS, tiny_batch, tiny_model

FAMILIES = tuple(CONFIGS)


def read_only(model: Any, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"prompt_layer": 2, "num_prompt_tokens": 3, "bottleneck_dim": 8, "prompt_dropout": 0.0}
    return get_peft_model(model, LatePromptConfig(read_only=True, **{**defaults, **settings})).eval()


def anchors(name: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last real position for decoders, one in the middle for encoders."""
    mask = batch["attention_mask"]
    places = torch.arange(1, mask.shape[1] + 1) * mask
    last: torch.Tensor = places.argmax(1)
    return last if name in DECODERS else last - 1


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_is_the_frozen_models_and_a_fresh_vector_answers_as_it_does(name: str, padding: str) -> None:
    auto = "AutoModelForCausalLM" if name in DECODERS else "AutoModelForMaskedLM"
    base, batch = tiny_model(name, auto), tiny_batch(name, padding)
    anchor = anchors(name, batch)
    with torch.no_grad():
        want = base(**batch).logits
        model = read_only(base, num_prompt_tokens=1)
        got = model(**batch, anchor=anchor).logits
    difference = (got - want).abs().amax(-1)
    rows = torch.arange(len(anchor))
    assert difference[rows, anchor].max() <= 1e-5
    difference[rows, anchor] = 0.0
    assert difference.max() == 0.0


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_output_and_gradients_equal_the_slow_form(name: str, kernel: str, padding: str) -> None:
    if kernel == "sdpa" and name in EAGER_ONLY:
        pytest.skip("this architecture has its own attention")
    base, batch = tiny_model(name, attention=kernel), tiny_batch(name, padding)
    model = read_only(base, zero_init=False)
    layer = model.base_model.layer
    anchor = anchors(name, batch)
    generator = layer.late_prompt_generators["default"]
    want = slow_read(layer.base_layer, generator, layer.slots["default"], batch, anchor)
    factors = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    expected = torch.autograd.grad((want * factors).sum(), list(generator.parameters()))
    got = layer.read_call("default", **batch, anchor=anchor).mean
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((got * factors).sum(), list(generator.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_stays_as_it_is_whatever_lies_on_the_prompts_path(name: str) -> None:
    base, batch = tiny_model(name), tiny_batch(name, "right")
    with torch.no_grad():
        want = base(**batch, output_hidden_states=True)
        model = read_only(base, tuner={"peft_type": "LORA", "r": 2, "init_lora_weights": False})
        anchor = anchors(name, batch)
        got = model(**batch, anchor=anchor, output_hidden_states=True)
    rows = torch.arange(len(anchor))
    assert all(torch.equal(one, other) for one, other in zip(got.hidden_states, want.hidden_states, strict=True))
    difference = (got.last_hidden_state - want.last_hidden_state).abs().amax(-1)
    assert difference[rows, anchor].min() > 1e-3
    difference[rows, anchor] = 0.0
    assert difference.max() == 0.0


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_states_of_some_or_all_layers_give_the_same(name: str) -> None:
    base, batch = tiny_model(name), tiny_batch(name, "right")
    model = read_only(base, zero_init=False, prompt_layer=1)
    layer, anchor = model.base_model.layer, anchors(name, batch)
    with torch.no_grad():
        hidden = base(**batch, output_hidden_states=True).hidden_states
        want = model(**batch, anchor=anchor).last_hidden_state
        kept = {number: hidden[number] for number in range(1, LAYERS)}
        for states in (hidden[1], {1: hidden[1]}, kept, {1: hidden[1], 2: hidden[2]}):
            own = {"attention_mask": batch["attention_mask"]}
            got = layer(**own, trunk_states=states, anchor=anchor).last_hidden_state
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(got[real], want[real], atol=2e-5, rtol=1e-4)
            alone = layer(**own, trunk_states=states, anchor=anchor, read=anchor).last_hidden_state
            torch.testing.assert_close(alone[:, 0], want[torch.arange(len(anchor)), anchor], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILY_TABLE[name].absorbs])
def test_absorbed_keys_have_their_bias(name: str) -> None:
    """A prompt's own keys have the projection's bias, so the text's must too; fresh models have none but zeros."""
    base, batch = tiny_model(name), tiny_batch(name, "right")
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.5)
    model = read_only(base, zero_init=False, num_prompt_tokens=1)
    layer, anchor = model.base_model.layer, anchors(name, batch)
    generator = layer.late_prompt_generators["default"]
    want = slow_read(layer.base_layer, generator, layer.slots["default"], batch, anchor)
    absorbed = []
    make = read_pass._absorbed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_pass, "_absorbed", lambda *a: absorbed.append(make(*a)) or absorbed[-1])
        got = layer.read_call("default", **batch, anchor=anchor).mean
    assert absorbed
    assert None not in absorbed
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    found, expected = (torch.autograd.grad(part.square().sum(), list(generator.parameters())) for part in (got, want))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
