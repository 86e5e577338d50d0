"""Every compared method: life cycle, readouts, parameter counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_config, get_peft_model, get_peft_model_state_dict
from tiny_models import LAYERS, WIDTH, tiny_batch, tiny_model

from lateprompt import LatePromptConfig
from lateprompt.backbone.families import core_of
from lateprompt.methods import (
    METHODS,
    NAMES,
    adapter_config,
    check_method,
    is_late,
    is_linear,
    parameter_count,
    parse_options,
    read_only_name,
    title_of,
)
from lateprompt.prompts import GENERATORS
from lateprompt.readouts import Batch, HeadReadout, WordReadout
from lateprompt.training.settings import ModelSettings

READ_PAIRS = ("read-npg+lora", "read-atpg+bitfit", "read-rpg+late-adapter")
PAIRS = ("npg+late-lora", "mppg+late-bitfit", "fixed+late-adapter", "appg+late-full", "atpg+lora")
ADAPTERS = tuple(name for name in NAMES if not is_linear(name))
ALL = (*ADAPTERS, *PAIRS)
OPTIONS = {"s-idpg": {"phm_n": 4}, "adapterdrop": {"drop_layers": 2}}
AUTO = {"masked_lm": "AutoModelForMaskedLM", "causal_lm": "AutoModelForCausalLM", "head": "AutoModel"}
CASES = [
    (family, readout, method)
    for family, readout in (("bert", "head"), ("roberta", "masked_lm"), ("gpt2", "causal_lm"), ("llama", "causal_lm"))
    for method in ALL
    if not (method == "head" and readout != "head") and not ("bitfit" in method and family == "llama")
]


def settings_of(method: str, **given) -> ModelSettings:
    return ModelSettings("tiny", method, dict(OPTIONS.get(method, {})), prompt_layer=2, bottleneck_dim=8, **given)


def make(family: str, readout: str, method: str, **options):
    base = tiny_model(family, AUTO[readout], **options)
    extra = {"head_labels": 3, "head_pooling": "mean"} if readout == "head" else {}
    config = adapter_config(settings_of(method), extra)
    torch.manual_seed(7)
    return get_peft_model(base, config)


def readout_of(model, readout: str):
    layer = model.base_model.layer
    if readout == "head":
        return HeadReadout(model.get_base_model(), layer, "default", "mean")
    return WordReadout(model.get_base_model(), layer, [7, 8, 9], readout, "vocabulary")


def batch_of(family: str, *, labels: bool = True) -> Batch:
    given = tiny_batch(family, "right")
    read = given["attention_mask"].sum(1) - 1
    return Batch(given["input_ids"], given["attention_mask"], read, torch.tensor([0, 1, 2]) if labels else None)


def train(model, readout, batch: Batch, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        readout.loss(batch).backward()
        optimizer.step()
    model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "readout", "method"), CASES)
def test_train_save_load(family, readout, method, tmp_path):
    model = make(family, readout, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    labels = 3 if readout == "head" else None
    counted = parameter_count(settings_of(method), tiny_model(family, AUTO[readout]), 2, labels)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        start = readout_of(model, readout).scores(batch_of(family))
    train(model, readout_of(model, readout), batch_of(family))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        trained = readout_of(model, readout).scores(batch_of(family))
    assert (trained - start).abs().max() > 1e-6
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(family, AUTO[readout]), tmp_path).eval()
    with torch.no_grad():  # weights that lie elsewhere in memory may be multiplied in another order
        assert torch.allclose(readout_of(loaded, readout).scores(batch_of(family)), trained, atol=1e-6)
    saved, own = get_peft_model_state_dict(loaded), get_peft_model_state_dict(model)
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    assert sum(tensor.numel() for tensor in saved.values()) == counted


NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0},
    "llama": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", list(NO_DROPOUT))
@pytest.mark.parametrize("method", [name for name in ALL if is_late(name)])
def test_late_methods_train_from_trunk_states(family, method):
    if "bitfit" in method and family == "llama":
        pytest.skip("no biases")
    plain, kept = (make(family, "head", method, **NO_DROPOUT[family]) for _ in range(2))
    batch = batch_of(family)
    states = kept.base_model.layer.run_trunk(2, batch.backbone_inputs())
    train(plain, readout_of(plain, "head"), batch)
    train(kept, readout_of(kept, "head"), replace(batch, trunk_states=states))
    other = dict(plain.named_parameters())
    for name, parameter in kept.named_parameters():
        assert torch.allclose(parameter, other[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("method", [name for name in ADAPTERS if not is_late(name)])
def test_others_refuse_trunk_states(method):
    model = make("bert", "head", method)
    batch = replace(batch_of("bert"), trunk_states=torch.zeros(3, 11, WIDTH))
    if METHODS[method].kind == "tuner" and "prompt" not in method and "p-tuning" not in method:
        pytest.skip("refused where states are kept: see test_kept")
    with pytest.raises(ValueError, match="trunk_states"):
        readout_of(model, "head").scores(batch)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["lora", "prompt-tuning", "p-tuning-v2"])
def test_peft_s_own_output(family, method):
    """With the same weights, PEFT around the bare backbone gives the same hidden states."""
    ours = make(family, "head", method)
    tuner = dict(ours.peft_config["default"].tuner)
    config = get_peft_config({**tuner, "task_type": "FEATURE_EXTRACTION"})
    theirs = get_peft_model(tiny_model(family), config).eval()
    torch.manual_seed(3)
    for parameter in (p for p in ours.parameters() if p.requires_grad):
        torch.nn.init.normal_(parameter, std=0.2)
    beneath = ours.base_model.layer.late_prompt_beneath["default"]
    own = {name: p for name, p in theirs.named_parameters() if "lora_" in name or "prompt_encoder" in name}
    values = {name.replace(".default", ""): p for name, p in beneath.named_parameters()}
    with torch.no_grad():
        for name, parameter in own.items():
            key = next(k for k in values if name.replace(".default", "").endswith(k))
            parameter.copy_(values[key])
        given = tiny_batch(family, "right")
        expected = theirs(**given).last_hidden_state[:, -given["input_ids"].shape[1] :]
        found = ours.eval().base_model.layer(**given).last_hidden_state
    seen = given["attention_mask"].bool()
    assert torch.allclose(found[seen], expected[seen], atol=1e-6)


@pytest.mark.parametrize("method", ["adapter", "late-adapter", "adapterdrop", "bitfit", "late-lora", "lora", "full"])
def test_nothing_changes_at_the_start(method):
    model, given = make("bert", "head", method).eval(), tiny_batch("bert", "right")
    with torch.no_grad():
        found = model.base_model.layer(**given).last_hidden_state
        expected = tiny_model("bert")(**given).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-6)


def test_bitfit_trains_biases_and_the_head_only():
    trained = [name for name, p in make("bert", "head", "bitfit").named_parameters() if p.requires_grad]
    assert all("bitfit_delta" in name or "late_prompt_heads" in name for name in trained)


@pytest.mark.parametrize("method", ["late-lora", "npg+late-lora", "late-bitfit", "late-p-tuning-v2", "s-idpg"])
def test_disable_and_unload(method):
    given = tiny_batch("bert", "right")
    model = make("bert", "head", method)
    train(model, readout_of(model, "head"), batch_of("bert"))
    with torch.no_grad():
        expected = tiny_model("bert")(**given).last_hidden_state
        with model.disable_adapter():
            assert torch.allclose(model(**given).last_hidden_state, expected, atol=1e-6)
        assert not torch.allclose(model(**given).last_hidden_state, expected, atol=1e-3)
        bare = model.unload()
        assert torch.allclose(bare(**given).last_hidden_state, expected, atol=1e-6)
    assert not any("lora" in name or "bitfit" in name or "late" in name for name, _ in bare.named_parameters())


def test_full_tuning_cannot_be_switched_off():
    model = make("bert", "head", "late-full")
    with pytest.raises(ValueError, match="own weights"), model.disable_adapter():
        pass
    with pytest.raises(ValueError, match="model of its own"):
        model.add_adapter("second", adapter_config(settings_of("late-lora"), {"head_labels": 3}))


def test_several_adapters_with_tuners():
    given = tiny_batch("bert", "right")
    model = make("bert", "head", "npg+late-lora")
    train(model, readout_of(model, "head"), batch_of("bert"))
    with torch.no_grad():
        one = model(**given).last_hidden_state
    model.add_adapter("second", adapter_config(settings_of("late-lora"), {"head_labels": 3}))
    model.add_adapter("third", adapter_config(settings_of("mppg"), {"head_labels": 3}))
    expected = tiny_model("bert")(**given).last_hidden_state
    with torch.no_grad():
        model.set_adapter("second")
        assert torch.allclose(model(**given).last_hidden_state, expected, atol=1e-6)
        model.set_adapter("third")
        assert not torch.allclose(model(**given).last_hidden_state, expected, atol=1e-4)
        model.set_adapter("default")
        assert torch.equal(model(**given).last_hidden_state, one)
        with pytest.raises(ValueError, match="adapter_names"):
            model(**given, adapter_names=["third"] * 3)
        model.delete_adapter("default")
        model.set_adapter("second")
        assert torch.allclose(model(**given).last_hidden_state, expected, atol=1e-6)


def test_half_precision_keeps_the_tuner_in_one_piece(tmp_path):
    base = tiny_model("bert").to(torch.bfloat16)
    model = get_peft_model(base, adapter_config(settings_of("npg+late-bitfit"), {"head_labels": 3}))
    train(model, readout_of(model, "head"), batch_of("bert"))
    inside = [p for n, p in model.base_model.layer.base_layer.named_parameters() if "bitfit_delta" in n]
    assert inside
    assert all(p.dtype == torch.float32 and p.abs().max() > 0 for p in inside)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert").to(torch.bfloat16), tmp_path).eval()
    with torch.no_grad():
        batch = batch_of("bert")
        scores = readout_of(loaded, "head").scores(batch)
        assert torch.allclose(scores, readout_of(model, "head").scores(batch), atol=1e-6)


def test_any_method_of_peft_can_be_late():
    tuner = {"peft_type": "IA3", "target_modules": ["key"], "feedforward_modules": []}
    config = LatePromptConfig(prompt_layer=2, generator="npg", tuner=tuner)
    model = get_peft_model(tiny_model("bert"), config)
    names = [name for name, p in model.named_parameters() if p.requires_grad and "ia3" in name]
    assert len(names) == LAYERS - 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nlg", {}, "did you mean 'npg'"),
        ("late-npg", {}, "method 'late-npg' is unknown"),
        ("npg+mppg", {}, "one late prompt and one tuner"),
        ("npg+late-p-tuning-v2", {}, "'p-tuning-v2' takes another way"),
        ("s-idpg+lora", {}, "'s-idpg' takes another way"),
        ("lora", {"rank": 4}, "no option 'rank'; choose from lora_alpha"),
        ("head", {"r": 4}, "it has none"),
    ],
)
def test_wrong_methods(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_method(name, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": {"peft_type": "LORRA"}}, "peft_type 'LORRA'"),
        ({"tuner": {"peft_type": "LORA", "rank": 3}}, "rank"),
        ({"tuner": {"peft_type": "LORA"}, "tuner_layers": "head"}, "tuner_layers 'head'"),
        ({"tuner": {"peft_type": "PREFIX_TUNING"}, "generator": "npg"}, "cannot be put together"),
    ],
)
def test_wrong_tuners(options, message):
    with pytest.raises(ValueError, match=message):
        LatePromptConfig(**{"generator": "none", **options})


def test_wrong_tuners_on_a_model():
    with pytest.raises(ValueError, match="finds none of"):
        get_peft_model(
            tiny_model("bert"),
            LatePromptConfig(prompt_layer=2, tuner={"peft_type": "LORA", "target_modules": ["c_attn"]}),
        )
    with pytest.raises(ValueError, match="share their weights"):
        get_peft_model(tiny_model("albert"), LatePromptConfig(prompt_layer=1, tuner={"peft_type": "BITFIT"}))


def test_options_and_titles():
    assert parse_options(["r=4", "target-modules=[query, value]", "lora_dropout=0.1"]) == {
        "r": 4,
        "target_modules": ["query", "value"],
        "lora_dropout": 0.1,
    }
    with pytest.raises(ValueError, match="'r' is no option"):
        parse_options(["r"])
    assert title_of("npg+late-lora") == "LPT npg + late LoRA"


def test_every_generator_is_a_method():
    assert set(GENERATORS) <= set(METHODS)


def test_a_bare_backbone_is_counted():
    assert parameter_count(settings_of("lora"), core_of(tiny_model("bert")), 2) == LAYERS * 4 * 8 * WIDTH


READ_ONLY_METHODS = tuple(name for name in METHODS if METHODS[name].read_only)


@pytest.mark.parametrize("readout", ["head", "masked_lm"])
@pytest.mark.parametrize("method", [*READ_ONLY_METHODS, *READ_PAIRS])
def test_read_only_methods_are_counted(method, readout):
    family = "bert" if readout == "head" else "roberta"
    labels = 3 if readout == "head" else None
    model = make(family, readout, method)
    counted = parameter_count(settings_of(method), tiny_model(family, AUTO[readout]), 2, labels)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_read_only_names():
    assert {read_only_name(name) for name in GENERATORS} == set(READ_ONLY_METHODS)
    assert title_of("read-npg+late-lora") == title_of("read-npg+lora") == "read-only npg + LoRA"
    synonyms = ("npg+late-lora", "lora+npg", "read-npg+late-lora", "late-lora+read-npg", "read-npg+lora")
    assert {read_only_name(name) for name in synonyms} == {"read-npg+lora"}


NO_READ_ONLY_FORM = ("lora", "late-lora", "head", "full", "s-idpg", "prompt-tuning", "tfidf", "embedding-lr")


@pytest.mark.parametrize("name", NO_READ_ONLY_FORM)
def test_methods_without_a_read_only_form(name):
    with pytest.raises(ValueError, match=f"method '{name}' has no read-only form; choose one of npg"):
        read_only_name(name)


def test_full_tuning_is_no_partner_of_a_read_only_prompt():
    with pytest.raises(ValueError, match=r"'read-npg\+full' cannot be: the text's states would change"):
        read_only_name("npg+late-full")
