"""Data-parallel training: each process takes its share of every batch, gradients and scores are added up.

`accelerate launch` (or torchrun) starts the processes; without it there is one, and nothing here does anything. What is
trained is small, so one sum of all gradients a step is cheaper than a wrapper that overlaps them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import distributed, nn


class Processes:
    """This process among those that train together.

    Args:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes; None: no choice was made for it.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of a batch's rows: every `count`-th, so that lengths stay alike; it may be empty."""
        return rows[self.rank :: self.count]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # In one order everywhere: a set's order is each process's own, and sums would meet other processes' others.
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            own = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in own])
            distributed.all_reduce(flat)
            for gradient, part in zip(own, flat.split([gradient.numel() for gradient in own]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def add(self, *values: float) -> tuple[float, ...]:
        """Numbers, each summed over the processes."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return tuple(total.tolist())

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes first, the others follow when it is through."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


@cache
def processes() -> Processes:
    """This process among those that a launcher has started together."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes, state.device)
