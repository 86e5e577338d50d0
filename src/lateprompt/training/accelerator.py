"""Accelerate's `Accelerator`, one for each training run, beside whatever else the process has Accelerate for.

Accelerate keeps its state once for the whole process: the first `Accelerator` decides on device and precision, and
another one that wants others is refused. But runs in fp32 and in bf16, on a CPU and on a GPU, follow each other in one
process, go on at once in its threads, and stand beside the user's own `Accelerator`. So each run's has a state of its
own; only what a launcher has set up between processes is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin, get_mixed_precision_context_manager
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lateprompt.training.distributed import processes, whole_models
from lateprompt.utils.randomness import TURN

_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16"}


class RunAccelerator(Accelerator):  # type: ignore[misc]
    """An `Accelerator` of a training run, with a state that no other one shares.

    Model and optimizer are not passed to `prepare`, whose wrappers act at the model's `forward`: readouts call the
    backbone's layers past it. `add_gradients` takes their place: what is trained is small, so that one sum of all
    gradients a step is cheaper than a wrapper that overlaps them with the backward pass.

    Args:
        device: where the run computes.
        precision: fp32, or bf16 for bfloat16 autocast.

    Example:
        >>> cpu = torch.device("cpu")
        >>> [RunAccelerator(cpu, precision).mixed_precision for precision in ("fp32", "bf16")]
        ['no', 'bf16']
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        launched = processes().count > 1
        kinds = [AcceleratorState, GradientState] if launched else [AcceleratorState, GradientState, PartialState]
        with TURN, _separate_state(*kinds), whole_models():
            if not launched:
                PartialState(cpu=device.type == "cpu").device = device
            super().__init__(
                mixed_precision=_MIXED_PRECISION[precision],
                device_placement=False,
                # Not a launcher's number of steps: the recipe has its own, and weighs each batch by its rows.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            )
            # Made here, as it looks at the state that is Accelerate's at the time.
            self._autocast = get_mixed_precision_context_manager(self.native_amp)

    def autocast(self, autocast_handler: Any = None) -> AbstractContextManager[None]:
        """Mixed precision inside, if the run's precision is a mixed one."""
        return self._autocast  # type: ignore[no-any-return]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in one message for each float type."""
        if self.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # In one order everywhere: a set's order is each process's own, and sums would meet other processes' others.
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            own = [gradient for gradient in gradients if gradient.dtype == dtype]
            vector_to_parameters(self.reduce(parameters_to_vector(own)), own)

    def add(self, *values: float) -> tuple[float, ...]:
        """Numbers, each summed over the processes."""
        if self.num_processes == 1:
            return values
        return tuple(self.reduce(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist())


@contextmanager
def _separate_state(*kinds: type) -> Iterator[None]:
    """What is made of these classes inside shares its state with nothing outside, then and later.

    Each of Accelerate's state classes holds one dictionary, which its objects take for their attributes when made.
    """
    before = {kind: vars(kind)["_shared_state"] for kind in kinds}
    try:
        for kind in kinds:
            kind._shared_state = {}  # type: ignore[attr-defined]
        yield
    finally:
        for kind, state in before.items():
            kind._shared_state = state  # type: ignore[attr-defined]
