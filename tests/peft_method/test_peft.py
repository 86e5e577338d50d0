"""Late prompts as a PEFT method: the whole life cycle, on the heads of transformers."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModel, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft_models import (
    ADAPTERS,
    ANSWERS,
    CAUSAL,
    FEW,
    HEADLESS,
    MASKED,
    MODELS,
    SEQUENCE,
    SIZES,
    TASK,
    TOKENS,
    first_output,
    late_config,
    late_model,
    many,
    plain_batch,
    shake,
    trainable,
)
from safetensors.torch import load_file
from tiny_models import LAYERS, WIDTH, tiny_batch, tiny_model
from torch import nn
from transformers import (
    AutoModel,
    Trainer,
    TrainingArguments,
)

from lateprompt import LatePromptConfig
from lateprompt.peft_method.config import PEFT_TYPE
from lateprompt.utils.errors import LatePromptError

# -- every family under every head -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "auto"), MODELS)
def test_life_cycle(name, auto, tmp_path):
    base = tiny_model(name, auto)
    batch = plain_batch(name)
    bare = first_output(base, batch)
    keys = list(base.state_dict())
    model = shake(get_peft_model(base, late_config(auto))).eval()
    weights = trainable(model)
    adapter = {n: p for n, p in weights.items() if "late_prompt_generators" in n}
    assert sum(p.numel() for p in adapter.values()) == SIZES["npg"]
    extra = {n for n in weights if n not in adapter}
    assert all("modules_to_save.default" in n for n in extra)
    # PEFT saves the fresh heads of these task types (it knows them by name, and DistilBERT's qa_outputs is one)
    assert bool(extra) == (auto in (SEQUENCE, TOKENS) or (auto == ANSWERS and name != "modernbert"))
    output = first_output(model, batch)
    assert output.shape == bare.shape
    assert not torch.allclose(output, bare, atol=1e-4)
    with model.disable_adapter():
        if not extra:
            assert torch.equal(first_output(model, batch), bare)
    assert torch.equal(first_output(model, batch), output)

    model.requires_grad_(False)  # torch's kernel for a small head depends on it, in the last bit
    output = first_output(model, batch)
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(weights)
    for low in (False, True):
        again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path, low_cpu_mem_usage=low).eval()
        assert torch.equal(first_output(again, batch), output)
        assert not trainable(again)
    if not extra:
        assert torch.equal(first_output(model.unload(), batch), bare)
        assert list(base.state_dict()) == keys
        assert type(model.unload()) is type(base)


@pytest.mark.parametrize("generator", list(SIZES))
@pytest.mark.parametrize(("name", "auto"), [("roberta", MASKED), ("gpt2", CAUSAL), ("llama", HEADLESS)])
def test_count_and_round_trip_of_every_generator(name, auto, generator, tmp_path):
    model = late_model(name, auto, generator=generator)
    assert sum(p.numel() for p in trainable(model).values()) == SIZES[generator]
    assert model.get_nb_trainable_parameters()[0] == SIZES[generator]
    batch = plain_batch(name)
    output = first_output(model, batch)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path, adapter_name="other")
    assert torch.equal(first_output(again, batch), output)


@pytest.mark.parametrize(("name", "auto"), FEW)
def test_training_changes_the_adapter_only(name, auto):
    model = late_model(name, auto).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    output = model(**plain_batch(name))
    weights = torch.randn(output[0].shape, generator=torch.Generator().manual_seed(0))
    (output[0] * weights).sum().backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= set(trainable(model))
    assert {n for n in changed if "late_prompt_" in n} == {n for n in before if "late_prompt_" in n}


def test_adapter_config(tmp_path):
    late_model("bert", MASKED, prompt_layer="0.75", generator="appg", pool_last_source=False).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "LATE_PROMPT" == PEFT_TYPE
    assert written["prompt_layer"] == 3
    assert written["generator"] == "appg"
    assert written["num_prompt_tokens"] == 3
    assert written["bottleneck_dim"] == 8
    assert written["pool_last_source"] is False
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, LatePromptConfig)
    assert config.prompt_layer == 3
    keys = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert keys == {
        f"base_model.model.late_prompt_generators.{p}.{k}" for p in ("up", "down") for k in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "nqg"}, "'nqg'"),
        ({"num_prompt_tokens": 0}, "num_prompt_tokens 0"),
        ({"num_prompt_tokens": 2.5}, "num_prompt_tokens 2.5"),
        ({"num_prompt_tokens": True}, "num_prompt_tokens True"),
        ({"bottleneck_dim": -1}, "bottleneck_dim -1"),
        ({"prompt_dropout": 1.0}, "prompt_dropout 1.0"),
        ({"fixed_init": "zeros"}, "'zeros'"),
        ({"head_pooling": "max"}, "'max'"),
        ({"head_labels": 0}, "head_labels 0"),
        ({"generator": "none"}, "generator 'none'"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        late_config(**changes)


def test_prompt_layer_out_of_range_leaves_the_model_alone():
    base = tiny_model("bert", MASKED)
    keys = list(base.state_dict())
    for layer in (0, LAYERS, "auto"):
        with pytest.raises(ValueError, match=r"1\.\.3"):
            get_peft_model(base, late_config(prompt_layer=layer))
    assert list(base.state_dict()) == keys
    model = late_model("bert")
    with pytest.raises(ValueError, match=r"1\.\.3"):
        model.add_adapter("second", late_config(prompt_layer=9))
    assert list(model.peft_config) == ["default"]
    model.add_adapter("second", late_config(prompt_layer=3))


# -- loading elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "one", "other"), [("roberta", MASKED, HEADLESS), ("gpt2", CAUSAL, HEADLESS), ("opt", CAUSAL, HEADLESS)]
)
def test_an_adapter_loads_under_another_head(name, one, other, tmp_path):
    batch = plain_batch(name)
    for source, target in ((one, other), (other, one)):
        model = late_model(name, source)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(name, target), tmp_path)
        mine, theirs = (
            {n.split("late_prompt_")[1]: p for n, p in m.named_parameters() if "late_prompt_" in n}
            for m in (model, again)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
        headed, bare = (model, again) if source == one else (again, model)
        # the same backbone under both heads gives the same states
        backbone = headed.base_model.layer.base_layer
        bare.base_model.layer.base_layer.load_state_dict(backbone.state_dict(), strict=False)
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            states = headed.base_model.layer(**batch).last_hidden_state[real]
            assert torch.equal(states, bare.eval()(**batch).last_hidden_state[real])
        with pytest.raises(ValueError, match="cannot generate"):
            bare.base_model.model.prepare_inputs_for_generation()


@pytest.mark.parametrize(
    ("name", "auto"),
    [("bert", MASKED), ("roberta", SEQUENCE), ("gpt2", CAUSAL), ("distilbert", HEADLESS), ("llama", HEADLESS)],
)
def test_auto_classes_find_the_base_model(name, auto, tmp_path):
    tiny_model(name, auto).save_pretrained(tmp_path / "base")
    base = getattr(transformers, auto).from_pretrained(tmp_path / "base").eval()
    model = shake(get_peft_model(base, late_config(auto))).eval()
    model.save_pretrained(tmp_path / "adapter")
    classes = {
        SEQUENCE: "AutoPeftModelForSequenceClassification",
        CAUSAL: "AutoPeftModelForCausalLM",
        HEADLESS: "AutoPeftModelForFeatureExtraction",
    }
    loaded = [AutoPeftModel.from_pretrained(tmp_path / "adapter")] if TASK[auto] is None else []
    if auto in classes:
        loaded.append(getattr(peft, classes[auto]).from_pretrained(tmp_path / "adapter"))
    assert loaded
    model.requires_grad_(False)
    output = first_output(model, plain_batch(name))
    for again in loaded:
        assert torch.equal(first_output(again.eval(), plain_batch(name)), output)


def test_truncated_weights(tmp_path):
    late_model("bert").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|invalid") as error:
        PeftModel.from_pretrained(tiny_model("bert", MASKED), tmp_path)
    assert "safetensor" in type(error.value).__name__.lower() + str(error.value).lower()


def test_an_adapter_of_another_shape(tmp_path):
    late_model("bert").save_pretrained(tmp_path)
    with pytest.raises(LatePromptError, match=r"have shape .* and this model and configuration need"):
        PeftModel.from_pretrained(tiny_model("bert", MASKED, hidden_size=16), tmp_path)


def test_adapters_of_another_method_cannot_be_mixed_in(tmp_path):
    lora = get_peft_model(tiny_model("bert", MASKED), LoraConfig(target_modules=["query"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(ValueError, match="LORA"):
        late_model("bert").load_adapter(tmp_path / "lora", "other")
    late_model("bert").save_pretrained(tmp_path / "late")
    with pytest.raises(ValueError, match="LATE_PROMPT"):
        lora.load_adapter(tmp_path / "late", "other")


# -- several adapters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "auto"), [("roberta", MASKED), ("gpt2", CAUSAL), ("gemma2", CAUSAL), ("bert", HEADLESS)]
)
def test_several_adapters(name, auto, tmp_path):
    model, batch = many(name, auto), plain_batch(name)
    outputs = {}
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        assert model.active_adapter == adapter
        assert {n.split(f".{adapter}.")[0].rsplit(".", 1)[-1] for n in trainable(model)} == {"late_prompt_generators"}
        outputs[adapter] = first_output(model, batch)
    values = list(outputs.values())
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(values) for b in values[:i])
    for adapter in reversed(ADAPTERS):
        model.set_adapter(adapter)
        assert torch.equal(first_output(model, batch), outputs[adapter])
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), first_output(tiny_model(name, auto), batch))

    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path).eval()
    for adapter in ADAPTERS:
        if adapter != "default":
            again.load_adapter(tmp_path / adapter, f"my {adapter}")
            again.set_adapter(f"my {adapter}")
        assert torch.equal(first_output(again, batch), outputs[adapter])

    model.set_adapter("deep")
    model.delete_adapter("default")
    assert torch.equal(first_output(model, batch), outputs["deep"])
    assert not any("generators.default" in key for key in model.state_dict())
    with pytest.raises(ValueError, match="default"):
        model.delete_adapter("default")
    model.delete_adapter("deep")
    remaining = model.base_model.active_adapters
    assert len(remaining) == 1
    assert torch.equal(first_output(model, batch), outputs[remaining[0]])


def test_two_active_at_once_are_refused():
    model = many("bert", MASKED)
    model.base_model.set_adapter(["default", "deep"])
    with pytest.raises(ValueError, match="default, deep"):
        model(**plain_batch("bert"))


@pytest.mark.parametrize(
    "adapter", ["a-b c", "ünï/ç", "0", "late", "prompt_", "my_late_prompt_x", "[x]*", "generators"]
)
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_odd_adapter_names(adapter, tmp_path):
    model = shake(get_peft_model(tiny_model("bert", MASKED), late_config(), adapter_name=adapter)).eval()
    model.add_adapter("default", late_config(generator="fixed"))
    batch = plain_batch("bert")
    output = first_output(model, batch)
    model.save_pretrained(tmp_path, selected_adapters=[adapter])
    again = PeftModel.from_pretrained(tiny_model("bert", MASKED), tmp_path / adapter, adapter_name=adapter)
    assert torch.equal(first_output(again, batch), output)
    names = [adapter, "__base__", adapter]
    torch.testing.assert_close(first_output(model, batch, adapter_names=names)[0], output[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "adapter", ["up", "prompt", "weight", "bert", "a.b", "keys", "late_prompt_generators", "__base__", ""]
)
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_adapter_names_that_would_lose_weights_are_refused(adapter):
    with pytest.raises(ValueError, match="adapter name"):
        get_peft_model(tiny_model("bert", MASKED), late_config(), adapter_name=adapter)
    model = late_model("bert")
    with pytest.raises(ValueError, match="adapter name"):
        model.add_adapter(adapter, late_config())
    assert list(model.peft_config) == ["default"]
    assert first_output(model, plain_batch("bert")).isfinite().all()


@pytest.mark.parametrize(("name", "auto"), [("roberta", SEQUENCE), ("bert", MASKED), ("llama", SEQUENCE)])
def test_modules_to_save(name, auto, tmp_path):
    module = {"roberta": "classifier", "bert": "cls", "llama": "score"}[name]
    model = late_model(name, auto, modules_to_save=[module])
    shake(model, 3, "modules_to_save.default")
    assert any(f"{module}.modules_to_save.default" in n for n in trainable(model))
    model.requires_grad_(False)
    output = first_output(model, plain_batch(name))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path)
    assert torch.equal(first_output(again, plain_batch(name)), output)
    assert torch.equal(first_output(model.unload(), plain_batch(name)).isfinite(), output.isfinite())


def test_merging_is_refused_with_the_reason():
    model = late_model("bert")
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged"):
            call()
    assert first_output(model, plain_batch("bert")).isfinite().all()


def test_bookkeeping_of_peft(capsys):
    model = many("bert", MASKED)
    model.print_trainable_parameters()
    assert f"{SIZES['npg']:,}" in capsys.readouterr().out
    status = model.get_model_status()
    assert status.peft_types == dict.fromkeys(ADAPTERS, "LATE_PROMPT") or set(status.peft_types) == set(ADAPTERS)
    assert sorted(status.available_adapters) == sorted(ADAPTERS)
    assert status.active_adapters == ["default"]
    assert status.enabled is True
    (layer,) = model.get_layer_status()
    assert layer.module_type == "LatePromptLayer"
    assert sorted(layer.available_adapters) == sorted(ADAPTERS)
    ids = [id(p) for p in model.parameters()]
    assert len(ids) == len(set(ids))
    pointers = [t.data_ptr() for k, t in model.state_dict().items() if "late_prompt_" in k]
    assert len(pointers) == len(set(pointers))


def test_deepcopy_of_the_model():
    for name, auto in (("bert", MASKED), ("llama", HEADLESS)):
        model = late_model(name, auto)
        batch = plain_batch(name)
        output = first_output(model, batch)
        other = copy.deepcopy(model)
        assert torch.equal(first_output(other, batch), output)
        shake(other, 9)
        assert not torch.allclose(first_output(other, batch), output, atol=1e-4)
        assert torch.equal(first_output(model, batch), output)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_base(autocast, tmp_path):
    base = tiny_model("llama", CAUSAL).to(torch.bfloat16)
    model = get_peft_model(base, late_config(CAUSAL), autocast_adapter_dtype=autocast)
    shake(model)
    dtype = torch.float32 if autocast else torch.bfloat16
    assert {p.dtype for p in trainable(model).values()} == {dtype}
    output = model(**plain_batch("llama"))
    assert output.logits.dtype == torch.bfloat16
    output.logits.float().square().mean().backward()
    assert all(p.grad.dtype == dtype for p in trainable(model).values())
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        tiny_model("llama", CAUSAL).to(torch.bfloat16), tmp_path, autocast_adapter_dtype=autocast
    )
    assert torch.equal(first_output(again, plain_batch("llama")), first_output(model, plain_batch("llama")))


# -- LoRA below --------------------------------------------------------------------------------------------------------

LORA = {"roberta": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


@pytest.mark.parametrize(("name", "auto"), [("roberta", MASKED), ("llama", CAUSAL), ("gpt2", CAUSAL)])
def test_late_prompt_on_top_of_lora(name, auto, tmp_path):
    def lora_model():
        config = LoraConfig(target_modules=LORA[name], r=4, fan_in_fan_out=name == "gpt2")
        return shake(get_peft_model(tiny_model(name, auto), config), 5, "lora_")

    below = lora_model()
    with_lora = first_output(below.eval(), plain_batch(name))
    model = get_peft_model(below, late_config(auto))
    shake(model)
    lora = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert len(lora) == 2 * LAYERS * len(LORA[name])
    model.train()
    model(**plain_batch(name))[0].square().mean().backward()
    for group in (lora, {n: p for n, p in model.named_parameters() if "late_prompt_" in n}):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in group.values())
    model.eval()
    output = first_output(model, plain_batch(name))
    assert not torch.allclose(output, with_lora, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(first_output(model, plain_batch(name)), with_lora)  # the base is the model with LoRA
    model.add_adapter("second", late_config(auto, generator="fixed"))
    model.set_adapter("second")
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(first_output(model, plain_batch(name)), output)

    model.save_pretrained(tmp_path / "late")
    saved = load_file(tmp_path / "late" / "adapter_model.safetensors")
    assert len(saved) == 4
    assert all("late_prompt_" in key and "lora" not in key for key in saved)
    assert model.unload() is below
    assert torch.equal(first_output(below, plain_batch(name)), with_lora)
    below.save_pretrained(tmp_path / "lora")
    assert all("lora_" in key for key in load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    stacked = PeftModel.from_pretrained(
        PeftModel.from_pretrained(tiny_model(name, auto), tmp_path / "lora"), tmp_path / "late"
    )
    torch.testing.assert_close(first_output(stacked.eval(), plain_batch(name)), output, atol=0, rtol=0)


def test_lora_stays_trainable_under_a_late_prompt():
    below = get_peft_model(tiny_model("roberta", MASKED), LoraConfig(target_modules=["query"]))
    model = get_peft_model(below, late_config())
    names = trainable(model)
    assert any("lora_" in n for n in names)
    assert any("late_prompt_" in n for n in names)
    assert all("lora_" in n or "late_prompt_" in n for n in names)


# -- a mixed batch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("roberta", MASKED),
        ("bert", HEADLESS),
        ("deberta-v2", TOKENS),
        ("gpt2", CAUSAL),
        ("llama", CAUSAL),
        ("mistral", SEQUENCE),
    ],
)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_one_adapter_a_row(name, auto, padding):
    model, batch = many(name, auto), tiny_batch(name, padding)
    if auto in (SEQUENCE, TOKENS):  # every adapter has its own copy of the head
        for adapter in ADAPTERS:
            shake(model, len(adapter), f"modules_to_save.{adapter}.")
    alone = {}
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        alone[adapter] = first_output(model, batch)
    with model.disable_adapter():
        alone["__base__"] = first_output(model, batch)
    model.set_adapter("default")
    for names in (
        ["default", "deep", "short"],
        ["short", "default", "default"],
        ["__base__", "fixed one", "deep"],
        ["fixed one", "__base__", "__base__"],
        ["__base__"] * 3,
    ):
        mixed = first_output(model, batch, adapter_names=names)
        for row, adapter in enumerate(names):
            real = batch["attention_mask"][row].bool() if mixed.ndim == 3 else slice(None)
            torch.testing.assert_close(mixed[row][real], alone[adapter][row][real], atol=1e-5, rtol=1e-5)


def test_mixed_batches_that_make_no_sense():
    for name, auto in (("roberta", MASKED), ("llama", CAUSAL), ("bert", HEADLESS)):
        model, batch = many(name, auto), plain_batch(name)
        with pytest.raises(ValueError, match="nobody"):
            model(**batch, adapter_names=["nobody", "default", "deep"])
        for names in (["default"], ["default"] * 4, ["__base__"] * 2):
            with pytest.raises(ValueError, match="batch of 3"):
                model(**batch, adapter_names=names)
    with pytest.raises(ValueError, match="inference"):
        model.train()(**batch, adapter_names=["default"] * 3)


# -- source mask, trunk states, labels ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "auto"), MODELS)
def test_our_arguments_reach_the_backbone_through_every_head(name, auto):
    batch = plain_batch(name)
    for task_type in {TASK[auto], None}:
        model = get_peft_model(
            tiny_model(name, auto), LatePromptConfig(prompt_layer=2, bottleneck_dim=8, task_type=task_type)
        )
        shake(model).eval()
        seen: list = []
        generator = model.base_model.layer.late_prompt_generators["default"]
        generator.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args))
        output = first_output(model, batch)
        source = batch["attention_mask"].clone()
        source[:, 2:] = 0
        first_output(model, batch, source_mask=source)
        assert torch.equal(seen[1][1], source)
        given = first_output(model, batch, trunk_states=seen[0][0])
        if given.ndim == 3:
            given, output = (t[batch["attention_mask"].bool()] for t in (given, output))
        assert torch.equal(given, output)


@pytest.mark.parametrize("task_type", [TaskType.CAUSAL_LM, None])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_generator_never_reads_the_labels(name, task_type):
    model = get_peft_model(
        tiny_model(name, CAUSAL), LatePromptConfig(prompt_layer=2, bottleneck_dim=8, task_type=task_type)
    ).eval()
    shake(model)
    seen = []
    model.base_model.layer.late_prompt_generators["default"].register_forward_hook(
        lambda m, args, out: seen.append(out)
    )
    batch = plain_batch(name, None)
    labels = batch["input_ids"].clone()
    labels[:, :7] = -100
    answers = batch["input_ids"].clone()
    answers[:, 7:] = 5 + answers[:, 7:].flip(0) % 100
    assert not torch.equal(answers, batch["input_ids"])
    for ids in (batch["input_ids"], answers):
        model(input_ids=ids, attention_mask=batch["attention_mask"], labels=labels)
    assert torch.equal(seen[0], seen[1])
    with pytest.warns(UserWarning, match="source_mask"):
        model(**batch, labels=batch["input_ids"])


def test_no_warning_of_ours_without_reason(recwarn, tmp_path):
    model = late_model("llama", CAUSAL, generator="fixed")
    model(**plain_batch("llama"), labels=plain_batch("llama")["input_ids"])
    model.save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny_model("llama", CAUSAL), tmp_path)
    ours = [str(w.message) for w in recwarn if "lateprompt" in str(w.filename) or "late" in str(w.message)]
    assert ours == []


# -- labels that are not the text that follows -----------------------------------------------------------------------


def test_a_row_without_a_source_changes_no_other_row():
    model = late_model("llama", CAUSAL)
    batch = tiny_batch("llama", "none")
    labels = batch["input_ids"].clone()
    labels[:, :4] = -100
    expected = model(**batch, labels=labels).logits
    labels[2] = batch["input_ids"][2]
    with pytest.warns(UserWarning, match="no source there"):
        found = model(**batch, labels=labels).logits
    assert torch.equal(found[:2], expected[:2])
    assert torch.equal(found[2], model(**batch).logits[2])


@pytest.mark.parametrize("task", ["CAUSAL_LM", None])
def test_rows_that_name_their_adapters_have_a_source_too(task):
    config = late_config(CAUSAL)
    config.task_type = task
    model = shake(get_peft_model(tiny_model("gpt2", CAUSAL), config)).eval()
    batch = tiny_batch("gpt2", "none")
    plain = model(**batch).logits
    with pytest.warns(UserWarning, match="no source there"):
        assert torch.equal(model(**batch, labels=batch["input_ids"]).logits, plain)
    found = model(**batch, labels=batch["input_ids"], adapter_names=["default"] * 3).logits
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_labels_of_tokens_hide_nothing_from_the_generator(name):
    model = late_model(name, TOKENS, generator="mppg")
    batch = tiny_batch(name, "right")
    labels = torch.ones_like(batch["input_ids"])
    labels[:, 0] = -100
    assert torch.equal(model(**batch, labels=labels).logits, model(**batch).logits)


def test_a_fraction_of_the_depth_is_for_one_depth():
    config = LatePromptConfig(prompt_layer="0.5")
    assert get_peft_model(tiny_model("bert"), config).peft_config["default"].prompt_layer == 2
    get_peft_model(tiny_model("bert"), config)
    with pytest.raises(ValueError, match=r"prompt_layer '0.5' is layer 2 of another model.* layer 1 here"):
        get_peft_model(tiny_model("bert", num_hidden_layers=2), config)
    config.prompt_layer = 1
    assert get_peft_model(tiny_model("bert", num_hidden_layers=2), config).peft_config["default"].prompt_layer == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tuner", "LORA"),
        ("prompt_dropout", "x"),
        ("head_labels", "2"),
        ("num_prompt_tokens", 2.5),
        ("trunk_dropout", 1),
        ("generator", None),
    ],
)
def test_fields_of_the_wrong_type(name, value):
    with pytest.raises(ValueError, match=f"{name} {value!r} is no value for it"):
        LatePromptConfig(**{name: value})


def test_an_encoder_set_up_as_a_decoder():
    with pytest.raises(ValueError, match="is_decoder=True makes BertModel a decoder"):
        late_model("bert", CAUSAL, overrides={"is_decoder": True})


def test_quantised_weights_do_not_say_the_type():
    base = tiny_model("llama", CAUSAL)
    last = base.model.layers[-1]
    last.self_attn.q_proj.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    model = get_peft_model(base, late_config(CAUSAL))
    assert model.base_model.layer.placement[1] == torch.float32


# -- Trainer -----------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    def __init__(self, n=16):
        ids = torch.randint(5, 120, (n, 8), generator=torch.Generator().manual_seed(0))
        self.rows = [{"input_ids": r, "attention_mask": torch.ones_like(r), "labels": int(r[0]) % 2} for r in ids]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def trainer_of(model, folder, **changes):
    settings = {
        "max_steps": 6,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**settings, **changes})
    return Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows(8))


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_trainer_trains_checkpoints_and_resumes(name, tmp_path):
    def fresh():
        return shake(get_peft_model(tiny_model(name, SEQUENCE), late_config(SEQUENCE)))

    whole = trainer_of(fresh(), tmp_path / "whole")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert (checkpoint / "adapter_config.json").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    assert {p.name for p in checkpoint.glob("*.bin")} <= {"training_args.bin"}  # the Trainer's own
    resumed = trainer_of(fresh(), tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (key, one), (_, other) in zip(trainable(whole.model).items(), trainable(resumed.model).items(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=key)
    loaded = PeftModel.from_pretrained(tiny_model(name, SEQUENCE), tmp_path / "whole" / "checkpoint-6").eval()
    batch = plain_batch(name)
    whole.model.requires_grad_(False)
    assert torch.equal(first_output(loaded, batch), first_output(whole.model.eval(), batch))


def test_trainer_loads_the_best_checkpoint(tmp_path):
    model = shake(get_peft_model(tiny_model("bert", SEQUENCE), late_config(SEQUENCE)))
    trainer = trainer_of(
        model, tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_loss", learning_rate=0.5, max_steps=8
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_trainer_with_gradient_checkpointing(tmp_path):
    gradients = []
    for checkpointing in (False, True):
        base = tiny_model("bert", SEQUENCE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = shake(get_peft_model(base, late_config(SEQUENCE)))
        trainer = trainer_of(
            model, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, max_steps=2, save_strategy="no"
        )
        trainer.train()
        gradients.append({n: p.detach().clone() for n, p in trainable(model).items()})
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(parameter, gradients[1][name], atol=1e-5, rtol=1e-4)


# -- headless ----------------------------------------------------------------------------------------------------------


def test_headless_models_keep_their_face(tmp_path):
    base = tiny_model("bert", HEADLESS)
    batch = plain_batch("bert")
    bare = base(**batch)
    model = shake(get_peft_model(base, late_config(HEADLESS))).eval()
    output = model(**batch, output_hidden_states=True)
    assert output.last_hidden_state.shape == bare.last_hidden_state.shape
    assert output.pooler_output.shape == bare.pooler_output.shape
    assert len(output.hidden_states) == LAYERS + 1
    assert model.config is base.config
    assert model.base_model.layer.base_layer is base
    model.save_pretrained(tmp_path / "adapter")
    base = model.unload()
    assert type(base) is type(tiny_model("bert", HEADLESS))
    assert torch.equal(base(**batch).last_hidden_state, bare.last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(again(**batch).last_hidden_state, output.last_hidden_state)


def test_a_frozen_head_of_our_own_is_saved_with_the_adapter(tmp_path):
    model = late_model("bert", HEADLESS, head_labels=4, generator="none")
    assert sum(p.numel() for p in trainable(model).values()) == WIDTH * 4 + 4
    assert torch.equal(first_output(model, plain_batch("bert")), first_output(tiny_model("bert"), plain_batch("bert")))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    one, other = (m.base_model.layer.late_prompt_heads["default"] for m in (model, again))
    assert isinstance(other, nn.Linear)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_a_bare_backbone_loads_by_auto_peft_model(tmp_path):
    base = tiny_model("bert")
    base.save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LatePromptConfig(prompt_layer=2, bottleneck_dim=8)).eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    batch = tiny_batch("bert", "right")
    with torch.no_grad():
        assert torch.equal(again(**batch).last_hidden_state, model(**batch).last_hidden_state)
