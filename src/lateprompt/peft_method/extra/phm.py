"""Parameterised hypercomplex multiplication (Zhang et al., ICLR 2021, https://openreview.net/forum?id=rcQdycl0zyk).

The linear layer of S-IDPG's generator (Wu et al., NAACL 2022, https://aclanthology.org/2022.naacl-main.403):
y = x W + b with W = Σ_i A_i ⊗ B_i, i = 1..n, where A is (n, n, n), B is (n, in/n, out/n) and ⊗ is the Kronecker
product.

Trained parameters: n³ + in · out / n + out.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from lateprompt.utils.errors import LatePromptError


class PHMLinear(nn.Module):
    """A linear layer whose weight is a sum of n Kronecker products: about 1/n of the parameters.

    A starts as N(0, 1/n) and B uniform, so that the weight has the variance of `nn.Linear`'s at its start.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        n: the number of products; it divides both widths.

    Raises:
        LatePromptError: a size below 1, or an n that does not divide a width.

    Example:
        >>> import torch
        >>> from lateprompt.peft_method.extra import PHMLinear
        >>> layer = PHMLinear(16, 32, n=4)
        >>> layer(torch.randn(2, 16)).shape, sum(parameter.numel() for parameter in layer.parameters())
        (torch.Size([2, 32]), 224)
    """

    def __init__(self, in_features: int, out_features: int, n: int = 4) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features), ("n", n)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise LatePromptError(f"{name} {size!r} is no size; give a whole number from 1")
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size % n:
                raise LatePromptError(f"n {n} does not divide {name} {size}; choose an n that divides both widths")
        self.in_features, self.out_features, self.n = in_features, out_features, n
        self.phm_rule = nn.Parameter(torch.empty(n, n, n))
        self.phm_weight = nn.Parameter(torch.empty(n, in_features // n, out_features // n))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.in_features)
        nn.init.normal_(self.phm_rule, std=1.0 / math.sqrt(self.n))
        nn.init.uniform_(self.phm_weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    @property
    def weight(self) -> torch.Tensor:
        """W (in, out)."""
        product = torch.einsum("iab,icd->acbd", self.phm_rule, self.phm_weight)
        return product.reshape(self.in_features, self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        return x @ self.weight + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, n={self.n}"
