"""PHM layers: sums of Kronecker products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lateprompt.peft_method.extra import PHMLinear


@pytest.mark.parametrize("sizes", [(8, 12, 1), (8, 12, 2), (8, 12, 4), (16, 48, 8)])
def test_phm_is_a_sum_of_kronecker_products(sizes):
    torch.manual_seed(0)
    width, out, n = sizes
    layer = PHMLinear(width, out, n).double()
    weight = sum(torch.kron(a, b) for a, b in zip(layer.phm_rule, layer.phm_weight, strict=True))
    torch.testing.assert_close(layer.weight, weight, atol=1e-14, rtol=0)
    x = torch.randn(2, 3, width, dtype=torch.double)
    torch.testing.assert_close(layer(x), x @ weight + layer.bias, atol=1e-13, rtol=0)
    assert sum(p.numel() for p in layer.parameters()) == n**3 + width * out // n + out
    assert copy.deepcopy(layer)(x).shape == (2, 3, out)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_phm_starts_with_the_variance_of_a_linear_layer():
    torch.manual_seed(0)
    for n in (2, 4, 8):
        layers = [PHMLinear(256, 128, n).weight.std() for _ in range(30)]
        assert torch.stack(layers).square().mean().sqrt().item() == pytest.approx(
            nn.Linear(256, 128).weight.std().item(), rel=0.15
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 12, 4), "n 4 does not divide in_features 10"),
        ((12, 10, 4), "n 4 does not divide out_features 10"),
        ((8, 8, 0), "n 0"),
        ((0, 8, 2), "in_features 0"),
        ((8, 2.0, 2), "out_features 2.0"),
    ],
)
def test_phm_sizes_that_make_no_sense(sizes, message):
    with pytest.raises(ValueError, match=message):
        PHMLinear(*sizes)
