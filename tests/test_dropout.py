"""Cheap dropout is dropout: its rate, its scale, its gradients; and it stays out of the way elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lateprompt import dropout
from lateprompt.dropout import FastDropout, dropout_attention, keep_mask


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    torch.manual_seed(0)
    mask, scale = keep_mask(torch.Size([1000, 1001]), rate)
    assert mask.shape == (1000, 1001)
    assert abs(1 - mask.float().mean() - rate) < 2e-3
    assert abs(scale * (1 - rate) - 1) < 1e-4
    columns = mask.float().mean(0)  # four neighbours come from one draw: none is biased
    assert (columns - (1 - rate)).abs().max() < 0.08
    assert abs(torch.corrcoef(mask[:, :4].float().T).fill_diagonal_(0)).max() < 0.13


def test_same_seed_same_mask_and_torch_goes_on_from_there():
    torch.manual_seed(3)
    first, after = keep_mask(torch.Size([7, 5]), 0.3)[0], torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(keep_mask(torch.Size([7, 5]), 0.3)[0], first)
    assert torch.equal(torch.rand(1), after)
    assert not torch.equal(keep_mask(torch.Size([7, 5]), 0.3)[0], first)


def test_dropout_within_the_mode():
    hidden = torch.ones(64, 64, requires_grad=True)
    layer = torch.nn.Dropout(0.25)
    with FastDropout():
        out = layer(hidden)
    assert out.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    out.sum().backward()
    assert torch.equal(hidden.grad, out.detach())
    with FastDropout():
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
    monkeypatch.setattr(dropout, "keep_mask", lambda shape, rate: (kept.view(shape), 1 / 0.7))
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
    with FastDropout():
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


@pytest.mark.parametrize(("length", "kept"), [(32, [torch.bool]), (16, [torch.bool, torch.float32])])
def test_what_attention_keeps_for_the_backward_pass(length, kept):
    """One byte a weight; of short texts, whose weights are few, the weights too."""
    query, key, value = (torch.randn(2, 4, length, 8, requires_grad=True) for _ in range(3))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append((t.dtype, t.shape)) or t, lambda t: t):
        dropout_attention(query, key, value, None, 0.1)
    assert [dtype for dtype, shape in sizes if shape[-1] == shape[-2] == length] == kept


def test_without_dropout_torchs_own_kernel_runs():
    query = torch.randn(1, 2, 4, 8)
    with FastDropout():
        out = F.scaled_dot_product_attention(query, query, query)
    assert torch.equal(out, F.scaled_dot_product_attention(query, query, query))


def test_a_mask_that_is_trained_gets_its_gradient():
    query = torch.randn(1, 2, 4, 8)
    mask = torch.zeros(4, 4, requires_grad=True)
    with FastDropout():
        F.scaled_dot_product_attention(query, query, query, mask, 0.2).sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().sum() > 0
