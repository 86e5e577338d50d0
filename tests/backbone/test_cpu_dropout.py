"""Cheap dropout is dropout: its rate, its scale, its gradients; and it stays out of the way elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lateprompt.backbone.kernels import cpu_dropout as dropout
from lateprompt.backbone.kernels.cpu_dropout import Draw, dropout_attention
from lateprompt.backbone.kernels.cpu_mode import CpuKernels


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    torch.manual_seed(0)
    noise = Draw.of(torch.Size([1000, 1001]), rate).noise(torch.float64)
    assert noise.shape == (1000, 1001)
    mask = noise != 0
    assert abs(1 - mask.float().mean() - rate) < 2e-3
    assert abs(noise.max() * (1 - rate) - 1) < 1e-4
    assert noise.unique().numel() == 2
    columns = mask.float().mean(0)  # four neighbours come from one draw: none is biased
    assert (columns - (1 - rate)).abs().max() < 0.08
    assert abs(torch.corrcoef(mask[:, :4].float().T).fill_diagonal_(0)).max() < 0.13


def test_same_seed_same_mask_and_torch_goes_on_from_there():
    torch.manual_seed(3)
    first, after = Draw.of(torch.Size([7, 5]), 0.3).words, torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(Draw.of(torch.Size([7, 5]), 0.3).words, first)
    assert torch.equal(torch.rand(1), after)
    assert not torch.equal(Draw.of(torch.Size([7, 5]), 0.3).words, first)


def test_dropout_within_the_mode():
    hidden = torch.ones(64, 64, requires_grad=True)
    layer = torch.nn.Dropout(0.25)
    with CpuKernels():
        out = layer(hidden)
    assert out.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    out.sum().backward()
    assert torch.equal(hidden.grad, out.detach())
    with CpuKernels():
        assert torch.equal(layer.eval()(hidden), hidden)
        assert torch.equal(F.dropout(hidden, 0.0), hidden)
        assert F.dropout(hidden, 1.0).abs().sum() == 0


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal", "empty row"])
def test_attention_is_torchs_with_the_same_weights_dropped(kind, short, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(dropout, "_SHORT", 2 if short else 0)
    query, key, value = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7))
    kept = torch.rand(2, 3, 5, 7) > 0.3
    monkeypatch.setattr(Draw, "of", lambda shape, rate: Draw(kept.view(shape).to(torch.int16), 1, 1 / 0.7))
    visible = torch.rand(2, 1, 5, 7) > 0.2
    if kind == "causal":
        visible = torch.ones(5, 7, dtype=torch.bool).tril()
    if kind == "empty row":
        visible[:, :, 2] = False
    mask = None if kind == "none" else visible
    bias = None if mask is None else torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e30)
    scores = query @ key.transpose(-1, -2) * 0.5
    weights = (scores if bias is None else scores + bias).softmax(-1)
    if kind == "empty row":
        weights = weights * visible.any(-1, keepdim=True)
    expected = (weights * kept / 0.7) @ value
    given = bias if kind == "float" else mask
    with CpuKernels():
        if kind == "causal":
            out = F.scaled_dot_product_attention(query, key, value, None, 0.3, True, scale=0.5)
        else:
            out = F.scaled_dot_product_attention(query, key, value, given, dropout_p=0.3, scale=0.5)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    found = torch.autograd.grad((out * weight).sum(), (query, key, value))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("length", "kept"), [(32, [torch.int16]), (16, [torch.float32, torch.float32])])
def test_what_attention_keeps_for_the_backward_pass(length, kept):
    """Two bytes a weight; of short texts, whose weights are few, the weights before and after."""
    query, key, value = (torch.randn(2, 4, length, 8, requires_grad=True) for _ in range(3))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append((t.dtype, t.shape)) or t, lambda t: t):
        dropout_attention(query, key, value, None, 0.1)
    assert [dtype for dtype, shape in sizes if shape[-1] == shape[-2] == length] == kept


@pytest.mark.parametrize("change", ["in place", "another", "none"])
def test_a_mask_is_looked_at_once(change):
    query = torch.randn(2, 2, 4, 8)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    with CpuKernels() as mode:
        first = mode._visible(mask, torch.float32)
        if change == "in place":
            mask[:, :, 3, 0] = False
        if change == "another":
            mask = mask.flip(-1)
        again = mode._visible(mask[..., :4], torch.float32)
        assert (again is first) == (change == "none")
        assert torch.equal(again.bias == 0, mask)
        assert mode._visible(mask, torch.bfloat16).bias.dtype == torch.bfloat16
        F.scaled_dot_product_attention(query, query, query, mask, 0.1)


def test_without_dropout_torchs_own_kernel_runs():
    query = torch.randn(1, 2, 4, 8)
    with CpuKernels():
        out = F.scaled_dot_product_attention(query, query, query)
    assert torch.equal(out, F.scaled_dot_product_attention(query, query, query))


def test_a_mask_that_is_trained_gets_its_gradient():
    query = torch.randn(1, 2, 4, 8)
    mask = torch.zeros(4, 4, requires_grad=True)
    with CpuKernels():
        F.scaled_dot_product_attention(query, query, query, mask, 0.2).sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().sum() > 0


def test_masks_of_inference_mode_are_looked_at_each_time():
    query = torch.randn(2, 3, 4, 8)
    with CpuKernels(), torch.inference_mode():
        mask = torch.ones(4, 4, dtype=torch.bool)
        for seen in (4, 2):
            mask[:, seen:] = False
            torch.manual_seed(0)
            found = F.scaled_dot_product_attention(query, query, query, mask, 0.2)
            torch.manual_seed(0)
            assert torch.equal(found, F.scaled_dot_product_attention(query, query, query, mask.clone(), 0.2))
