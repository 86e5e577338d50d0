"""`generate` under late prompts: with and without a cache, beams, samples, streams, rows of several adapters."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from peft_models import CAUSAL, first_output, late_config, late_model, many, shake
from tiny_models import DECODERS, tiny_batch, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig, TextStreamer, pipeline

from lateprompt import LatePromptConfig


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2", "opt", "gpt_neo"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate(name, beams):
    model = late_model(name, CAUSAL, generator="mppg")
    batch = tiny_batch(name, "left")
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 1}
    cached = model.generate(**batch, **settings)
    assert cached.shape == (3, 19)
    if beams == 1:  # by hand, over the whole text each time
        ids, mask = batch["input_ids"], batch["attention_mask"]
        source = mask
        for _ in range(8):
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            extra = {} if name == "opt" else {"position_ids": positions}
            logits = first_output(
                model, {"input_ids": ids, "attention_mask": mask, "use_cache": False}, source_mask=source, **extra
            )
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            mask, source = (
                torch.cat([m, f(m[:, :1])], 1) for m, f in ((mask, torch.ones_like), (source, torch.zeros_like))
            )
        assert torch.equal(cached, ids)
    else:
        assert not torch.equal(cached, tiny_model(name, CAUSAL).generate(**batch, **settings))
    with model.disable_adapter():
        assert torch.equal(model.generate(**batch, **settings), tiny_model(name, CAUSAL).generate(**batch, **settings))


GENERATION = {"max_new_tokens": 7, "eos_token_id": None, "pad_token_id": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("generator", ["npg", "mppg", "appg", "atpg", "rpg", "fixed"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_and_without_a_cache(name, generator, beams):
    """The prompt is made from the source, left padded here, and stays: sliding windows of 4 included."""
    model = late_model(name, CAUSAL, generator=generator)
    batch = tiny_batch(name, "left")
    settings = {**GENERATION, "do_sample": False, "num_beams": beams}
    cached = model.generate(**batch, **settings)
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))


def test_pipeline_and_streaming(causal_lm):
    base = AutoModelForCausalLM.from_pretrained(causal_lm)
    model = get_peft_model(base, LatePromptConfig(task_type="CAUSAL_LM", prompt_layer=2, bottleneck_dim=8)).eval()
    tokenizer = AutoTokenizer.from_pretrained(causal_lm)
    settings = {"max_new_tokens": 5, "do_sample": False}
    batch = tokenizer("the film was", return_tensors="pt")
    expected = tokenizer.decode(model.generate(**batch, **settings)[0])
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)("the film was", **settings)
    assert made[0]["generated_text"] == expected
    pieces = []
    streamer = TextStreamer(tokenizer)
    streamer.on_finalized_text = lambda text, stream_end=False: pieces.append(text)
    model.generate(**batch, **settings, streamer=streamer)
    assert "".join(pieces) == expected


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sampling_and_a_given_source(name):
    model = late_model(name, CAUSAL)
    batch = tiny_batch(name, "left")
    found = []
    for cache in (True, False):
        torch.manual_seed(3)
        sampled = {"do_sample": True, "num_return_sequences": 2, "use_cache": cache}
        found.append(model.generate(**batch, **GENERATION, **sampled))
    assert torch.equal(*found)
    source = batch["attention_mask"].clone()
    source[:, -3:] = 0
    settings = {**GENERATION, "do_sample": False, "num_beams": 2}
    given = [model.generate(**batch, **settings, source_mask=source, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*given)
    assert not torch.equal(given[0], model.generate(**batch, **settings))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_with_an_adapter_a_row(name, beams):
    model = many(name, CAUSAL)
    batch = tiny_batch(name, "left")
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "eos_token_id": None, "pad_token_id": 1}
    alone = {}
    for adapter in ("default", "short"):
        model.set_adapter(adapter)
        alone[adapter] = model.generate(**batch, **settings)
    assert not torch.equal(alone["default"], alone["short"])
    names = ["short", "default", "short"]
    mixed = model.generate(**batch, **settings, adapter_names=names)
    for row, adapter in enumerate(names):
        assert torch.equal(mixed[row], alone[adapter][row])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("changes", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_with_prompts_after_different_layers(name, changes):
    model = many(name, CAUSAL)
    batch = tiny_batch(name, "left")
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 1, **changes}
    copies = changes.get("num_return_sequences", 1)
    alone = {}
    for adapter in ("deep", "short"):
        model.set_adapter(adapter)
        alone[adapter] = model.generate(**batch, **settings).view(3, copies, -1)
    alone["__base__"] = tiny_model(name, CAUSAL).generate(**batch, **settings).view(3, copies, -1)
    for names in (["short", "deep", "short"], ["__base__", "deep", "short"]):
        mixed = model.generate(**batch, **settings, adapter_names=names).view(3, copies, -1)
        for row, adapter in enumerate(names):
            assert torch.equal(mixed[row], alone[adapter][row])
    source = batch["attention_mask"].clone()
    source[:, -3:] = 0
    model.set_adapter("deep")
    own = model.generate(**batch, **settings, source_mask=source).view(3, copies, -1)
    mixed = model.generate(**batch, **settings, source_mask=source, adapter_names=["short", "deep", "short"])
    assert torch.equal(mixed.view(3, copies, -1)[1], own[1])
    with pytest.raises(ValueError, match="leave out streamer"):
        model.generate(**batch, **settings, adapter_names=["short", "deep", "short"], return_dict_in_generate=True)


def test_rows_that_end_at_different_lengths_are_padded():
    model = many("llama", CAUSAL)
    batch = tiny_batch("llama", "left")
    names = ["short", "deep", "short"]
    free = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None, adapter_names=names)
    end = int(free[1, -6])  # the row of its own group ends at its first token
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [end], "pad_token_id": 1}
    mixed = model.generate(**batch, **settings, adapter_names=names)
    assert mixed[1, -(mixed.shape[1] - batch["input_ids"].shape[1]) :].tolist()[0] == end
    assert set(mixed[1, batch["input_ids"].shape[1] + 1 :].tolist()) <= {1}


@pytest.mark.parametrize("generator", ["npg", "mppg"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_without_a_task_type(name, generator):
    """PEFT then calls the inner model's own `generate`."""
    typed = late_model(name, CAUSAL, generator=generator)
    config = late_config(CAUSAL, generator=generator)
    config.task_type = None
    model = shake(get_peft_model(tiny_model(name, CAUSAL), config)).eval()
    batch = tiny_batch(name, "left")
    settings = {**GENERATION, "do_sample": False}
    source = batch["attention_mask"].clone()
    source[:, -3:] = 0
    for extra in ({}, {"source_mask": source}):
        expected = typed.generate(**batch, **settings, **extra)
        for cache in (True, False):
            assert torch.equal(model.generate(**batch, **settings, **extra, use_cache=cache), expected)
            assert torch.equal(model.get_base_model().generate(**batch, **settings, **extra, use_cache=cache), expected)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.generate(**batch, **settings, source_mask=source), expected)
    base = model.unload()
    assert torch.equal(base.generate(**batch, **settings), tiny_model(name, CAUSAL).generate(**batch, **settings))
    assert "generate" not in vars(base)


@pytest.mark.parametrize("where", ["arguments", "config", "model"])
@pytest.mark.parametrize("names", [["short", "default", "short"], ["short", "deep", "__base__"]])
def test_beams_and_padding_from_wherever_they_are_set(names, where):
    model = many("llama", CAUSAL)
    batch = tiny_batch("llama", "left")
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2, "eos_token_id": None, "pad_token_id": 3}
    expected = model.generate(**batch, **settings, adapter_names=names)
    assert len(expected) == 3
    settings["eos_token_id"] = int(expected[1, -6])
    expected = model.generate(**batch, **settings, adapter_names=names)
    if where == "arguments":
        return
    if where == "config":
        found = model.generate(**batch, generation_config=GenerationConfig(**settings), adapter_names=names)
    else:
        model.generation_config = GenerationConfig(**settings)
        found = model.generate(**batch, adapter_names=names)
        logits = model(**batch, adapter_names=names).logits  # a plain call has no beams
        assert len(logits) == 3
    assert torch.equal(found, expected)


def test_two_active_adapters_do_not_matter_where_rows_name_theirs():
    model = many("llama", CAUSAL)
    batch = tiny_batch("llama", "left")
    names = ["short", "default", "short"]
    expected = first_output(model, batch, adapter_names=names)
    model.base_model.set_adapter(["default", "short"])
    assert torch.equal(first_output(model, batch, adapter_names=names), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"cache_implementation": "static"}, "'static' has no room"), ({"prefill_chunk_size": 4}, "prefill_chunk_size 4")],
)
def test_ways_to_generate_that_know_no_prompt(settings, message):
    model = late_model("llama", CAUSAL)
    for given in (settings, {"generation_config": GenerationConfig(**settings)}):
        with pytest.raises(ValueError, match=message):
            model.generate(**tiny_batch("llama", "left"), **given)


def test_a_model_whose_own_cache_is_of_fixed_size():
    model = late_model("gemma2", CAUSAL)
    batch = tiny_batch("gemma2", "left")
    settings = {**GENERATION, "do_sample": False}
    expected = model.generate(**batch, **settings)
    model.generation_config.cache_implementation = "hybrid"
    assert torch.equal(model.generate(**batch, **settings), expected)
    assert torch.equal(model.generate(**batch, **settings, past_key_values=DynamicCache()), expected)


def test_without_the_adapter_any_way_to_generate_goes():
    model = late_model("llama", CAUSAL)
    batch = tiny_batch("llama", "left")
    settings = {**GENERATION, "do_sample": False, "cache_implementation": "static"}
    with model.disable_adapter():
        assert torch.equal(
            model.generate(**batch, **settings), tiny_model("llama", CAUSAL).generate(**batch, **settings)
        )


def test_a_text_from_nothing_is_the_same_with_and_without_a_cache():
    model = late_model("llama", CAUSAL)
    settings = {**GENERATION, "do_sample": False, "bos_token_id": 2}
    assert torch.equal(model.generate(**settings), model.generate(**settings, use_cache=False))
