"""What PEFT, transformers and torch offer besides training and loading: it works, or says why not."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.utils.hotswap import hotswap_adapter
from peft_models import CAUSAL, HEADLESS, MASKED, first_output, late_config, late_model, plain_batch, shake
from tiny_models import tiny_batch, tiny_model
from torch import nn

from lateprompt import AdapterConfig, BitFitConfig
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.predictors.loading import load_base
from lateprompt.utils.errors import LatePromptError

FEW = [("bert", MASKED), ("opt", CAUSAL), ("llama", CAUSAL), ("albert", MASKED), ("gpt2", CAUSAL)]


def two():
    model = late_model("bert")
    model.add_adapter("other", late_config())
    return model


# -- PEFT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean"),
            "cannot be averaged.*adapter_names",
        ),
        (lambda m: m.base_model.add_weighted_adapter(["default", "other"], [1, 1], "sum"), "cannot be averaged"),
        (lambda m: m.merge_adapter(), r"cannot be merged.*unload\(\)"),
        (lambda m: m.unmerge_adapter(), r"cannot be merged.*unload\(\)"),
        (lambda m: m.merge_and_unload(), r"cannot be merged.*unload\(\)"),
        (lambda m: get_peft_model(m, late_config()), "has a late prompt already.*add_adapter"),
        (lambda m: get_peft_model(m, late_config(), adapter_name="third"), "has a late prompt already"),
        (lambda m: inject_adapter_in_model(late_config(), m.base_model.model), "'default' is (there already|taken)"),
    ],
)
def test_calls_that_say_why_not(call, message):
    model, batch = two(), plain_batch("bert")
    before, keys = first_output(model, batch), list(model.state_dict())
    with pytest.raises(LatePromptError, match=message):
        call(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(first_output(model, batch), before)


@pytest.mark.parametrize("kind", [AdapterConfig, BitFitConfig])
def test_tuners_have_no_mean_either(kind):
    model = get_peft_model(tiny_model("bert", MASKED), kind())
    with pytest.raises(LatePromptError, match=r"no mean of several adapters.*set_adapter"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "mean")


def test_mixed_models_of_peft_name_what_they_take(tmp_path):
    with pytest.raises(ValueError, match=r"'LATE_PROMPT' is not compatible with the `PeftMixedModel`. Compatible"):
        get_peft_model(tiny_model("bert", MASKED), late_config(), mixed=True)
    mixed = get_peft_model(tiny_model("bert", MASKED), LoraConfig(), mixed=True)
    with pytest.raises(ValueError, match="'LATE_PROMPT' is not compatible"):
        mixed.add_adapter("late", late_config())
    with pytest.raises(ValueError, match="'BITFIT' is not compatible"):
        mixed.add_adapter("late", BitFitConfig())


def test_hotswap_names_what_it_takes(tmp_path):
    model = late_model("bert")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only supports LORA but LATE_PROMPT"):
        hotswap_adapter(model, str(tmp_path), "default")


@pytest.mark.parametrize(
    ("name", "auto"), [*FEW[2:], ("deberta-v2", MASKED), ("distilbert", MASKED), ("gpt_neox", CAUSAL)]
)
def test_transformers_own_adapters(name, auto, tmp_path):
    ours, batch = late_model(name, auto), plain_batch(name)
    ours.save_pretrained(tmp_path)
    expected = first_output(ours, batch)
    model = tiny_model(name, auto)
    bare = first_output(model, batch)
    info = model.load_adapter(str(tmp_path))
    assert not info.missing_keys
    assert not info.unexpected_keys
    assert torch.equal(first_output(model, batch), expected)
    model.disable_adapters()
    assert torch.equal(first_output(model, batch), bare)
    model.enable_adapters()
    assert torch.equal(first_output(model, batch), expected)
    fresh = tiny_model(name, auto)
    fresh.add_adapter(late_config(auto))
    assert fresh.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(("name", "auto", "tuner"), [("opt", CAUSAL, None), ("bert", MASKED, {"peft_type": "BITFIT"})])
def test_transformers_would_lose_weights_of_these(name, auto, tuner, tmp_path):
    ours, batch = late_model(name, auto, tuner=tuner), plain_batch(name)
    ours.save_pretrained(tmp_path)
    model = tiny_model(name, auto)
    bare, keys = first_output(model, batch), list(model.state_dict())
    for _ in range(2):
        with pytest.raises(LatePromptError, match=r"use peft\.PeftModel\.from_pretrained"):
            model.load_adapter(str(tmp_path))
    assert list(model.state_dict()) == keys
    assert torch.equal(first_output(model, batch), bare)
    model.add_adapter(late_config(auto, tuner=tuner))
    assert torch.isfinite(first_output(model, batch)).all()


def test_a_bare_backbone_is_not_left_without_its_prompt(tmp_path):
    late_model("bert", HEADLESS).save_pretrained(tmp_path)
    model = tiny_model("bert", HEADLESS)
    for call in (lambda: model.add_adapter(late_config(HEADLESS)), lambda: model.load_adapter(str(tmp_path))):
        with pytest.raises(LatePromptError, match=r"bare backbone.*get_peft_model"):
            call()
    injected = inject_adapter_in_model(late_config(HEADLESS), tiny_model("bert", HEADLESS))
    assert any(isinstance(module, LatePromptLayer) for module in injected.modules())


@pytest.mark.parametrize(("name", "auto"), FEW)
def test_injected_adapters(name, auto):
    model = shake(inject_adapter_in_model(late_config(auto), tiny_model(name, auto)))
    ours = late_model(name, auto)
    assert torch.equal(first_output(model, plain_batch(name)), first_output(ours, plain_batch(name)))
    assert len(get_peft_model_state_dict(model)) == len(get_peft_model_state_dict(ours))


@pytest.mark.parametrize(("name", "auto"), FEW)
def test_loading_without_memory_for_two(name, auto, tmp_path):
    ours, batch = late_model(name, auto), plain_batch(name)
    ours.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(first_output(again, batch), first_output(ours, batch))


# -- torch -------------------------------------------------------------------------------------------------------------


def small(name, auto, **changes):
    """A late model whose weights are small, so that rounding them moves little."""
    model = get_peft_model(tiny_model(name, auto), late_config(auto, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    return model


QUANTISED = [
    ("bert", MASKED, {}),
    ("llama", CAUSAL, {"generator": "atpg"}),
    ("opt", CAUSAL, {}),
    ("albert", MASKED, {"generator": "mppg"}),
    ("bert", MASKED, {"generator": "rpg", "tuner": {"peft_type": "BITFIT"}}),
    ("llama", CAUSAL, {"tuner": {"peft_type": "HOULSBY_ADAPTER"}}),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("in_place", "used"), [(False, False), (True, True)])
@pytest.mark.parametrize(("name", "auto", "changes"), QUANTISED)
def test_dynamic_quantisation(name, auto, changes, in_place, used):
    model, batch = small(name, auto, **changes), plain_batch(name)
    expected = first_output(copy.deepcopy(model), batch)
    if used:  # views of the trunk and the tail are there already
        first_output(model, batch)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=in_place)
    output = first_output(quantised, batch)
    assert not torch.equal(output, expected)
    assert (output - expected).abs().max() < 0.1 * expected.abs().max()
    run = []
    for module in quantised.base_model.layer.base_layer.modules():
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear):
            module.register_forward_hook(lambda *_: run.append(1))
    first_output(quantised, batch)
    assert run  # the modules that stand in the model are those that the views run
    if not in_place:
        assert torch.equal(first_output(model, batch), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_quantised_lora_is_refused():
    model = late_model("bert", tuner={"peft_type": "LORA", "r": 2})
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(LatePromptError, match="quantise the base model first"):
        first_output(quantised, plain_batch("bert"))
    assert torch.isfinite(first_output(model, plain_batch("bert"))).all()


def test_a_late_prompt_on_a_quantised_base():
    base = torch.ao.quantization.quantize_dynamic(tiny_model("bert", MASKED), {nn.Linear}, dtype=torch.qint8)
    assert torch.isfinite(first_output(get_peft_model(base, late_config()).eval(), plain_batch("bert"))).all()


def test_traces_are_refused():
    model, batch = late_model("bert"), plain_batch("bert")
    model.config.return_dict = False
    inputs = batch["input_ids"], batch["attention_mask"]
    for trained in (True, False):
        model.requires_grad_(trained)
        with pytest.raises(LatePromptError, match=r"cannot be traced.*torch\.export"):
            torch.jit.trace(model, inputs, strict=False, check_trace=False)
    with model.disable_adapter():
        torch.jit.trace(model.base_model.model, inputs, strict=False, check_trace=False)


def test_replicas_of_data_parallel_are_refused():
    layer = late_model("bert").base_model.layer
    replica = layer._replicate_for_data_parallel()  # what DataParallel makes for each GPU
    with pytest.raises(LatePromptError, match=r"torchrun.*CUDA_VISIBLE_DEVICES=0"):
        replica(**plain_batch("bert"))
    assert torch.isfinite(layer(**plain_batch("bert")).last_hidden_state).all()


@pytest.mark.parametrize(("name", "auto"), [("bert", MASKED), ("llama", CAUSAL)])
def test_exported_models(name, auto):
    model, batch = late_model(name, auto), plain_batch(name)
    extra = {"use_cache": False} if auto == CAUSAL else {}
    program = torch.export.export(model, (), kwargs={**batch, **extra}, strict=False).module()
    other = tiny_batch(name, "left")
    for given in (batch, other):
        with torch.no_grad():
            output = program(**given, **extra).logits
        assert torch.allclose(output, first_output(model, given, **extra), atol=1e-5)


@pytest.mark.parametrize(("name", "auto"), FEW)
def test_copies_share_nothing(name, auto):
    model, batch = late_model(name, auto), plain_batch(name)
    before = first_output(model, batch)
    copied = copy.deepcopy(model)
    layer = copied.base_model.layer
    split = layer.split_at(2)
    own = {id(module) for module in model.modules()} | {id(p) for p in model.parameters()}
    seen = [m for view in (split.trunk, split.tail) for m in (*view.modules(), *view.parameters())]
    assert not own & set(map(id, seen))
    assert torch.equal(first_output(copied, batch), before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(first_output(model, batch), before)
    assert not torch.equal(first_output(copied, batch), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "auto"), FEW[:3])
def test_other_types_after_wrapping(name, auto, dtype):
    model, batch = small(name, auto), plain_batch(name)
    expected = first_output(model, batch)
    output = first_output(model.to(dtype), batch)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_auto_classes_of_transformers_load_adapters_too(tmp_path):
    base = tiny_model("bert", MASKED)
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(load_base(str(tmp_path / "base"), "masked_lm"), late_config())
    shake(model).eval().save_pretrained(tmp_path / "adapter")
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "adapter")
    batch = plain_batch("bert")
    assert torch.equal(first_output(loaded, batch), first_output(model, batch))
