"""The split: trunk and tail are the backbone, and stay so when it changes."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny_models import CONFIGS, DECODERS, EAGER_ONLY, LAYERS, tiny_batch, tiny_model
from transformers import AutoModel, DynamicCache, ErnieConfig, T5Config, XLNetConfig

from lateprompt import split_backbone
from lateprompt.backbone.families import FAMILIES, Family, core_of, register_family
from lateprompt.backbone.split import Split, resolve_prompt_layer

KERNELS = [(name, kernel) for name in CONFIGS for kernel in (("eager",) if name in EAGER_ONLY else ("sdpa", "eager"))]


def chain(trunk, tail, batch):
    states = trunk(**batch).last_hidden_state
    return tail(inputs_embeds=states, attention_mask=batch["attention_mask"]).last_hidden_state


def test_every_family_has_a_tiny_model():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernel"), KERNELS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@torch.no_grad()
def test_trunk_and_tail_are_the_model(name, kernel, padding):
    model = tiny_model(name, attention=kernel)
    batch = tiny_batch(name, padding)
    whole = model(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    for prompt_layer in range(1, LAYERS):
        trunk, tail = split_backbone(model, prompt_layer)
        parts = chain(trunk, tail, batch)
        assert (parts - whole)[real].abs().max() == 0.0


def hidden_of(model, batch):
    return model(**batch).last_hidden_state


def difference(model, prompt_layer, batch):
    """How far trunk and tail are from the model, on the real positions."""
    whole = hidden_of(model, batch)
    parts = chain(*split_backbone(model, prompt_layer), batch)
    return (parts - whole)[batch["attention_mask"].bool()].abs().max().item()


# -- what a view is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
def test_configs_are_cut_and_the_original_is_left_alone(name):
    model = tiny_model(name)
    before = model.config.to_dict()
    for prompt_layer in (1, 3):
        trunk, tail = split_backbone(model, prompt_layer)
        assert trunk.config.num_hidden_layers == prompt_layer
        assert tail.config.num_hidden_layers == LAYERS - prompt_layer
        for entries in ("layer_types", "attention_layers"):
            whole = getattr(model.config, entries, None)
            if whole is not None:
                assert getattr(trunk.config, entries) == whole[:prompt_layer]
                assert getattr(tail.config, entries) == whole[prompt_layer:]
    assert model.config.to_dict() == before


def layer_indices(module):
    return [m.__dict__[n] for m in module.modules() for n in ("layer_idx", "layer_id") if n in m.__dict__]


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_tail_alone_caches_from_its_own_first_layer(name):
    model = tiny_model(name)
    indices = layer_indices(model)
    trunk, tail = split_backbone(model, 3)
    batch = tiny_batch(name)
    states = hidden_of(trunk, batch)
    whole = tail(inputs_embeds=states, use_cache=False).last_hidden_state
    cache = DynamicCache(config=tail.config)
    first = tail(inputs_embeds=states[:, :6], past_key_values=cache, use_cache=True).last_hidden_state
    rest = [
        tail(inputs_embeds=states[:, i : i + 1], past_key_values=cache, use_cache=True).last_hidden_state
        for i in range(6, states.shape[1])
    ]
    torch.testing.assert_close(torch.cat([first, *rest], 1), whole, atol=2e-5, rtol=0)
    assert len(cache.layers) == LAYERS - 3
    assert max(layer_indices(tail)) == LAYERS - 3 - 1
    assert layer_indices(model) == indices
    assert max(indices) == LAYERS - 1


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_views_share_parameters_and_buffers(name):
    model = tiny_model(name)
    own = {id(p) for p in model.parameters()}
    names = [n for n, _ in model.named_parameters()]
    keys = list(model.state_dict())
    views = split_backbone(model, 2)
    for view in views:
        assert {id(p) for p in view.parameters()} <= own
        assert {id(b) for b in view.buffers()} <= {id(b) for b in model.buffers()}
        for table in ("_parameters", "_buffers"):  # the very same dicts: a moved model moves its views
            tables = {id(getattr(m, table)) for m in view.modules() if getattr(m, table)}
            assert tables <= {id(getattr(m, table)) for m in model.modules()}
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    batch = tiny_batch(name)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        model.to(dtype)
        parts, whole = chain(*views, batch), hidden_of(model, batch)
        assert parts.dtype == whole.dtype == dtype
        assert (parts - whole).abs().max() == 0.0


def test_half_precision_after_the_split():
    model = tiny_model("llama")
    views = split_backbone(model, 2)
    model.half()
    batch = tiny_batch("llama")
    with torch.no_grad():
        assert (chain(*views, batch) - hidden_of(model, batch)).abs().max() == 0.0
    assert next(views[1].parameters()).dtype == torch.float16


@torch.no_grad()
def test_weights_changed_in_place_or_loaded_are_seen():
    model = tiny_model("bert")
    views = split_backbone(model, 2)
    other = tiny_model("bert", seed=1)
    model.load_state_dict(other.state_dict())
    batch = tiny_batch("bert")
    assert (chain(*views, batch) - hidden_of(other, batch)).abs().max() == 0.0


def test_a_model_with_a_head_gives_its_backbones_views():
    for name, auto in (("roberta", "AutoModelForMaskedLM"), ("opt", "AutoModelForCausalLM")):
        model = tiny_model(name, auto)
        batch = tiny_batch(name)
        with torch.no_grad():
            parts = chain(*split_backbone(model, "0.5"), batch)
            whole = model(**batch, output_hidden_states=True).hidden_states[-1]
            if name == "roberta":
                assert (parts - whole).abs().max() == 0.0
            assert (parts - hidden_of(model.base_model, batch)).abs().max() == 0.0


# -- optional modules and settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("opt", {"word_embed_proj_dim": 32}),  # no projections
        ("opt", {"do_layer_norm_before": False}),  # opt-350m: post-norm, no final norm
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
        ("electra", {"embedding_size": 32}),
        ("albert", {"num_hidden_groups": 1}),
        ("albert", {"num_hidden_groups": 4}),
        ("deberta-v2", {"conv_kernel_size": 0}),
        ("deberta-v2", {"position_biased_input": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("bert", {"is_decoder": True}),
    ],
    ids=str,
)
@torch.no_grad()
def test_variants_of_a_family(name, overrides):
    model = tiny_model(name, **overrides)
    for padding in ("none", "left", "right"):
        assert difference(model, 2, tiny_batch(name, padding)) == 0.0


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
@torch.no_grad()
def test_without_a_pooler(name):
    model = type(tiny_model(name))(tiny_model(name).config, add_pooling_layer=False).eval()
    assert model.pooler is None
    assert difference(model, 2, tiny_batch(name, "right")) == 0.0


# -- accelerate --------------------------------------------------------------------------------------------------------


class CountingHook(ModelHook):
    def __init__(self):
        self.calls = []

    def pre_forward(self, module, *args, **kwargs):
        self.calls.append(module)
        return args, kwargs


@pytest.mark.parametrize("name", ["bert", "gpt2", "opt", "llama"])
@torch.no_grad()
def test_accelerate_hooks_do_not_make_a_view_run_the_whole_model(name):
    model = tiny_model(name)
    batch = tiny_batch(name, "left")
    whole = hidden_of(model, batch)
    core = core_of(model)
    layers = core.get_submodule(FAMILIES[name].layers)
    before = core_of(split_backbone(model, 1)[0])(**batch).last_hidden_state
    root, each = CountingHook(), [CountingHook() for _ in layers]
    add_hook_to_module(core, root)
    for layer, hook in zip(layers, each, strict=True):
        add_hook_to_module(layer, hook)
    for prompt_layer in (1, 3):
        for hook in (root, *each):
            hook.calls.clear()
        trunk, tail = split_backbone(model, prompt_layer)
        states = trunk(**batch).last_hidden_state
        assert [len(hook.calls) for hook in each] == [1] * prompt_layer + [0] * (LAYERS - prompt_layer)
        assert root.calls == [trunk]
        parts = tail(inputs_embeds=states, attention_mask=batch["attention_mask"]).last_hidden_state
        assert [len(hook.calls) for hook in each] == [1] * LAYERS
        assert (parts - whole)[batch["attention_mask"].bool()].abs().max() == 0.0
        if prompt_layer == 1:
            assert torch.equal(states, before)


@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen2", "albert"])
@torch.no_grad()
def test_accelerate_offload(name):
    model = tiny_model(name)
    batch = tiny_batch(name, "right")
    whole = hidden_of(model, batch)
    cpu_offload(model, execution_device="cpu")
    assert next(model.parameters()).device.type == "meta"
    parts = chain(*split_backbone(model, 2), batch)
    assert (parts - whole)[batch["attention_mask"].bool()].abs().max() == 0.0


@torch.no_grad()
def test_a_patched_forward_is_not_taken_along():
    model = tiny_model("bert")
    batch = tiny_batch("bert")
    whole = hidden_of(model, batch)
    model.forward = lambda **kwargs: pytest.fail("the whole model was run")
    assert (chain(*split_backbone(model, 2), batch) - whole).abs().max() == 0.0


@torch.no_grad()
def test_hook_that_stops_gradients_still_does():
    model = tiny_model("bert")
    hook = ModelHook()
    hook.no_grad = True
    add_hook_to_module(model, hook)
    trunk, _ = split_backbone(model, 2)
    with torch.enable_grad():
        assert not trunk(**tiny_batch("bert")).last_hidden_state.requires_grad


# -- the model changes after the split ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
def test_is_stale_after_changes_and_only_then(name):
    model = tiny_model(name)
    core = core_of(model)
    split = Split(core, 2)
    model.train()
    model.eval()
    model.to(torch.float64)
    model.requires_grad_(False)
    assert not split.is_stale
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
        assert split.is_stale
        split = Split(core, 2)
        assert not split.is_stale
        model.gradient_checkpointing_disable()
        assert split.is_stale
        split = Split(core, 2)
    add_hook_to_module(core, CountingHook())
    assert split.is_stale


@pytest.mark.parametrize("name", ["bert", "llama", "modernbert"])
@torch.no_grad()
def test_attention_kernel_changed_after_the_split(name):
    model = tiny_model(name, attention="sdpa")
    split = Split(model, 2)
    model.set_attn_implementation("eager")
    assert split.is_stale
    assert difference(model, 2, tiny_batch(name, "left")) == 0.0
    assert Split(model, 2).tail.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "deberta-v2", "albert", "opt"])
@torch.no_grad()
def test_modules_replaced_after_the_split(name):
    model = tiny_model(name)
    core = core_of(model)
    split = Split(core, 2)
    stack = core.get_submodule(FAMILIES[name].layers)
    path, linear = next((p, m) for p, m in stack[-1].named_modules() if p.endswith(LINEARS))
    parent, _, leaf = path.rpartition(".")
    setattr(stack[-1].get_submodule(parent), leaf, Doubled(linear))
    batch = tiny_batch(name)
    views = (split.trunk, split.tail) if not split.is_stale else split_backbone(model, 2)
    whole = hidden_of(model, batch)
    assert (chain(*views, batch) - whole).abs().max() == 0.0
    assert (whole - hidden_of(tiny_model(name), batch)).abs().max() > 0.0


LINEARS = ("query", "q_proj", "c_attn", "query_proj")


class Doubled(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return 2 * self.inner(hidden)


def test_checkpointing_function_changed_is_stale():
    model = tiny_model("bert")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    split = Split(model, 2)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert split.is_stale


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "opt", "distilbert"])
@torch.no_grad()
def test_hidden_states_are_recorded_once(name):
    model = tiny_model(name)
    batch = tiny_batch(name)
    before = model(**batch, output_hidden_states=True).hidden_states
    for recorded_first in (True, False):
        if not recorded_first:
            model = tiny_model(name)
        trunk, tail = split_backbone(model, 3)
        low = trunk(**batch, output_hidden_states=True)
        high = tail(inputs_embeds=low.last_hidden_state, output_hidden_states=True, output_attentions=False)
        after = model(**batch, output_hidden_states=True).hidden_states
        assert len(low.hidden_states) == 4
        assert len(high.hidden_states) == 2
        assert len(after) == len(before) == LAYERS + 1
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(before, low.hidden_states, strict=False):
            assert torch.equal(one, other)


def test_hooks_on_the_backbone_do_not_fire_for_a_view():
    model = tiny_model("bert")
    calls = []
    model.register_forward_hook(lambda *args: calls.append("after"))
    model.register_forward_pre_hook(lambda *args: calls.append("before"))
    trunk, tail = split_backbone(model, 2)
    chain(trunk, tail, tiny_batch("bert"))
    assert calls == []
    model(**tiny_batch("bert"))
    assert calls == ["before", "after"]


# -- prompt layer and families -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "layer"),
    [(1, 1), (23, 23), ("12", 12), ("0.5", 12), (0.5, 12), (0.01, 1), (0.999, 23), ("0.25", 6), (3.0, 3), (" 7 ", 7)],
)
def test_prompt_layer(value, layer):
    resolved = resolve_prompt_layer(value, 24)
    assert resolved == layer
    assert type(resolved) is int


@pytest.mark.parametrize(
    "value",
    [0, 24, -1, 100, "0", "-1", "--5", "24", "abc", "auto", "", True, False, None, "nan", "inf", 2.5, 0.0, "²", -0.5],
)
def test_prompt_layer_out_of_range(value):
    with pytest.raises(ValueError, match=r"1\.\.23") as error:
        resolve_prompt_layer(value, 24)
    assert repr(value) in str(error.value)


def test_prompt_layer_of_a_model_with_one_layer():
    with pytest.raises(ValueError, match="1 layer"):
        resolve_prompt_layer(1, 1)


@pytest.mark.parametrize("config", [T5Config, XLNetConfig])
def test_unknown_architecture_names_the_table(config):
    small = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2} if config is T5Config else {}
    small = small or {"d_model": 16, "d_inner": 16, "n_layer": 2, "n_head": 2}
    model = AutoModel.from_config(config(vocab_size=20, **small))
    with pytest.raises(ValueError, match=r"lateprompt\.FAMILIES") as error:
        split_backbone(model, 1)
    assert config.model_type in str(error.value)
    assert "roberta" in str(error.value)
    assert "register_family" in str(error.value)


def test_something_that_is_no_transformers_model():
    with pytest.raises(ValueError, match="Linear"):
        split_backbone(torch.nn.Linear(2, 2), 1)


def test_register_family():
    config = ErnieConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, pad_token_id=1
    )
    model = AutoModel.from_config(config).eval()
    with pytest.raises(ValueError, match="ernie"):
        split_backbone(model, 2)
    register_family("ernie", Family("encoder.layer", {"pooler": "none"}, {"embeddings": "embeds"}))
    try:
        with torch.no_grad():
            assert difference(model, 2, tiny_batch("bert", "right")) == 0.0
    finally:
        del FAMILIES["ernie"]
    for wrong in ("", None, 3):
        with pytest.raises(ValueError, match="model_type"):
            register_family(wrong, FAMILIES["bert"])
