"""Read-only prompts while training and while generating: dropout, checkpointing, KV caches, beams, rows of several."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from peft_models import CAUSAL, HEADLESS, MASKED, first_output, late_config, plain_batch, shake, trainable
from tiny_models import CONFIGS, DECODERS, tiny_batch, tiny_model

from lateprompt.utils.errors import LatePromptError

FAMILIES = tuple(CONFIGS)
LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "init_lora_weights": False, "lora_dropout": 0.1}
WINDOWED = [name for name in DECODERS if CONFIGS[name].get("sliding_window") or name == "gpt_neo"]
GENERATION = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1, "max_new_tokens": 7}


def lm(name):
    return CAUSAL if name in DECODERS else MASKED


def read_only(name, auto, overrides=None, **changes):
    base = tiny_model(name, auto, **(overrides or {}))
    return shake(get_peft_model(base, late_config(auto, read_only=True, **changes))).eval()


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_of_training_is_on_the_prompts_path_alone(name):
    model, batch = read_only(name, HEADLESS, tuner=LORA, prompt_dropout=0.2), plain_batch(name)
    batch |= {"use_cache": False} if name in DECODERS else {}  # as in training
    with model.disable_adapter():
        frozen = first_output(model, batch)
    still = first_output(model, batch)
    model.train()
    outputs = [model(**batch).last_hidden_state for _ in range(2)]
    places = torch.arange(1, 12) * batch["attention_mask"]
    anchor = places.argmax(1) if name in DECODERS else torch.zeros(3, dtype=torch.long)
    text = torch.arange(11) != anchor[:, None]
    for output in outputs:
        assert torch.equal(output[text], frozen[text])
        assert output.isfinite().all()
    assert (outputs[0][~text] - outputs[1][~text]).abs().max() > 1e-4  # it drops out
    outputs[0].square().mean().backward()
    for key, parameter in trainable(model).items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert torch.equal(first_output(model.eval(), batch), still)
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), frozen)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    auto, batch = lm(name), plain_batch(name)
    config = tiny_model(name, auto).config.to_dict()
    still = {key: 0.0 for key, value in config.items() if "drop" in key and isinstance(value, float)}
    if not tiny_model(name, auto).supports_gradient_checkpointing:
        pytest.skip("this architecture cannot")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    results = []
    for checkpointing in (False, True):
        model = read_only(name, auto, still, tuner={**LORA, "lora_dropout": 0.0})
        if checkpointing:
            base = model.get_base_model()
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.train()
        extra = {} if name in DECODERS else {"anchor": torch.full((3,), 3)}
        loss = model(**batch, labels=labels, **extra).loss
        loss.backward()
        results.append((loss.detach(), {key: p.grad for key, p in trainable(model).items()}))
    assert results[0][0].isfinite()
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-6, rtol=1e-6)
    assert max(float(grad.abs().max()) for grad in results[0][1].values()) > 1e-5
    for key, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][key], grad, atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_source_of_an_encoder_is_what_the_generator_reads(name):
    """The prompt itself sees the whole text, and no position of it is written."""
    model, batch = read_only(name, HEADLESS, generator="mppg"), plain_batch(name)
    with model.disable_adapter():
        frozen = first_output(model, batch)
    source = batch["attention_mask"].clone()
    source[:, 3:] = 0
    output = first_output(model, batch, source_mask=source)
    assert torch.equal(output[:, 1:], frozen[:, 1:])
    assert (output[:, 0] - first_output(model, batch)[:, 0]).abs().min(0).values.max() > 1e-5


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_fresh_vector_writes_what_the_frozen_model_writes(name, cache, beams):
    """As far as a sliding window shows the anchor: the prompt in its place stays in sight."""
    settings = {**GENERATION, "use_cache": cache, "num_beams": beams}
    if name in WINDOWED:
        settings["max_new_tokens"] = 4
    base, batch = tiny_model(name, CAUSAL), tiny_batch(name, "left")
    expected = base.generate(**batch, **settings)
    model = get_peft_model(base, late_config(CAUSAL, read_only=True, num_prompt_tokens=1)).eval()
    assert torch.equal(model.generate(**batch, **settings), expected)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("changes", [{}, {"tuner": LORA}, {"generator": "mppg", "num_prompt_tokens": 1}], ids=str)
@pytest.mark.parametrize("beams", [1, 3])
def test_with_and_without_a_cache(name, changes, beams):
    model, batch = read_only(name, CAUSAL, **changes), tiny_batch(name, "left")
    settings = {**GENERATION, "num_beams": beams}
    cached = model.generate(**batch, **settings)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))
    with model.disable_adapter():
        frozen = model.generate(**batch, **settings)
    assert torch.equal(frozen, tiny_model(name, CAUSAL).generate(**batch, **settings))
    assert not torch.equal(cached, frozen)


@pytest.mark.parametrize("name", DECODERS)
def test_a_cached_step_gives_the_logits_of_a_whole_pass(name):
    """Twice as many of them as a window is wide: what is written looks back so far, and at the prompt."""
    model, batch = read_only(name, CAUSAL), tiny_batch(name, "left", length=16)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = {} if name == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    cut = {key: value[:, :8] for key, value in positions.items()}
    source = mask.clone()
    source[:, 8:] = 0
    with torch.no_grad():
        whole = model(**batch, **positions, source_mask=source, use_cache=False).logits
        first = model(input_ids=ids[:, :8], attention_mask=mask[:, :8], **cut, use_cache=True)
        logits, cache = [first.logits], first.past_key_values
        for i in range(8, 16):
            step = {key: value[:, i : i + 1] for key, value in positions.items()}
            output = model(input_ids=ids[:, i : i + 1], attention_mask=mask[:, : i + 1], **step, past_key_values=cache)
            logits.append(output.logits)
            cache = output.past_key_values
    real = mask.bool()
    torch.testing.assert_close(torch.cat(logits, 1)[real], whole[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_takes_what_is_written_too(name):
    model, batch = read_only(name, CAUSAL), tiny_batch(name, "left", length=16)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = {} if name == "opt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    source = mask.clone()
    source[:, 8:] = 0
    with torch.no_grad():
        whole = model(**batch, **positions, source_mask=source, use_cache=False).logits
        first = {key: value[:, :13] for key, value in {**batch, **positions, "source_mask": source}.items()}
        cache = model(**first, use_cache=True).past_key_values
        rest = {key: value[:, 13:] for key, value in positions.items()}
        got = model(input_ids=ids[:, 13:], attention_mask=mask, **rest, past_key_values=cache).logits
    torch.testing.assert_close(got, whole[:, 13:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_looking_words_up_in_the_source(name):
    """Candidates stand behind the source from the first call on, and leave the cache if they are wrong."""
    model, ids = read_only(name, CAUSAL), torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]])
    settings = {**GENERATION, "max_new_tokens": 12}
    expected = model.generate(input_ids=ids, **settings)
    assert torch.equal(model.generate(input_ids=ids, **settings, prompt_lookup_num_tokens=3), expected)


ADAPTERS = {
    "deep": {"prompt_layer": 3, "num_prompt_tokens": 7, "generator": "appg"},
    "short": {"num_prompt_tokens": 1, "generator": "mppg", "bottleneck_dim": 4},
    "ordinary": {"read_only": False},
}


def many(name):
    model = read_only(name, CAUSAL)
    for adapter, changes in ADAPTERS.items():
        model.add_adapter(adapter, late_config(CAUSAL, **{"read_only": True, **changes}))
        shake(model, len(adapter), f"generators.{adapter}.")
    return model.eval()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "changes", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}], ids=str
)
def test_rows_of_several_adapters(name, changes):
    model, batch = many(name), tiny_batch(name, "left")
    settings = {**GENERATION, "max_new_tokens": 5, **changes}
    copies = changes.get("num_return_sequences", 1)
    alone = {}
    for adapter in ("default", *ADAPTERS):
        model.set_adapter(adapter)
        alone[adapter] = model.generate(**batch, **settings).view(3, copies, -1)
    alone["__base__"] = tiny_model(name, CAUSAL).generate(**batch, **settings).view(3, copies, -1)
    for names in (
        ["default", "deep", "short"],
        ["default", "short", "default"],
        ["__base__", "ordinary", "default"],
        ["short", "ordinary", "short"],
        ["deep", "__base__", "deep"],
    ):
        mixed = model.generate(**batch, **settings, adapter_names=names).view(3, copies, -1)
        for row, adapter in enumerate(names):
            assert torch.equal(mixed[row], alone[adapter][row]), (names, adapter)
    with pytest.raises(LatePromptError, match="leave out streamer"):
        model.generate(**batch, **settings, adapter_names=["default", "deep", "short"], return_dict_in_generate=True)


def test_a_cache_goes_on_with_the_prompts_that_it_began_with():
    model, batch = many("llama"), tiny_batch("llama", "none")
    token = batch["input_ids"][:, :1]
    with torch.no_grad():
        with model.disable_adapter():
            bare = model(**batch, use_cache=True).past_key_values
        with pytest.raises(LatePromptError, match="no read-only prompt; begin with the whole text"):
            model(input_ids=token, past_key_values=bare)
        cache = model(**batch, use_cache=True).past_key_values
        with pytest.raises(LatePromptError, match="one KV cache"):
            model(input_ids=token, past_key_values=cache, adapter_names=["default", "deep", "short"])
        with pytest.raises(LatePromptError, match="trunk_states skip the trunk"):
            model(**batch, trunk_states=torch.zeros(3, 11, 32), use_cache=True)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_given_source_and_sampling(name):
    model, batch = read_only(name, CAUSAL, generator="mppg"), tiny_batch(name, "left")
    source = batch["attention_mask"].clone()
    source[:, :8] = 0  # before the anchor: the prompt sees it, its generator does not
    own = model.generate(**batch, **GENERATION, source_mask=source)
    assert torch.equal(own, model.generate(**batch, **GENERATION, source_mask=source, use_cache=False))
    torch.manual_seed(1)
    settings = {**GENERATION, "do_sample": True, "num_return_sequences": 2, "top_k": 5}
    sampled = model.generate(**batch, **settings)
    torch.manual_seed(1)
    assert torch.equal(sampled, model.generate(**batch, **settings, use_cache=False))
