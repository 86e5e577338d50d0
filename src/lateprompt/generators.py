"""Prompt generators: hidden states at the prompt layer to k prompt vectors (Liu et al. 2022, section 3.2).

Each is one class and one entry of `GENERATORS`. `forward(hidden, source_mask)` takes hidden states
(batch, length, hidden) and the positions it may read (batch, length), and gives the prompt (batch, k, hidden).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lateprompt.errors import LatePromptError
from lateprompt.suggestions import unknown


@dataclass(frozen=True)
class GeneratorSpec:
    """The shape of a generator.

    Args:
        hidden_size: d, the backbone's width.
        num_prompt_tokens: k.
        bottleneck_dim: m, the width between the two projections.
        dropout: dropout rate on the prompt while training.
        reads_last: read the last source position instead of the first (decoders).
        pool_last_source: whether pooling covers the last source position. The authors' GPT-2 code leaves it out.
        init_std: standard deviation of a free prompt's normal initialisation.
    """

    hidden_size: int
    num_prompt_tokens: int = 5
    bottleneck_dim: int = 128
    dropout: float = 0.0
    reads_last: bool = False
    pool_last_source: bool = True
    init_std: float = 0.02


class PromptGenerator(nn.Module):
    """Base: keeps the spec and the prompt's dropout."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_prompt_tokens = spec.num_prompt_tokens
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, hidden: torch.Tensor, source_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.dropout(self.prompt_of(hidden, source_mask))  # type: ignore[no-any-return]

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} must say how it makes a prompt: override prompt_of")


class FixedPrompt(PromptGenerator):
    """k free vectors, the same for every instance (the paper's "LPT w/o PG"): k·d parameters."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.prompt = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.hidden_size))
        nn.init.normal_(self.prompt, std=spec.init_std)

    @torch.no_grad()
    def init_from_vocabulary(self, embeddings: torch.Tensor) -> None:
        """Start from the embeddings (vocabulary, hidden) of k random words (Lester et al. 2021)."""
        rows = torch.randint(embeddings.shape[0], (self.num_prompt_tokens,))
        self.prompt.copy_(embeddings[rows.to(embeddings.device)])

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        return self.prompt.expand(hidden.shape[0], -1, -1)


class NaiveGenerator(PromptGenerator):
    """NPG: one hidden state h to all k vectors, W_up ReLU(W_down h), with W_up: m → k·d.

    h is the hidden state at the first readable position (an encoder's [CLS]), or at the last one (a decoder's last
    source token). Parameters: d·m + m + m·k·d + k·d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.num_prompt_tokens * spec.hidden_size)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        return self.up(torch.relu(self.down(state))).view(hidden.shape[0], self.num_prompt_tokens, -1)  # type: ignore[no-any-return]


class PoolingGenerator(PromptGenerator):
    """A prompt vector per slot of an adaptive pooling: W_up ReLU(pool(W_down h_1 … W_down h_n)), with W_up: m → d.

    Slot i of k covers the readable positions floor(i·n/k) … ceil((i+1)·n/k)-1 of the n that an instance has; padding is
    never pooled, and with n < k slots share positions. All readable positions are pooled by default; with
    `pool_last_source=False` the last one is left out, as the authors' GPT-2 code does.
    Parameters: d·m + m + m·d + d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size)

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Pool `slots` (batch, k, width, m) over `inside` (batch, k, width) to (batch, k, m)."""
        raise TypeError(f"{type(self).__name__} must say how it pools: override pool")

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        if source_mask is None:
            source_mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        positions, inside = pooling_slots(source_mask, self.num_prompt_tokens, skip_last=not self.spec.pool_last_source)
        low = self.down(hidden)
        batch, k, width = positions.shape
        index = positions.view(batch, k * width, 1).expand(-1, -1, low.shape[-1])
        slots = low.gather(1, index).view(batch, k, width, -1)
        return self.up(torch.relu(self.pool(slots, inside)))  # type: ignore[no-any-return]


class MaxPoolingGenerator(PoolingGenerator):
    """MPPG: adaptive max pooling."""

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        return slots.masked_fill(~inside[..., None], float("-inf")).amax(2)


class AveragePoolingGenerator(PoolingGenerator):
    """APPG: adaptive average pooling."""

    def pool(self, slots: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        weights = inside.to(slots.dtype)
        # Filled, not multiplied by zero: padding may hold inf or nan.
        return slots.masked_fill(~inside[..., None], 0.0).sum(2) / weights.sum(2, keepdim=True)


class AttentionPoolingGenerator(PromptGenerator):
    """ATPG: a prompt vector per query of an attention pooling: W_up ReLU(Σ_j a_ij W_down h_j).

    a_i = softmax_j(q_i·W_down h_j): k trained queries of width m look at all readable positions of the instance,
    where the paper's generators read its first token, or cut its text into k pieces. Not in the paper.
    Parameters: d·m + m + k·m + m·d + d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.query = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.bottleneck_dim))
        nn.init.normal_(self.query, std=spec.bottleneck_dim**-0.5)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        low = self.down(hidden)
        scores = F.linear(low, self.query).transpose(1, 2)  # query @ low.mT rounds otherwise once query is frozen
        if source_mask is not None:
            seen = source_mask.bool()
            first = torch.arange(seen.shape[1], device=seen.device) == 0
            seen = seen | (first & ~seen.any(1, keepdim=True))  # a row with nothing marked reads its first position
            scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
            low = low.masked_fill(~seen[..., None], 0.0)  # padding may hold inf or nan
        return self.up(torch.relu(scores.softmax(-1) @ low))  # type: ignore[no-any-return]


class ResidualGenerator(FixedPrompt):
    """RPG: k free vectors, each corrected by one hidden state h: p_i + m^-1/2 W_up (g_i ⊙ ReLU(W_down h/rms(h))).

    h is the state that NPG reads; g_i is a trained gate of width m per vector, so that one W_up: m → d serves them all.
    W_up starts at zero: a fresh generator is exactly a fixed prompt, and learns how much of it depends on the instance.
    h is divided by its root mean square, because the states in a decoder's middle have very unequal norms. Not in the
    paper. Parameters: k·d + d·m + m + k·m + m·d.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.down = nn.Linear(spec.hidden_size, spec.bottleneck_dim)
        self.gate = nn.Parameter(torch.empty(spec.num_prompt_tokens, spec.bottleneck_dim))
        nn.init.normal_(self.gate)
        self.up = nn.Linear(spec.bottleneck_dim, spec.hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def prompt_of(self, hidden: torch.Tensor, source_mask: torch.Tensor | None) -> torch.Tensor:
        state = read_state(hidden, source_mask, last=self.spec.reads_last)
        low = torch.relu(self.down(F.rms_norm(state, state.shape[-1:])))
        return self.prompt + self.up(low[:, None] * self.gate) * self.spec.bottleneck_dim**-0.5  # type: ignore[no-any-return]


GENERATORS: dict[str, type[PromptGenerator]] = {
    "fixed": FixedPrompt,
    "npg": NaiveGenerator,
    "mppg": MaxPoolingGenerator,
    "appg": AveragePoolingGenerator,
    "atpg": AttentionPoolingGenerator,
    "rpg": ResidualGenerator,
}


def parameters_of(name: str, width: int, bottleneck_dim: int, num_prompt_tokens: int) -> int:
    """A generator's parameters: fixed k d; rpg k d + d m + m + k m + m d; npg d m + m + m k d + k d.

    The pooling ones: d m + m + m d + d, and k m more for atpg.
    """
    d, m, k = width, bottleneck_dim, num_prompt_tokens
    if name == "fixed":
        return k * d
    if name == "rpg":
        return k * d + d * m + m + k * m + m * d
    outputs = k * d if name == "npg" else d
    return d * m + m + m * outputs + outputs + (k * m if name == "atpg" else 0)


def check_generator(name: str) -> None:
    """Raise LatePromptError unless `name` is in the table of generators."""
    if name not in GENERATORS:
        raise LatePromptError(unknown("generator", name, GENERATORS))


def build_generator(name: str, spec: GeneratorSpec) -> PromptGenerator:
    """The generator of that name; LatePromptError for an unknown one."""
    check_generator(name)
    return GENERATORS[name](spec)


def read_state(hidden: torch.Tensor, mask: torch.Tensor | None, *, last: bool) -> torch.Tensor:
    """The hidden state (batch, hidden) at each row's first, or last, position of `mask` (None: all positions)."""
    if mask is None:
        return hidden[:, -1 if last else 0]
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), read_position(mask, last=last)]


def read_position(mask: torch.Tensor, *, last: bool) -> torch.Tensor:
    """Each row's first, or last, marked position (batch,) of `mask` (batch, length)."""
    order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    # No position marked: the largest score is 0, argmax gives 0; no host synchronisation either way.
    return (mask.to(order.dtype) * (order if last else order.flip(0))).argmax(1)


def pooling_slots(mask: torch.Tensor, k: int, *, skip_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions each slot of an adaptive pooling covers, over each row's own marked positions.

    Args:
        mask: (batch, length), nonzero where a row may be read.
        k: number of slots.
        skip_last: leave out each row's last marked position.

    Returns:
        positions (batch, k, width) into the row, and which of them belong to the slot (batch, k, width); width is the
        same for all: ceil(length / k) + 1. A row with nothing marked reads its first position.
    """
    mask = mask.bool()
    length = mask.shape[1]
    counts = (mask.sum(1) - int(skip_last)).clamp(min=1)[:, None]
    order = torch.argsort(~mask, dim=1, stable=True)  # marked positions first, in their own order
    slot = torch.arange(k, device=mask.device)[None]
    start = slot * counts // k
    end = -(-(slot + 1) * counts // k)
    width = -(-length // k) + 1
    rank = start[..., None] + torch.arange(width, device=mask.device)
    inside = rank < end[..., None]
    rank = rank.clamp(max=length - 1)
    return order.gather(1, rank.view(rank.shape[0], -1)).view_as(rank), inside
