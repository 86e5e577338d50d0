"""`LateBackbone`: a drop-in for the backbone, whose text feels the prompt and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, inject_adapter_in_model
from tiny_models import CONFIGS, DECODERS, LAYERS, WIDTH, tiny_batch, tiny_model
from transformers import DynamicCache, StaticCache

from lateprompt.backbone.call_context import CallExtras, call_extras
from lateprompt.backbone.families import core_of
from lateprompt.backbone.late_backbone import LateBackbone, PromptSlot
from lateprompt.backbone.split import split_backbone
from lateprompt.prompts import GENERATORS, GeneratorSpec, build_generator

ABSOLUTE = ("gpt2", "gpt_neo")  # left-padded rows need position_ids, as with the bare model
# Absolute positions of an encoder: a left-padded row differs in the bare model as well. MPNet's and DeBERTa's relative
# positions count from the front of the row, where the prompt is: padding between the two widens their distance.
RIGHT_PADDED = ("bert", "distilbert", "electra", "albert", "mpnet", "deberta-v2")
LONG = 20  # far beyond every window of the tiny models (4)
WINDOWED = ("modernbert", "gpt_neo", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


def shake(module, seed=7):
    """Random weights: a constant change would vanish in the next layer norm."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.5)


def late_backbone(name, generator="npg", prompt_layer=2, k=5, trunk_dropout=False, prompt_dropout=0.0, **overrides):
    core = core_of(tiny_model(name, **overrides))
    late = LateBackbone(core)
    spec = GeneratorSpec(WIDTH, k, 8, prompt_dropout, reads_last=late.family.causal)
    late.add_prompt("default", build_generator(generator, spec), PromptSlot(prompt_layer, trunk_dropout))
    shake(late.late_prompt_generators)
    return late.requires_grad_(False).eval()


def random_ids(length, batch=2, seed=3):
    return torch.randint(5, 120, (batch, length), generator=torch.Generator().manual_seed(seed))


def positions_of(name, batch):
    """What a left-padded row of a model with absolute positions needs."""
    if name not in ABSOLUTE:
        return {}
    return {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


# -- a drop-in ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("generator", list(GENERATORS))
@torch.no_grad()
def test_shape_stays_and_every_position_feels_the_prompt(name, generator):
    late = late_backbone(name, generator)
    batch = tiny_batch(name)
    bare = late.base_layer(**batch).last_hidden_state
    one = late(**batch).last_hidden_state
    assert one.shape == bare.shape
    assert torch.equal(one, late(**batch).last_hidden_state)
    shake(late.late_prompt_generators, seed=8)
    other = late(**batch).last_hidden_state
    for reference in (one, bare):
        assert ((other - reference).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("prompt_layer", [1, LAYERS - 1])
@torch.no_grad()
def test_the_last_token_feels_the_prompt_beyond_the_window(name, prompt_layer):
    overrides = {}
    if name in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        overrides = {"layer_types": ["full_attention"] * (LAYERS - 1) + ["sliding_attention"]}
    if name == "modernbert":
        overrides = {"layer_types": ["full_attention"] * (LAYERS - 1) + ["sliding_attention"], "local_attention": 4}
    late = late_backbone(name, prompt_layer=prompt_layer, **overrides)
    ids = random_ids(LONG)
    for mask in (None, torch.ones_like(ids)):
        shake(late.late_prompt_generators)
        one = late(input_ids=ids, attention_mask=mask).last_hidden_state
        shake(late.late_prompt_generators, seed=8)
        other = late(input_ids=ids, attention_mask=mask).last_hidden_state
        assert ((other - one).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_the_window_stays_for_the_text(name):
    """In a tail of one windowed layer, a token's output depends on the states in its window and on the prompt only."""
    overrides = {}
    if name in ("qwen2", "qwen3", "gemma2", "gemma3_text", "modernbert"):
        overrides = {"layer_types": ["full_attention"] * (LAYERS - 1) + ["sliding_attention"]}
    if name == "modernbert":
        overrides["local_attention"] = 4
    late = late_backbone(name, "fixed", prompt_layer=LAYERS - 1, **overrides)
    states = torch.randn(1, LONG, WIDTH)
    far = states.clone()
    far[:, 5] += torch.randn(WIDTH)
    difference = (late(trunk_states=states)[0] - late(trunk_states=far)[0]).abs().amax(-1)[0]
    reached = (difference > 0).nonzero()[:, 0].tolist()
    assert min(reached) >= 3
    assert max(reached) <= 8
    assert 5 in reached


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_a_text_of_the_longest_length(name):
    late = late_backbone(name, k=5)
    longest = late.base_layer.config.max_position_embeddings - (
        2 if name in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    )
    ids = random_ids(longest)
    assert late(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("generator", list(GENERATORS))
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(name, generator, padding):
    if padding == "left" and name in RIGHT_PADDED:
        padding = "right"
    late = late_backbone(name, generator)
    batch = tiny_batch(name, padding)
    padded = late(**batch, **positions_of(name, batch)).last_hidden_state
    for row, mask in enumerate(batch["attention_mask"].bool()):
        ids = batch["input_ids"][row, mask][None]
        for alone_mask in (None, torch.ones_like(ids)):
            alone = late(input_ids=ids, attention_mask=alone_mask).last_hidden_state[0]
            torch.testing.assert_close(padded[row, mask], alone, atol=5e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_trunk_states_given_or_computed(name, padding):
    late = late_backbone(name, "appg")
    batch = tiny_batch(name, padding)
    real = batch["attention_mask"].bool()
    computed = late(**batch).last_hidden_state
    trunk, _ = split_backbone(late.base_layer, 2)
    states = trunk(**batch).last_hidden_state
    given = late(trunk_states=states, attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(given[real], computed[real])
    with call_extras(CallExtras(trunk_states=states)):
        assert torch.equal(late(**batch).last_hidden_state[real], computed[real])
    # kept in another precision and read back
    kept = late(trunk_states=states.double(), attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(kept, given)


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "mpnet", "xlm-roberta", "camembert"])
@torch.no_grad()
def test_the_pooler_reads_the_texts_first_token(name):
    late = late_backbone(name)
    output = late(**tiny_batch(name))
    first = output.last_hidden_state
    pooler = late.base_layer.pooler
    expected = torch.tanh(pooler(first[:, 0])) if name == "albert" else pooler(first)
    assert torch.equal(output.pooler_output, expected)
    assert (output.pooler_output - late.base_layer(**tiny_batch(name)).pooler_output).abs().max() > 1e-3


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_hidden_states_are_the_texts(name):
    late = late_backbone(name, prompt_layer=3)
    batch = tiny_batch(name, "right")
    output = late(**batch, output_hidden_states=True)
    bare = late.base_layer(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == len(bare.hidden_states) == LAYERS + 1
    real = batch["attention_mask"].bool()
    for layer, (mine, theirs) in enumerate(zip(output.hidden_states, bare.hidden_states, strict=True)):
        assert mine.shape == theirs.shape
        if layer <= 3:
            assert torch.equal(mine[real], theirs[real])
        else:
            assert not torch.equal(mine[real], theirs[real])
    states = output.hidden_states[3]
    again = late(trunk_states=states, attention_mask=batch["attention_mask"], output_hidden_states=True)
    assert len(again.hidden_states) == LAYERS - 3 + 1
    assert torch.equal(again.hidden_states[0][real], states[real])


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "distilbert"])
@torch.no_grad()
def test_tuple_output_and_positional_arguments(name):
    late = late_backbone(name)
    batch = tiny_batch(name, "right")
    output = late(**batch)
    plain = late(**batch, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output.last_hidden_state)
    if name != "llama" and name != "gpt2":
        assert torch.equal(late(batch["input_ids"], batch["attention_mask"])[0], output[0])
    embeds = late.base_layer.get_input_embeddings()(batch["input_ids"])
    from_embeds = late(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).last_hidden_state
    assert torch.equal(from_embeds, output.last_hidden_state)


@torch.no_grad()
def test_attentions_include_the_prompt():
    for name in ("bert", "llama"):
        late = late_backbone(name, prompt_layer=3, attention="eager")
        output = late(**tiny_batch(name), output_attentions=True)
        assert output.attentions[-1].shape[-1] == 11 + 5


def test_attributes_of_the_backbone_are_reachable():
    late = late_backbone("bert")
    assert late.config is late.base_layer.config
    assert late.get_input_embeddings() is late.base_layer.embeddings.word_embeddings
    with pytest.raises(AttributeError):
        late.nonsense  # noqa: B018


@torch.no_grad()
def test_no_prompt_active_is_the_bare_backbone():
    late = late_backbone("bert")
    batch = tiny_batch("bert", "right")
    late.active = None
    assert torch.equal(late(**batch)[0], late.base_layer(**batch)[0])
    with pytest.raises(ValueError, match="no late prompt is active"):
        late(trunk_states=torch.zeros(1, 2, WIDTH))


# -- KV cache ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("generator", list(GENERATORS))
@pytest.mark.parametrize("prompt_layer", [1, 3])
@torch.no_grad()
def test_step_by_step_is_the_whole_pass(name, generator, prompt_layer):
    late = late_backbone(name, generator, prompt_layer)
    ids = random_ids(LONG)
    source = (torch.arange(LONG) < 8).long().expand(2, -1)
    whole = late(input_ids=ids, source_mask=source, use_cache=False)
    assert getattr(whole, "past_key_values", None) is None
    for mask in (None, torch.ones_like(ids)):
        output = late(input_ids=ids[:, :8], attention_mask=None if mask is None else mask[:, :8], use_cache=True)
        steps, cache = [output.last_hidden_state], output.past_key_values
        assert len(cache.layers) == LAYERS
        for start, stop in ((8, 9), (9, 12), *((i, i + 1) for i in range(12, LONG))):  # one token, several, one by one
            output = late(
                input_ids=ids[:, start:stop],
                attention_mask=None if mask is None else mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
            )
            assert output.past_key_values is cache
            steps.append(output.last_hidden_state)
        torch.testing.assert_close(torch.cat(steps, 1), whole.last_hidden_state, atol=1e-4, rtol=1e-4)
        assert cache.get_seq_length() == LONG
        assert cache.get_seq_length(LAYERS - 1) == LONG + 5


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_cached_steps_of_left_padded_rows(name):
    late = late_backbone(name, "mppg")
    batch = tiny_batch(name, "left", length=14)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()
    steps = []
    for start, stop in ((0, 9), *((i, i + 1) for i in range(9, 14))):
        part = {"input_ids": batch["input_ids"][:, start:stop], "attention_mask": mask[:, :stop]}
        if name != "opt":
            part["position_ids"] = positions[:, start:stop]
        steps.append(late(**part, past_key_values=cache, use_cache=True).last_hidden_state)
    padded = torch.cat(steps, 1)
    for row, real in enumerate(mask.bool()):
        ids = batch["input_ids"][row, real][None]
        source = (torch.arange(ids.shape[1]) < ids.shape[1] - 5).long()[None]
        alone = late(input_ids=ids, source_mask=source, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(padded[row, real], alone, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_cached_is_refused():
    late = late_backbone("llama")
    ids = random_ids(6)
    with pytest.raises(ValueError, match="StaticCache"):
        late(input_ids=ids, past_key_values=StaticCache(config=late.config, max_cache_len=10))
    with pytest.raises(ValueError, match="use_cache=False"):
        late(trunk_states=torch.zeros(2, 6, WIDTH), use_cache=True)
    with pytest.raises(ValueError, match="use_cache=False"):
        late(trunk_states=torch.zeros(2, 6, WIDTH), past_key_values=DynamicCache())


# -- source ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert", "roberta"])
@pytest.mark.parametrize("generator", ["npg", "mppg", "appg"])
@torch.no_grad()
def test_only_the_source_makes_the_prompt(name, generator):
    late = late_backbone(name, generator)
    ids = random_ids(11)
    source = (torch.arange(11) < 7).long().expand(2, -1)
    seen = []
    late.late_prompt_generators["default"].register_forward_hook(lambda module, args, output: seen.append(output))
    changed = ids.clone()
    changed[:, 7:] = random_ids(4, seed=9)
    for tokens in (ids, changed):
        late(input_ids=tokens, source_mask=source)
    same = torch.equal(seen[0], seen[1])
    assert same == (name in DECODERS)  # an encoder's states mix both sides; what is read is the source still
    for tokens in (ids, changed):
        late(input_ids=tokens)
    if name in DECODERS:
        assert not torch.equal(seen[2], seen[3])
    states = torch.randn(2, 11, WIDTH)
    other = states.clone()
    other[:, 7:] = torch.randn(2, 4, WIDTH)
    late(trunk_states=states, source_mask=source)
    late(trunk_states=other, source_mask=source)
    assert torch.equal(seen[4], seen[5])


# -- training ----------------------------------------------------------------------------------------------------------

DROPOUT = {
    "modernbert": {"mlp_dropout": 0.5, "embedding_dropout": 0.5},
    "bert": {"hidden_dropout_prob": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": {"dropout": 0.5},
    "distilbert": {"dropout": 0.5},
    "deberta-v2": {"hidden_dropout_prob": 0.5},
    "albert": {"hidden_dropout_prob": 0.5, "num_hidden_groups": 1},
}


def trunk_outputs(late, batch):
    """The states the generator is given, twice, and both outputs."""
    seen = []
    handle = late.late_prompt_generators["default"].register_forward_hook(
        lambda module, args, output: seen.append(args[0])
    )
    outputs = [late(**batch).last_hidden_state for _ in range(2)]
    handle.remove()
    return seen, outputs


@pytest.mark.parametrize("name", list(DROPOUT))
def test_the_trunk_has_no_dropout_while_training(name):
    late = late_backbone(name, **DROPOUT[name])
    batch = tiny_batch(name)
    if name == "albert":  # one group of layers, as every published ALBERT: trunk and tail are the same module
        assert late.base_layer.config.num_hidden_groups == 1
    quiet = trunk_outputs(late, batch)[0][0]
    late.train()
    (one, two), (first, second) = trunk_outputs(late, batch)
    assert torch.equal(one, two)
    assert torch.equal(one, quiet)
    assert not torch.equal(first, second)
    late.eval()
    _, (first, second) = trunk_outputs(late, batch)
    assert torch.equal(first, second)
    loud = late_backbone(name, trunk_dropout=True, **DROPOUT[name]).train()
    (one, two), _ = trunk_outputs(loud, batch)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", ["bert", "gpt2", "albert"])
def test_modes_with_several_prompt_layers(name):
    """Prompt layers take turns, and the bare backbone between them: each time trunk and tail are in the right mode."""
    late = late_backbone(name, prompt_layer=1, **DROPOUT[name])
    late.add_prompt("late", build_generator("fixed", GeneratorSpec(WIDTH, 2)), PromptSlot(3))
    late.train()
    batch = tiny_batch(name)

    def layer_outputs():
        low, high = (late(**batch, output_hidden_states=True).hidden_states for _ in range(2))
        return [torch.equal(a, b) for a, b in zip(low, high, strict=True)][:LAYERS]

    for _ in range(2):
        late.active = "default"
        assert layer_outputs() == [True, True, False, False]
        late.active = "late"
        assert layer_outputs() == [True, True, True, True]
        assert not torch.equal(late(**batch)[0], late(**batch)[0])
        late.active = None
        assert not torch.equal(late(**batch)[0], late(**batch)[0])
        assert not any(layer_outputs())
        late.eval()
        assert all(layer_outputs())
        late.train()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_trunk_has_no_graph_and_no_gradient(name):
    late = late_backbone(name)
    late.requires_grad_(True)
    late.base_layer.requires_grad_(False)
    late.train()
    (states, _), (output, _) = trunk_outputs(late, tiny_batch(name))
    assert not states.requires_grad
    assert states.grad_fn is None
    output.square().sum().backward()
    assert all(p.grad is None for p in late.base_layer.parameters())
    assert all(p.grad.abs().sum() > 0 for p in late.late_prompt_generators.parameters())


def test_gradient_to_given_embeddings_and_states():
    late = late_backbone("bert")
    embeds = torch.randn(2, 6, WIDTH, requires_grad=True)
    weights = torch.linspace(-1, 1, WIDTH)  # a normalised output's plain sum is constant
    (late(inputs_embeds=embeds).last_hidden_state * weights).sum().backward()
    assert embeds.grad.abs().sum() > 0
    states = torch.randn(2, 6, WIDTH, requires_grad=True)
    (late(trunk_states=states).last_hidden_state * weights).sum().backward()
    assert states.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "opt", "modernbert", "gemma2", "gpt_neo"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_switched_on_later(name, reentrant):
    late = late_backbone(name, "appg", **({"dropout": 0.0} if name == "opt" else {}))
    late.late_prompt_generators.requires_grad_(True)
    late.train()
    batch = tiny_batch(name, "right")
    for parameter in late.base_layer.modules():
        if isinstance(parameter, torch.nn.Dropout):
            parameter.p = 0.0
    width = late(**batch).last_hidden_state.shape[-1]  # OPT projects to the width of its embeddings
    weights = torch.randn(3, 11, width, generator=torch.Generator().manual_seed(0))

    def gradients():
        late.zero_grad()
        (late(**batch, use_cache=False) if name in DECODERS else late(**batch)).last_hidden_state.mul(
            weights
        ).sum().backward()
        return [p.grad.clone() for p in late.late_prompt_generators.parameters()]

    plain = gradients()
    split = late.split_at(2)
    model = late.base_layer
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layers = model.get_submodule(late.family.layers)
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert checkpointed
    for layer in checkpointed:
        original = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *a, _f=original, **k: (calls.append(1), _f(*a, **k))[1]
    with_checkpoints = gradients()
    assert late.split_at(2) is not split
    assert len(calls) == len(layers) - 2  # the tail's layers; the trunk has no graph to save
    for one, other in zip(plain, with_checkpoints, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "distilbert", "deberta-v2"])
def test_lora_injected_later_is_seen(name):
    late = late_backbone(name)
    batch = tiny_batch(name)
    before = late(**batch).last_hidden_state
    suffix = {"bert": "query", "llama": "q_proj", "gpt2": "c_attn", "distilbert": "q_lin", "deberta-v2": "query_proj"}[
        name
    ]
    inject_adapter_in_model(
        LoraConfig(target_modules=[suffix], fan_in_fan_out=name == "gpt2", lora_dropout=0.0), late.base_layer
    )
    late.eval()
    torch.testing.assert_close(late(**batch).last_hidden_state, before)  # B is zero
    lora = {n: p for n, p in late.base_layer.named_parameters() if "lora_" in n}
    for parameter in lora.values():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(late(**batch).last_hidden_state, before, atol=1e-3)
    late(**batch).last_hidden_state.square().sum().backward()
    assert len(lora) == 2 * LAYERS
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.values())


# -- bookkeeping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_views_appear_nowhere(name):
    late = late_backbone(name)
    before = [list(late.state_dict()), [n for n, _ in late.named_parameters()], [n for n, _ in late.named_modules()]]
    late(**tiny_batch(name))
    assert [
        list(late.state_dict()),
        [n for n, _ in late.named_parameters()],
        [n for n, _ in late.named_modules()],
    ] == before
    ids = [id(p) for p in late.parameters()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["bert", "gpt_neo", "llama", "albert"])
@torch.no_grad()
def test_deepcopy_dtype_and_kernel(name):
    late = late_backbone(name)
    batch = tiny_batch(name, "right")
    expected = late(**batch).last_hidden_state
    other = copy.deepcopy(late)
    assert torch.equal(other(**batch).last_hidden_state, expected)
    shake(other.base_layer, seed=1)
    assert not torch.equal(other(**batch).last_hidden_state, expected)
    assert torch.equal(late(**batch).last_hidden_state, expected)
    late.double()
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(late(**batch).last_hidden_state.float()[real], expected[real], atol=1e-4, rtol=1e-4)
    late.float()
    if name != "gpt_neo":
        late.base_layer.set_attn_implementation("eager")
        torch.testing.assert_close(late(**batch).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_half_precision_backbone_with_fp32_generator():
    late = late_backbone("llama")
    late.base_layer.to(torch.bfloat16)
    assert late(**tiny_batch("llama")).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_offloaded_backbone(name):
    late = late_backbone(name)
    batch = tiny_batch(name, "right")
    expected = late(**batch).last_hidden_state
    states = late(**batch, output_hidden_states=True).hidden_states[2]
    cpu_offload(late.base_layer, execution_device="cpu")
    assert torch.equal(late(**batch).last_hidden_state, expected)
    assert late.placement[0].type == "cpu"
    real = batch["attention_mask"].bool()
    assert torch.equal(late(trunk_states=states, attention_mask=batch["attention_mask"])[0][real], expected[real])


# -- rows of several adapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["bert", "deberta-v2", "albert", "modernbert", "gpt2", "llama", "mistral", "gemma2", "opt"]
)
@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_mixed_rows(name, padding):
    late = late_backbone(name, prompt_layer=2, k=5)
    for other, generator, k, layer in (("short", "fixed", 2, 2), ("deep", "appg", 3, 3)):
        spec = GeneratorSpec(WIDTH, k, 8, reads_last=late.family.causal)
        late.add_prompt(other, build_generator(generator, spec), PromptSlot(layer))
        shake(late.late_prompt_generators[other], seed=k)
    batch = tiny_batch(name, padding)
    extra = positions_of(name, batch) if padding == "left" else {}
    alone = {}
    for adapter in ("default", "short", "deep", None):
        late.active = adapter
        output = late(**batch, **extra, output_hidden_states=True)
        alone["__base__" if adapter is None else adapter] = output
    late.active = "default"
    real = batch["attention_mask"].bool()
    for names in (
        ["default", "short", "default"],
        ["short", "deep", "default"],
        ["__base__", "deep", "short"],
        ["deep", "__base__", "__base__"],
        ["__base__"] * 3,
        ["short"] * 3,
    ):
        mixed = late(**batch, **extra, adapter_names=names, output_hidden_states=True)
        assert len(mixed.hidden_states) == LAYERS + 1
        for row, adapter in enumerate(names):
            for mine, theirs in zip(
                (mixed.last_hidden_state, *mixed.hidden_states),
                (alone[adapter].last_hidden_state, *alone[adapter].hidden_states),
                strict=True,
            ):
                torch.testing.assert_close(mine[row, real[row]], theirs[row, real[row]], atol=1e-5, rtol=1e-4)
            if getattr(mixed, "pooler_output", None) is not None:
                torch.testing.assert_close(
                    mixed.pooler_output[row], alone[adapter].pooler_output[row], atol=1e-5, rtol=1e-4
                )


def test_mixed_rows_that_make_no_sense():
    late = late_backbone("llama")
    late.add_prompt("deep", build_generator("fixed", GeneratorSpec(WIDTH, 2)), PromptSlot(3))
    batch = tiny_batch("llama")
    for names, message in (
        (["default", "nobody", "deep"], "'nobody'"),
        (["default", "deep"], "2 names for a batch of 3"),
        (["__base__"], "1 names for a batch of 3"),
        ([], "0 names for a batch of 3"),
        (["default"] * 4, "4 names"),
    ):
        with pytest.raises(ValueError, match=message):
            late(**batch, adapter_names=names)
    with pytest.raises(ValueError, match="one prompt layer"):
        late(**batch, adapter_names=["default", "deep", "deep"], use_cache=True)
    states = torch.zeros(3, 11, WIDTH)
    for names in (["default", "deep", "deep"], ["__base__"] * 3, ["default", "__base__", "default"]):
        with pytest.raises(ValueError, match="one prompt layer"):
            late(trunk_states=states, adapter_names=names)


# -- wrong shapes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(3, 1, 11, 11)}, "2-D mask"),
        ({"attention_mask": {"full_attention": None}}, "2-D mask"),
        ({"attention_mask": torch.ones(3, 10)}, "attention_mask"),
        ({"attention_mask": torch.ones(2, 11)}, "attention_mask"),
        ({"source_mask": torch.ones(3, 10)}, "source_mask"),
        ({"source_mask": torch.ones(1, 11)}, "source_mask"),
        ({"source_mask": torch.ones(11)}, "source_mask"),
        ({"trunk_states": torch.zeros(3, 10, WIDTH)}, "trunk_states"),
        ({"trunk_states": torch.zeros(3, 11, WIDTH + 1)}, "trunk_states"),
        ({"trunk_states": torch.zeros(11, WIDTH)}, "trunk_states"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["bert", "llama", "mistral"])
def test_wrong_shapes(name, arguments, message):
    late = late_backbone(name)
    with pytest.raises(ValueError, match=message):
        late(**{**tiny_batch(name), **arguments})


def test_trunk_states_of_another_length_than_the_ids_without_a_mask():
    late = late_backbone("bert")
    with pytest.raises(ValueError, match="trunk_states"):
        late(input_ids=random_ids(11), trunk_states=torch.zeros(2, 9, WIDTH))
