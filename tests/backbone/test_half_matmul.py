"""Half-precision weights on a CPU without arithmetic for them: computed in fp32, kept as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from lateprompt import LatePromptConfig
from lateprompt.backbone.kernels import half_matmul as halves
from lateprompt.backbone.kernels.cpu_dropout import dropout_attention
from lateprompt.backbone.kernels.cpu_mode import CpuKernels, cpu_kernels
from lateprompt.backbone.kernels.half_matmul import cpu_lacks
from tests.tiny_models import DECODERS, tiny_batch, tiny_model


@contextmanager
def cpu(monkeypatch: pytest.MonkeyPatch, *, lacking: bool) -> Iterator[bool]:
    """The CPU as one without half-precision arithmetic, or as one with it."""
    cpu_lacks.cache_clear()
    for probe in halves._PROBES.values():
        monkeypatch.setattr(torch.ops.mkldnn, probe, lambda: not lacking, raising=False)
    yield lacking
    cpu_lacks.cache_clear()


@pytest.fixture(params=[True, False], ids=["lacking", "having"])
def lacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    with cpu(monkeypatch, lacking=request.param) as lacking:
        yield lacking


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    with cpu(monkeypatch, lacking=True) as lacking:
        yield lacking


def test_only_halves_on_a_cpu_without_them_are_widened(lacks: bool) -> None:
    assert cpu_lacks(torch.bfloat16) is lacks
    assert not cpu_lacks(torch.float32)
    assert isinstance(cpu_kernels(torch.device("cpu"), torch.bfloat16), CpuKernels) is lacks
    assert not isinstance(cpu_kernels(torch.device("cpu"), torch.float32), CpuKernels)
    assert not isinstance(cpu_kernels(torch.device("meta"), torch.bfloat16), CpuKernels)


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


@pytest.mark.parametrize(
    ("product", "arguments"),
    [
        (lambda a, b: a @ b, (half(3, 40, 64), half(64, 8))),
        (torch.matmul, (half(40, 64), half(64, 8))),
        (torch.bmm, (half(2, 4, 64), half(2, 64, 5))),
        (torch.addmm, (half(8), half(4, 64), half(64, 8))),
        (F.linear, (half(5, 64), half(8, 64), half(8))),
        (F.scaled_dot_product_attention, (half(1, 2, 9, 16), half(1, 2, 9, 16), half(1, 2, 9, 16))),
    ],
)
def test_a_product_is_the_fp32_one_rounded(
    product: Callable[..., torch.Tensor], arguments: tuple[torch.Tensor, ...], lacking: bool
) -> None:
    with CpuKernels(dropout=False):
        found = product(*arguments)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, product(*(a.float() for a in arguments)).bfloat16(), rtol=0, atol=0)


def test_a_frozen_map_keeps_its_half_for_the_backward_pass(lacking: bool) -> None:
    inputs, weight = half(5, 64).requires_grad_(), half(8, 64)
    kept: list[torch.Tensor] = []
    with (
        CpuKernels(dropout=False),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        output = F.linear(inputs, weight)
    assert [(tensor.dtype, tensor.data_ptr()) for tensor in kept] == [(torch.bfloat16, weight.data_ptr())]
    output.sum().backward()
    expected = torch.ones(5, 8) @ weight.float()
    torch.testing.assert_close(inputs.grad, expected.bfloat16(), rtol=0, atol=0)


def test_a_trained_map_gets_its_gradient(lacks: bool) -> None:
    inputs, weight = half(5, 64), half(8, 64).requires_grad_()
    with cpu_kernels(torch.device("cpu"), torch.bfloat16):
        F.linear(inputs, weight).float().sum().backward()
    torch.testing.assert_close(weight.grad.float(), inputs.float().sum(0).expand(8, -1), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "qwen2", "modernbert"])
def test_a_bf16_model_gives_what_the_fp32_one_does_to_rounding(name: str, training: bool, lacks: bool) -> None:
    def run(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        base: Any = tiny_model(name, "AutoModelForCausalLM" if name in DECODERS else "AutoModel")
        torch.manual_seed(1)
        model: Any = get_peft_model(base.to(dtype), LatePromptConfig(prompt_layer=2, num_prompt_tokens=3))
        model.train(training)
        layer = model.base_model.layer
        torch.manual_seed(2)
        extra = {"use_cache": False} if layer.family.causal else {}
        hidden = layer(**tiny_batch(name), **extra, read=torch.tensor([3, 4, 2])).last_hidden_state.float()
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
        return hidden.detach(), torch.cat(gradients)

    (wide, wide_gradient), (narrow, narrow_gradient) = run(torch.float32), run(torch.bfloat16)
    assert (narrow - wide).norm() <= 0.05 * wide.norm()
    assert F.cosine_similarity(wide_gradient, narrow_gradient, dim=0) > 0.98


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_attention_with_dropout_under_autocast(narrow: torch.dtype, lacks: bool) -> None:
    # A rotated query is fp32 beside bf16 values; on a CPU with or without arithmetic the gradients fit their inputs.
    query = torch.randn(2, 3, 9, 16, dtype=narrow, requires_grad=True)
    value = half(2, 3, 9, 16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = dropout_attention(query, query, value, None, rate=0.25)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for part in (query, value):
        assert part.grad is not None
        assert part.grad.dtype == part.dtype
        assert part.grad.abs().sum() > 0
