"""A lean tail gives the same as a whole one, at the read positions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lateprompt import LatePromptConfig
from lateprompt.backbone.families import FAMILIES
from lateprompt.backbone.kernels import absorbed_attention as absorb
from lateprompt.backbone.kernels import read_positions as lean
from lateprompt.backbone.kernels.read_positions import ReadLayer, _FrontLinear
from tests.tiny_models import CONFIGS, DECODERS, EAGER_ONLY, LAYERS, tiny_batch, tiny_model

READS = torch.tensor([[10, 2], [7, 0], [4, 3]])


def late(name: str, *, prompt_layer: int = 2, generator: str = "npg", attention: str | None = None, **more: Any) -> Any:
    auto = "AutoModelForCausalLM" if name in DECODERS else "AutoModel"
    base = tiny_model(name, auto, attention=attention)
    config = LatePromptConfig(prompt_layer=prompt_layer, generator=generator, num_prompt_tokens=3, **more)
    torch.manual_seed(1)
    return get_peft_model(base, config).eval()


def outputs(model: Any, batch: dict[str, torch.Tensor], read: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
    """Hidden states at READS (through `read`, or picked from all), and the gradients of what is trained."""
    layer = model.base_model.layer
    extra = {"use_cache": False} if layer.family.causal else {}
    model.zero_grad()
    if read is not None:
        hidden = layer(**batch, **extra, read=read).last_hidden_state
    else:
        hidden = layer(**batch, **extra).last_hidden_state[torch.arange(3)[:, None], READS]
    weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
    (hidden * weight).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_same_states_and_gradients(name: str, padding: str) -> None:
    model = late(name)
    batch = tiny_batch(name, padding)
    whole, whole_gradients = outputs(model, batch, None)
    lean, lean_gradients = outputs(model, batch, READS)
    visible = batch["attention_mask"].gather(1, READS).bool()
    torch.testing.assert_close(lean[visible], whole[visible], rtol=1e-5, atol=1e-5)
    if padding == "none":
        assert lean_gradients.keys() == whole_gradients.keys() != set()
        for key, gradient in whole_gradients.items():
            torch.testing.assert_close(lean_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("prompt_layer", [1, LAYERS - 1])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "qwen3"])
def test_same_with_a_long_and_a_single_layer_tail(name: str, prompt_layer: int) -> None:
    model = late(name, prompt_layer=prompt_layer, generator="mppg")
    whole, whole_gradients = outputs(model, tiny_batch(name), None)
    lean, lean_gradients = outputs(model, tiny_batch(name), READS)
    torch.testing.assert_close(lean, whole, rtol=1e-5, atol=1e-5)
    for key, gradient in whole_gradients.items():
        torch.testing.assert_close(lean_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen2"])
def test_same_with_eager_attention(name: str) -> None:
    model = late(name, attention="eager")
    batch = tiny_batch(name, "right")
    whole, _ = outputs(model, batch, None)
    lean, _ = outputs(model, batch, READS)
    visible = batch["attention_mask"].gather(1, READS).bool()
    torch.testing.assert_close(lean[visible], whole[visible], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("absorbs", [True, False])
@pytest.mark.parametrize("name", sorted(n for n in CONFIGS if FAMILIES[n].reads))
def test_the_last_layer_runs_at_read_positions_only(name: str, absorbs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not absorbs:
        monkeypatch.setattr(lean, "is_worth_it", lambda *_: False)
    model = late(name)
    layer = model.base_model.layer
    tail = layer.split_at(2).read_tail(3).view
    last = list(tail.get_submodule(layer.family.layers).children())[-1]
    assert isinstance(last, ReadLayer)
    seen: list[int] = []
    linears = [m for m in last.layer.modules() if hasattr(m, "weight") and m.weight.ndim == 2]
    handles = [m.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[-2])) for m in linears]
    outputs(model, tiny_batch(name), READS[:, :1])
    for handle in handles:
        handle.remove()
    # Those of all positions come first, but where few queries do without them.
    keys = 0 if absorbs and layer.family.absorbs else len(layer.family.projections) - 1 or 1
    assert seen.count(14) == keys
    assert set(seen) <= {14, 1, 3}  # some code folds (batch, 1) into 3 rows


@pytest.mark.parametrize("reads", [1, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", sorted(n for n in CONFIGS if FAMILIES[n].absorbs and FAMILIES[n].reads))
def test_absorbed_projections_change_nothing(
    name: str, attention: str, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training mode, with the same dropout; padded rows."""
    calls = count_calls(monkeypatch)
    found = []
    for absorbs in (True, False):
        if not absorbs:
            monkeypatch.setattr(lean, "is_worth_it", lambda *_: False)
        model = late(name, attention=attention).train()
        torch.manual_seed(5)
        found.append(outputs(model, tiny_batch(name, "right"), READS[:, :reads]))
        assert len(calls) == 1  # the second model has none
    (ours, our_gradients), (theirs, their_gradients) = found
    visible = tiny_batch(name, "right")["attention_mask"].gather(1, READS[:, :reads]).bool()
    assert visible.any()
    torch.testing.assert_close(ours[visible], theirs[visible], rtol=1e-5, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys() != set()
    for key, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("trained", ["attention.self.key", "attention.self.value"])
def test_trained_and_wrapped_projections_are_not_absorbed(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    for wrapped in (False, True):
        model = late("bert")
        last = list(model.base_model.layer.base_layer.encoder.layer)[-1]
        outputs(model, tiny_batch("bert"), READS[:, :1])
        assert len(calls) == 1 + wrapped
        if wrapped:
            inject_adapter_in_model(LoraConfig(target_modules=[trained.rpartition(".")[2]]), last)
        else:
            last.get_submodule(trained).weight.requires_grad_(True)
        outputs(model, tiny_batch("bert"), READS[:, :1])
        assert len(calls) == 1 + wrapped


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each absorbed attention."""
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return absorb.absorbed_attention(*args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, absorb.NAME, counted)
    return calls


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta-v2"])
def test_text_positions_get_no_gradient_in_the_first_layer(name: str) -> None:
    """The projections' input gradient is computed at the prompt's positions alone."""
    model = late(name)
    layer = model.base_model.layer
    found: list[torch.Tensor] = []
    projections = [m for m in layer.split_at(2).read_tail(3).view.modules() if isinstance(m, _FrontLinear)]
    for projection in projections:
        projection.register_full_backward_hook(lambda _m, given, _o: found.append(given[0]))
    outputs(model, tiny_batch(name), READS)
    assert len(found) >= len(projections) > 0
    for gradient in found:
        if gradient is not None and gradient.shape[1] == 14:
            assert gradient[:, :3].abs().max() > 0
            assert gradient[:, 3:].abs().max() == 0


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "deberta-v2"])
def test_trained_tail_weights_get_their_whole_gradient(name: str) -> None:
    """Norms, biases or whole layers of the tail that are trained see every position."""
    model = late(name)
    layer = model.base_model.layer
    for parameter in list(layer.base_layer.get_submodule(layer.family.layers).children())[2].parameters():
        parameter.requires_grad_(True)
    whole, whole_gradients = outputs(model, tiny_batch(name), None)
    lean, lean_gradients = outputs(model, tiny_batch(name), READS)
    torch.testing.assert_close(lean, whole, rtol=1e-5, atol=1e-5)
    assert len(whole_gradients) > 4
    for key, gradient in whole_gradients.items():
        torch.testing.assert_close(lean_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_lora_in_the_tail_is_seen() -> None:
    """LoRA injected after a first lean call changes the next one, in first and last layer."""
    model = late("bert")
    before, _ = outputs(model, tiny_batch("bert"), READS)
    inner = model.base_model.layer.base_layer
    torch.manual_seed(3)
    config = LoraConfig(
        target_modules=["query", "value"],
        layers_to_transform=[2, 3],
        layers_pattern="layer",
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, inner)
    whole, whole_gradients = outputs(model, tiny_batch("bert"), None)
    lean, lean_gradients = outputs(model, tiny_batch("bert"), READS)
    assert (lean - before).abs().max() > 1e-3
    torch.testing.assert_close(lean, whole, rtol=1e-5, atol=1e-5)
    assert lean_gradients.keys() == whole_gradients.keys()
    for key, gradient in whole_gradients.items():
        torch.testing.assert_close(lean_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_hidden_states_asked_for_come_from_the_whole_tail() -> None:
    model = late("bert")
    layer = model.base_model.layer
    output = layer(**tiny_batch("bert"), read=READS, output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    assert output.last_hidden_state.shape[:2] == READS.shape
    torch.testing.assert_close(output.last_hidden_state, layer(**tiny_batch("bert"), read=READS).last_hidden_state)


def test_rows_of_several_adapters_and_of_none() -> None:
    model = late("bert")
    model.add_adapter("other", LatePromptConfig(prompt_layer=3, generator="mppg", num_prompt_tokens=2))
    model.eval()
    layer = model.base_model.layer
    names = ["default", "other", "__base__"]
    whole = layer(**tiny_batch("bert"), adapter_names=names).last_hidden_state[torch.arange(3)[:, None], READS]
    read = layer(**tiny_batch("bert"), adapter_names=names, read=READS).last_hidden_state
    torch.testing.assert_close(read, whole, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        bare = layer(**tiny_batch("bert")).last_hidden_state[torch.arange(3)[:, None], READS]
        torch.testing.assert_close(layer(**tiny_batch("bert"), read=READS).last_hidden_state, bare)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = late("bert", prompt_dropout=0.0).train()
    inner = model.base_model.layer.base_layer
    for module in inner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = outputs(model, tiny_batch("bert"), READS)
    inner.gradient_checkpointing_enable()
    again = outputs(model, tiny_batch("bert"), READS)
    torch.testing.assert_close(again[0], plain[0], rtol=1e-5, atol=1e-5)
    for key, gradient in plain[1].items():
        torch.testing.assert_close(again[1][key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_compiled_tail_gives_the_same(name: str) -> None:
    model = late(name)
    layer = model.base_model.layer
    plain, plain_gradients = outputs(model, tiny_batch(name), READS)
    layer.compile_tail = True
    compiled, gradients = outputs(model, tiny_batch(name), READS)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    for key, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-4, msg=key)


def test_bf16_autocast() -> None:
    model = late("bert")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, whole_gradients = outputs(model, tiny_batch("bert"), None)
        lean, gradients = outputs(model, tiny_batch("bert"), READS)
    torch.testing.assert_close(lean.float(), whole.float(), rtol=0.05, atol=0.05)
    for key, gradient in whole_gradients.items():
        assert F.cosine_similarity(gradients[key].flatten(), gradient.flatten(), 0) > 0.98


class _NoQuestions(TorchDispatchMode):
    """Fails where a tensor's value is asked for: on a GPU that waits for all work in the queue."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor's value was asked for"
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize("generator", ["npg", "mppg"])
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {*EAGER_ONLY, "opt"}))
def test_a_step_from_kept_states_never_waits_for_the_device(name: str, generator: str, padding: str) -> None:
    model = late(name, generator=generator)
    inputs = tiny_batch(name, padding)
    layer = model.base_model.layer
    with torch.no_grad():
        states = layer.split_at(2).trunk(**inputs).last_hidden_state
    model.train()
    extra = {"use_cache": False} if layer.family.causal else {}
    mask = {} if padding == "none" else {"attention_mask": inputs["attention_mask"]}
    with _NoQuestions():
        output = layer(trunk_states=states, **mask, **extra, read=READS[:, 1])
        output.last_hidden_state.square().mean().backward()


def test_threads_that_read_other_positions_do_not_meet() -> None:
    """What a call reads is its own: several threads may predict with one model."""
    model = late("bert")
    layer, batch = model.base_model.layer, tiny_batch("bert")

    @torch.no_grad()
    def read_at(position: int) -> torch.Tensor:
        return layer(**batch, read=torch.full((3,), position)).last_hidden_state[:, 0]  # type: ignore[no-any-return]

    with torch.no_grad():
        expected = layer(**batch).last_hidden_state
    with ThreadPoolExecutor(4) as threads:
        for position, found in zip(range(11), threads.map(read_at, range(11)), strict=True):
            torch.testing.assert_close(found, expected[:, position], rtol=1e-5, atol=1e-5)


def test_a_call_in_the_middle_of_another_reads_its_own_positions() -> None:
    model = late("bert")
    layer, batch = model.base_model.layer, tiny_batch("bert")
    inner: list[torch.Tensor] = []

    def read_elsewhere(*_: Any) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner.append(layer(**batch, read=READS.flip(1)).last_hidden_state)

    with torch.no_grad():
        expected = layer(**batch).last_hidden_state[torch.arange(3)[:, None], READS]
        handle = layer.base_layer.encoder.layer[2].register_forward_pre_hook(read_elsewhere)
        found = layer(**batch, read=READS).last_hidden_state
        handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner[1], expected.flip(1), rtol=1e-5, atol=1e-5)
