"""Each training run's `Accelerator` has a state of its own, and so leaves everybody else's alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState, GradientState

from lateprompt.training.accelerator import RunAccelerator

CPU = torch.device("cpu")


@pytest.fixture
def fresh():
    """Accelerate as it is in a new process; put back as it was afterwards."""
    kinds = (AcceleratorState, PartialState, GradientState)
    before = {kind: vars(kind)["_shared_state"] for kind in kinds}
    for kind in kinds:
        kind._shared_state = {}
    yield
    for kind, state in before.items():
        kind._shared_state = state


def autocasts(accelerator) -> bool:
    with accelerator.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_precisions_side_by_side(fresh):
    runs = [RunAccelerator(CPU, precision) for precision in ("fp32", "bf16", "fp32")]
    assert [autocasts(run) for run in runs] == [False, True, False]
    assert [run.mixed_precision for run in runs] == ["no", "bf16", "no"]


def test_devices_side_by_side(fresh):
    """No tensor is put there: a device that this machine need not have."""
    runs = [RunAccelerator(torch.device(name), "fp32") for name in ("cpu", "cuda:1", "cpu")]
    assert [str(run.device) for run in runs] == ["cpu", "cuda:1", "cpu"]


def test_a_user_may_have_an_accelerator_afterwards(fresh):
    RunAccelerator(CPU, "fp32")
    assert not PartialState._shared_state
    assert autocasts(Accelerator(mixed_precision="bf16", cpu=True))


def test_a_users_accelerator_stays_as_it_was(fresh):
    theirs = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=3)
    ours = RunAccelerator(CPU, "fp32")
    assert (theirs.mixed_precision, theirs.gradient_accumulation_steps) == ("bf16", 3)
    assert (ours.mixed_precision, ours.gradient_accumulation_steps) == ("no", 1)
    assert (autocasts(theirs), autocasts(ours)) == (True, False)
    assert AcceleratorState().mixed_precision == "bf16"


def test_threads_have_their_own(fresh):
    with ThreadPoolExecutor(8) as pool:
        kinds = ["fp32", "bf16"] * 20
        runs = list(pool.map(lambda precision: RunAccelerator(CPU, precision), kinds))
    assert [autocasts(run) for run in runs] == [precision == "bf16" for precision in kinds]
    assert not PartialState._shared_state


def test_a_launchers_accumulation_is_not_the_recipes(fresh, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    value = torch.ones((), requires_grad=True)
    RunAccelerator(CPU, "fp32").backward(value * 2)
    assert value.grad == 2


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_launchers_sharding_is_left_out(kind, fresh, monkeypatch):
    """The backward pass would be DeepSpeed's, of a model that it has wrapped."""
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    value = torch.ones((), requires_grad=True)
    accelerator = RunAccelerator(CPU, "fp32")
    accelerator.backward(value * 2)
    assert value.grad == 2
    assert accelerator.distributed_type == DistributedType.NO
