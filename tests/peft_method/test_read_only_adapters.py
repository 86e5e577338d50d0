"""Read-only prompts as PEFT adapters: every Hugging Face head, files, several adapters, rows of several, Trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from peft_models import (
    ANSWERS,
    CAUSAL,
    ENCODERS,
    HEADLESS,
    MASKED,
    SEQUENCE,
    TOKENS,
    first_output,
    late_config,
    plain_batch,
    shake,
    trainable,
)
from test_peft import trainer_of
from tiny_models import DECODERS, LAYERS, tiny_batch, tiny_model

from lateprompt import LatePromptConfig
from lateprompt.utils.errors import LatePromptError

CHOICE = "AutoModelForMultipleChoice"
LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "init_lora_weights": False}
HEADS = [
    *((name, auto) for name in ENCODERS for auto in (MASKED, SEQUENCE, CHOICE, HEADLESS)),
    *((name, auto) for name in ("xlm-roberta", "camembert") for auto in (MASKED, SEQUENCE, CHOICE)),
    *((name, auto) for name in DECODERS for auto in (CAUSAL, SEQUENCE, HEADLESS)),
]


def exists(name, auto):
    try:
        tiny_model(name, auto)
    except ValueError:
        return False
    return True


def config_of(auto, **changes):
    if auto == CHOICE:
        return LatePromptConfig(
            read_only=True,
            **{"prompt_layer": 2, "num_prompt_tokens": 3, "bottleneck_dim": 8, "prompt_dropout": 0.0, **changes},
        )
    return late_config(auto, read_only=True, **changes)


def read_only(name, auto, *, base=None, **changes):
    return get_peft_model(tiny_model(name, auto) if base is None else base, config_of(auto, **changes)).eval()


def rows_of(name, auto):
    """A batch for a head, with labels where it takes some."""
    batch = tiny_batch(name, "right")
    if auto == CHOICE:
        batch = {key: torch.stack([value, value.flip(0)], 1) for key, value in batch.items()}
        return {**batch, "labels": torch.tensor([0, 1, 1])}
    if auto == SEQUENCE:
        return {**batch, "labels": torch.tensor([0, 1, 1])}
    if auto == CAUSAL:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels[:, :3] = -100
        return {**batch, "labels": labels}
    if auto == MASKED:
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, 3] = 7
        return {**batch, "labels": labels}
    return batch


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "auto"), [pair for pair in HEADS if exists(*pair)])
def test_every_head_works_as_it_is(name, auto):
    """A fresh vector changes nothing, a trained one the answer, and nothing but its generator gets a gradient."""
    wide = {"sliding_window": 32} if auto == CAUSAL and hasattr(tiny_model(name).config, "sliding_window") else {}
    wide = {"window_size": 32} if name == "gpt_neo" else wide  # no window hides the prompt, as it would the anchor
    base, batch = tiny_model(name, auto, **wide), rows_of(name, auto)
    anchor = {"anchor": torch.full((3,), 3)} if auto == MASKED else {}
    with torch.no_grad():
        frozen = base(**batch)
        fresh = read_only(name, auto, base=base, num_prompt_tokens=1)
        output = fresh(**batch, **anchor)
    for key in ("logits", "loss", "last_hidden_state", "pooler_output"):
        if frozen.get(key) is not None:
            torch.testing.assert_close(output[key], frozen[key], atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    model = shake(read_only(name, auto, base=tiny_model(name, auto, **wide)))
    output = model(**batch, **anchor)
    first = next(value for key, value in output.items() if key in ("logits", "last_hidden_state"))
    want = frozen.get("logits", frozen.get("last_hidden_state"))
    assert first.isfinite().all()
    if auto == CAUSAL:
        real = (torch.arange(11) < 2).expand(3, -1)
    elif auto == MASKED:
        real = torch.arange(11) != anchor["anchor"][:, None]
    elif auto == HEADLESS:
        places = torch.arange(1, 12) * batch["attention_mask"]
        real = torch.arange(11) != (places.argmax(1) if name in DECODERS else places[:, 0] - 1)[:, None]
    else:
        real = None
        assert (first - want).abs().max() > 1e-4
    if real is not None:
        assert torch.equal(first[real], want[real])  # the text's own output, to the bit
        assert (first - want)[~real].abs().max() > 1e-4
    loss = output.get("loss")
    (first.square().mean() if loss is None else loss).backward()
    for key, parameter in model.named_parameters():
        if "late_prompt_generators" in key:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0, key
        elif "modules_to_save" not in key:
            assert parameter.grad is None, key


EVERY_POSITION = [
    *((name, auto) for name in ENCODERS for auto in (TOKENS, ANSWERS)),
    *((name, auto) for name in DECODERS for auto in (TOKENS, ANSWERS)),
]


@pytest.mark.parametrize(("name", "auto"), [pair for pair in EVERY_POSITION if exists(*pair)])
def test_heads_that_read_every_position_are_refused(name, auto):
    base = tiny_model(name, auto)
    before = [key for key, _ in base.named_modules()]
    wanted = [parameter.requires_grad for parameter in base.parameters()]
    config = late_config(auto, read_only=True)
    with pytest.raises(LatePromptError, match=rf"head of {type(base).__name__} reads every position.*read_only=False"):
        get_peft_model(base, config)
    assert [key for key, _ in base.named_modules()] == before
    assert [parameter.requires_grad for parameter in base.parameters()] == wanted
    assert not hasattr(base, "peft_config")
    model = get_peft_model(base, late_config(auto))
    modules = [key for key, _ in model.named_modules()]
    with pytest.raises(LatePromptError, match="reads every position"):
        model.add_adapter("other", late_config(auto, read_only=True))
    assert [key for key, _ in model.named_modules()] == modules
    assert list(model.peft_config) == ["default"]
    assert first_output(model.eval(), tiny_batch(name)).isfinite().all()


def test_a_refused_head_within_other_wrappers():
    below = get_peft_model(tiny_model("bert", TOKENS), LoraConfig(target_modules=["query"]))
    with pytest.raises(LatePromptError, match="BertForTokenClassification"):
        get_peft_model(below, late_config(TOKENS, read_only=True))
    base = tiny_model("bert", TOKENS)
    with pytest.raises(LatePromptError, match="BertForTokenClassification"):
        base.add_adapter(late_config(TOKENS, read_only=True))
    own = type("Tagger", (type(base),), {})
    base.__class__ = own
    with pytest.raises(LatePromptError, match="head of Tagger"):
        get_peft_model(base, late_config(TOKENS, read_only=True))


@pytest.mark.parametrize(("name", "auto"), [("bert", MASKED), ("llama", CAUSAL)])
def test_transformers_own_add_adapter(name, auto):
    base, batch = tiny_model(name, auto), plain_batch(name)
    expected = first_output(base, batch)
    base.add_adapter(late_config(auto, read_only=True, num_prompt_tokens=1))
    torch.testing.assert_close(first_output(base.eval(), batch), expected, atol=1e-5, rtol=1e-5)


# -- files and life cycle ----------------------------------------------------------------------------------------------

SOME = [("roberta", SEQUENCE), ("bert", MASKED), ("gpt2", CAUSAL), ("llama", SEQUENCE), ("albert", HEADLESS)]


@pytest.mark.parametrize(("name", "auto"), SOME)
@pytest.mark.parametrize("changes", [{}, {"tuner": LORA}, {"head_labels": 3, "head_pooling": "mean"}], ids=str)
def test_saved_and_loaded(name, auto, changes, tmp_path):
    base, batch = tiny_model(name, auto), plain_batch(name)
    base.save_pretrained(tmp_path / "base")
    frozen = first_output(base, batch)
    model = shake(read_only(name, auto, base=base, **changes))
    output = first_output(model, batch)
    assert not torch.equal(output, frozen)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path / "adapter").eval()
    config = loaded.peft_config["default"]
    assert (config.read_only, config.start) == (True, "mean" if "head_labels" in changes else "anchor")
    assert torch.equal(first_output(loaded, batch), output)
    for (key, one), (_, other) in zip(
        model.base_model.layer.state_dict().items(), loaded.base_model.layer.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key
    twin = copy.deepcopy(model)
    assert torch.equal(first_output(twin, batch), output)
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), frozen)
    assert torch.equal(first_output(model, batch), output)
    assert torch.equal(first_output(model.unload(), batch), first_output(tiny_model(name, auto), batch)) or (
        auto == SEQUENCE  # the head's copy is trained with the adapter
    )


def test_auto_classes(tmp_path):
    for name, auto, kind in (
        ("roberta", SEQUENCE, AutoPeftModelForSequenceClassification),
        ("llama", CAUSAL, AutoPeftModelForCausalLM),
    ):
        base = tiny_model(name, auto)
        base.save_pretrained(tmp_path / name)
        base = getattr(__import__("transformers"), auto).from_pretrained(tmp_path / name)
        model = shake(read_only(name, auto, base=base, tuner=LORA))
        model.save_pretrained(tmp_path / f"{name}-adapter")
        loaded = kind.from_pretrained(tmp_path / f"{name}-adapter").eval()
        assert torch.equal(first_output(loaded, plain_batch(name)), first_output(model, plain_batch(name)))


ADAPTERS = {
    "default": {},
    "deep": {"prompt_layer": 3, "num_prompt_tokens": 7, "generator": "appg"},
    "fixed one": {"prompt_layer": 1, "num_prompt_tokens": 2, "generator": "fixed"},
    "short": {"num_prompt_tokens": 1, "generator": "mppg", "bottleneck_dim": 4},
    "ordinary": {"read_only": False},
    "ordinary deep": {"read_only": False, "prompt_layer": 3, "num_prompt_tokens": 5},
}


def many(name, auto):
    model = shake(get_peft_model(tiny_model(name, auto), late_config(auto, read_only=True)))
    for adapter, changes in ADAPTERS.items():
        if adapter != "default":
            model.add_adapter(adapter, late_config(auto, **{"read_only": True, **changes}))
            shake(model, len(adapter), f"generators.{adapter}.")
            shake(model, len(adapter), f"modules_to_save.{adapter}.")
    return model.eval()


@pytest.mark.parametrize(("name", "auto"), [("roberta", MASKED), ("deberta-v2", SEQUENCE), ("gemma2", CAUSAL)])
def test_several_adapters(name, auto, tmp_path):
    model, batch = many(name, auto), plain_batch(name)
    frozen = first_output(tiny_model(name, auto), batch)
    outputs = {}
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        assert {n.split(f".{adapter}.")[1].partition(".")[0] for n in trainable(model)} != set()
        outputs[adapter] = first_output(model, batch)
    values = list(outputs.values())
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(values) for b in values[:i])
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), frozen) or auto == SEQUENCE
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(name, auto), tmp_path).eval()
    for adapter in ADAPTERS:
        if adapter != "default":
            again.load_adapter(tmp_path / adapter, f"my {adapter}")
            again.set_adapter(f"my {adapter}")
        assert torch.equal(first_output(again, batch), outputs[adapter]), adapter
    model.set_adapter("deep")
    model.delete_adapter("default")
    assert torch.equal(first_output(model, batch), outputs["deep"])
    assert not any("generators.default" in key for key in model.state_dict())
    model.delete_adapter("deep")
    (remaining,) = model.base_model.active_adapters
    assert torch.equal(first_output(model, batch), outputs[remaining])
    base = model.unload()
    assert not any("late_prompt" in key for key, _ in base.named_modules())


MIXES = (
    ["default", "deep", "short"],
    ["deep", "fixed one", "deep"],
    ["__base__", "fixed one", "deep"],
    ["short", "ordinary", "__base__"],
    ["ordinary deep", "ordinary", "fixed one"],
    ["default", "ordinary", "default"],
    ["__base__"] * 3,
    ["short"] * 3,
)


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        *((name, MASKED) for name in ("roberta", "bert", "albert", "mpnet", "deberta-v2", "modernbert", "distilbert")),
        ("bert", SEQUENCE),
        ("bert", HEADLESS),
        *((name, CAUSAL) for name in DECODERS),
        ("mistral", SEQUENCE),
    ],
)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_one_adapter_a_row(name, auto, padding):
    if padding == "left" and auto == SEQUENCE and name not in DECODERS:
        pytest.skip("this head reads position 0")
    model, batch = many(name, auto), tiny_batch(name, padding)
    alone = {}
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        alone[adapter] = first_output(model, batch)
    with model.disable_adapter():
        alone["__base__"] = first_output(model, batch)
    model.set_adapter("default")
    for names in MIXES:
        mixed = first_output(model, batch, adapter_names=names)
        for row, adapter in enumerate(names):
            real = batch["attention_mask"][row].bool() if mixed.ndim == 3 else slice(None)
            torch.testing.assert_close(mixed[row][real], alone[adapter][row][real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_one_adapter_a_row_with_labels(name):
    """What follows each row's source sees that row's prompt, whatever layer it enters after."""
    model, batch = many(name, CAUSAL), rows_of(name, CAUSAL)
    alone = {}
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        with torch.no_grad():
            alone[adapter] = model(**batch).logits
    with torch.no_grad(), model.disable_adapter():
        alone["__base__"] = model(**batch).logits
    for names in MIXES:
        with torch.no_grad():
            mixed = model(**batch, adapter_names=names)
        assert mixed.loss.isfinite()
        assert mixed.get("past_key_values") is None or len(set(names)) == 1  # it would lack prompts
        for row, adapter in enumerate(names):
            real = batch["attention_mask"][row].bool()
            torch.testing.assert_close(mixed.logits[row][real], alone[adapter][row][real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "auto"), [("bert", MASKED), ("llama", CAUSAL)])
def test_other_ways_to_call(name, auto):
    base, batch = tiny_model(name, auto), plain_batch(name)
    model = shake(read_only(name, auto, base=base))
    want = first_output(model, batch)
    assert torch.equal(first_output(model, batch, return_dict=False), want)
    embeds = base.get_input_embeddings()(batch["input_ids"])
    got = first_output(model, {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]})
    assert torch.equal(got, want)
    whole = {"input_ids": batch["input_ids"][:1]}
    assert torch.equal(first_output(model, whole), first_output(model, whole, attention_mask=torch.ones(1, 11)))
    output = model(**batch, output_hidden_states=True, output_attentions=False)
    assert len(output.hidden_states) == LAYERS + 1
    for anchor, message in (
        (torch.tensor([1, 2]), "2 positions for a batch of 3"),
        (torch.tensor([0, 11, 2]), r"\[0, 11, 2\] is not within the text's 11 positions"),
        (torch.tensor([-1, 1, 2]), "count from 0"),
    ):
        with pytest.raises(LatePromptError, match=message):
            model(**batch, anchor=anchor)


def test_labels_of_a_masked_lm_need_an_anchor_in_training():
    model, batch = read_only("bert", MASKED), rows_of("bert", MASKED)
    assert model(**batch).loss.isfinite()
    model.train()
    with pytest.raises(LatePromptError, match="give anchor="):
        model(**batch)
    model(**batch, anchor=torch.full((3,), 3)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainable(model).values())
    with torch.no_grad(), model.disable_adapter():
        model(**batch)
    sequence = read_only("bert", SEQUENCE).train()
    sequence(**tiny_batch("bert", batch=11), labels=torch.zeros(11, dtype=torch.long)).loss.backward()


@pytest.mark.filterwarnings("ignore:labels start at the first token")
@pytest.mark.parametrize("generator", ["fixed", "npg"])
def test_labels_from_the_first_token_on(generator):
    model, batch = read_only("llama", CAUSAL, generator=generator), plain_batch("llama")
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in trainable(model).values())


def test_rows_that_name_their_adapters_at_the_anchor_alone():
    """What a readout of one position asks for: it has no need of the frozen model's own output."""
    for name in ("bert", "llama"):
        model, batch = many(name, HEADLESS), plain_batch(name)
        anchor = torch.tensor([4, 3, 2])
        for names in MIXES:
            whole = first_output(model, batch, adapter_names=names, anchor=anchor)[torch.arange(3), anchor]
            layer = model.base_model.layer
            extra = {"use_cache": False} if name == "llama" else {}
            read = layer(**batch, **extra, adapter_names=names, anchor=anchor, read=anchor)[0]
            torch.testing.assert_close(read[:, 0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", "llama", "gemma2"])
def test_states_of_several_layers_serve_all_prompt_layers(name):
    model, batch = many(name, HEADLESS), plain_batch(name)
    with torch.no_grad(), model.disable_adapter():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    states = {layer: hidden[layer] for layer in range(1, LAYERS)}
    real = batch["attention_mask"].bool()
    for adapter in ADAPTERS:
        model.set_adapter(adapter)
        got = first_output(model, batch, trunk_states=states)
        torch.testing.assert_close(got[real], first_output(model, batch)[real], atol=2e-5, rtol=1e-4)
    model.set_adapter("default")
    for names in MIXES[:-2]:
        got = first_output(model, batch, adapter_names=names, trunk_states=states)
        want = first_output(model, batch, adapter_names=names)
        torch.testing.assert_close(got[real], want[real], atol=2e-5, rtol=1e-4)
    with pytest.raises(LatePromptError, match=r"one prompt layer.*\[2, 3\]"):
        model(**batch, adapter_names=["default", "deep", "short"], trunk_states=states[2])
    model.set_adapter("default")
    with pytest.raises(LatePromptError, match="layers"):
        model(**batch, trunk_states={3: states[3]})


def test_mixed_batches_that_make_no_sense():
    model, batch = many("llama", CAUSAL), plain_batch("llama")
    with pytest.raises(LatePromptError, match="nobody"):
        model(**batch, adapter_names=["nobody", "default", "deep"])
    with pytest.raises(LatePromptError, match="batch of 3"):
        model(**batch, adapter_names=["default"])
    for names in (["default", "deep", "short"], ["default", "__base__", "short"]):
        with pytest.raises(LatePromptError, match="use_cache=False"):
            model(**batch, adapter_names=names, use_cache=True)
    with pytest.raises(LatePromptError, match="read-only"):
        model(**batch, adapter_names=["default", "ordinary", "short"], use_cache=True)
    with pytest.raises(LatePromptError, match="inference"):
        model.train()(**batch, adapter_names=["default"] * 3)


def test_tuners_that_would_change_the_text_are_refused():
    for tuner, changes in (({"peft_type": "FULL"}, {}), (LORA, {"tuner_layers": "all"})):
        with pytest.raises(LatePromptError, match="read_only and tuner"):
            LatePromptConfig(read_only=True, tuner=tuner, **changes)


# -- Trainer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", "llama"])
def test_trainer(name, tmp_path):
    model = get_peft_model(tiny_model(name, SEQUENCE), late_config(SEQUENCE, read_only=True, tuner=LORA))
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trainer = trainer_of(model, tmp_path)
    trainer.train()
    changed = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert changed
    assert all("late_prompt_" in key or "modules_to_save" in key for key in changed)
    assert any("late_prompt_generators" in key for key in changed)
    assert any("lora_" in key for key in changed)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses += [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert torch.tensor(losses).isfinite().all()
    loaded = PeftModel.from_pretrained(tiny_model(name, SEQUENCE), tmp_path / "checkpoint-6").eval()
    assert torch.equal(first_output(loaded, plain_batch(name)), first_output(model.eval(), plain_batch(name)))


def test_trainer_with_gradient_checkpointing(tmp_path):
    trained = []
    for checkpointing in (False, True):
        base = tiny_model("bert", SEQUENCE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = shake(get_peft_model(base, late_config(SEQUENCE, read_only=True, tuner=LORA)))
        trainer = trainer_of(
            model, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, max_steps=2, save_strategy="no"
        )
        trainer.train()
        trained.append({key: parameter.detach().clone() for key, parameter in trainable(model).items()})
    for key, parameter in trained[0].items():
        torch.testing.assert_close(parameter, trained[1][key], atol=1e-5, rtol=1e-4)


# -- other types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "deberta-v2", "mpnet", "gpt2", "llama", "gemma2", "gpt_neo", "opt"])
def test_half_precision_and_autocast(name, dtype):
    auto = CAUSAL if name in DECODERS else MASKED
    batch, anchor = rows_of(name, auto), {} if name in DECODERS else {"anchor": torch.full((3,), 3)}
    model = shake(read_only(name, auto))
    with torch.no_grad():
        expected = float(model(**batch, **anchor).loss)
    with torch.autocast("cpu", dtype):
        mixed = model.train()(**batch, **anchor).loss
    half = shake(read_only(name, auto, base=tiny_model(name, auto).to(dtype))).train()
    loss = half(**batch, **anchor).loss
    for found, own in ((mixed, model), (loss, half)):
        found.backward()
        assert all(parameter.grad.isfinite().all() for parameter in trainable(own).values())
    for found in (model, half):
        with torch.no_grad():
            assert float(found.eval()(**batch, **anchor).loss) == pytest.approx(expected, abs=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["bert", "llama", "mpnet", "opt"])
def test_a_quantised_base(name):
    base = torch.ao.quantization.quantize_dynamic(tiny_model(name), {torch.nn.Linear}, dtype=torch.qint8)
    batch = plain_batch(name)
    frozen = first_output(base, batch)
    model = shake(read_only(name, HEADLESS, base=base))
    output = first_output(model, batch)
    changed = (output - frozen).abs().amax(-1) > 0
    assert changed.sum(1).tolist() == [1, 1, 1]  # at the anchors alone
    assert output.isfinite().all()


# -- what lies below ---------------------------------------------------------------------------------------------------


def test_what_is_trained_below_is_an_error_in_training():
    below = get_peft_model(tiny_model("roberta", MASKED), LoraConfig(target_modules=["query"]))
    shake(below, 5, "lora_")
    with_lora = first_output(below.eval(), plain_batch("roberta"))
    model = get_peft_model(below, late_config(MASKED, read_only=True, num_prompt_tokens=1))
    model.train()
    with pytest.raises(LatePromptError, match=r"'.*lora_A.*' of the backbone is trained.*requires_grad_\(False\)"):
        model(**plain_batch("roberta"))
    with torch.no_grad():
        model(**plain_batch("roberta"))
    model.eval()
    torch.testing.assert_close(first_output(model, plain_batch("roberta")), with_lora, atol=1e-5, rtol=1e-5)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.requires_grad_(False)
    model.train()
    model(**plain_batch("roberta"))[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())


def test_weights_made_trainable_by_hand_are_an_error_in_training():
    model = read_only("gpt2", CAUSAL, tuner=LORA).train()
    model(**plain_batch("gpt2"))  # the tuner of its own is none
    parameter = next(p for n, p in model.named_parameters() if n.endswith("h.3.ln_1.weight"))
    parameter.requires_grad_(True)
    with pytest.raises(LatePromptError, match=r"h\.3\.ln_1\.weight"):
        model(**plain_batch("gpt2"))
