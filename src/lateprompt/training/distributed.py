"""The processes that train together: `accelerate launch` (or torchrun) starts them; without it there is one.

For those who ask only who they are and what the others have; what a training run needs is in `training.accelerator`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch


@dataclass
class Processes:
    """This process among those that train together.

    Args:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes; None: no choice was made for it.

    Example:
        >>> Processes(rank=1, count=2).share(np.arange(5))
        array([1, 3])
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def share(self, rows: np.ndarray) -> np.ndarray:
        """This process's share of a batch's rows: every `count`-th, so that lengths stay alike; it may be empty."""
        return rows[self.rank :: self.count]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all of them."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def main_first(self) -> AbstractContextManager[None]:
        """The main process goes first, the others follow when it is through."""
        if self.count == 1:
            return nullcontext()
        from accelerate import PartialState

        return PartialState().main_process_first()  # type: ignore[no-any-return]


_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What `accelerate launch` can be configured to cut a model up with."""


@contextmanager
def whole_models() -> Iterator[list[str]]:
    """Accelerate shards nothing inside, whatever its launcher was configured for; gives what that was.

    Readouts call the backbone's layers past the model's `forward`, and the wrappers of FSDP and DeepSpeed put a sharded
    model's weights together there alone.
    """
    from accelerate.utils import parse_flag_from_env, patch_environment

    asked = [kind for kind in _SHARDING if parse_flag_from_env(f"ACCELERATE_USE_{kind}")]
    with patch_environment(**{f"ACCELERATE_USE_{kind}": "false" for kind in asked}):
        yield asked


@cache
def processes() -> Processes:
    """This process among those that a launcher has started together."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    with whole_models() as asked:
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    if asked and state.is_main_process:
        warnings.warn(
            f"{', '.join(asked)} is configured, but a late prompt's model is not sharded: each process holds all of it "
            "and computes its share of each batch",
            stacklevel=2,
        )
    return Processes(state.process_index, state.num_processes, state.device)
