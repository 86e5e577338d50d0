"""Random numbers that depend on a seed alone, and leave the user's random number generators as they are.

torch initialises layers and applies dropout with generators that the whole process shares: other threads draw from
them too, and a seed set there is set for all. Nothing here sets a seed of torch, numpy or `random`.

- Inside `seeded`, initialisation draws from a generator of its own.
- A training run has `RunNumbers`. On a CPU it draws from a generator of its own. On a GPU, under `torch.compile` and
  with gradient checkpointing torch accepts no generator: the shared ones get the run's state for a step, and their own
  state back afterwards.
- `TURN` is a lock for what changes or depends on the state of the process: loading (transformers sets torch's default
  dtype and replaces initialisation functions while it loads) and computing. Threads take turns, step by step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

TURN = threading.RLock()
"""A lock, held while a model is loaded or a step is computed; never while waiting for the lock of a file."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OWN: ContextVar[torch.Generator | None] = ContextVar("lateprompt_generator", default=None)
_aten = torch.ops.aten


def own_generator() -> torch.Generator | None:
    """Return the generator of the run that computes in this thread; None: there is none, use torch's."""
    return _OWN.get()


def in_turn(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function that changes or depends on the state of the process, so that one call runs at a time."""

    @functools.wraps(function)
    def alone(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with TURN:
            return function(*args, **kwargs)

    return alone


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let this thread draw the numbers that `torch.manual_seed(seed)` would give, without setting that seed."""
    with TURN, OwnNumbers(torch.Generator().manual_seed(seed)):
        yield


class OwnNumbers(TorchDispatchMode):
    """While open, random operations of this thread draw from a generator of their own instead of the shared one.

    Args:
        generator: for tensors on its device; those elsewhere get one with the same seed.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = {generator.device: generator}
        self._seed = generator.initial_seed()

    def _generator(self, device: torch.device) -> torch.Generator:
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
        device = given.device if given is not None else torch.device(kwargs.get("device") or "cpu")
        if device.type == "meta":  # nothing is drawn there
            return func(*args, **kwargs)
        if func in _IN_PLACE:
            return _IN_PLACE[func](self._generator(device), *args, **kwargs)
        func = _WITH_GENERATOR.get(func, func)
        if _takes_generator(func) and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator(device)
        return func(*args, **kwargs)


@functools.cache
def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


_WITH_GENERATOR = {
    _aten.rand.default: _aten.rand.generator,
    _aten.randn.default: _aten.randn.generator,
    _aten.randint.default: _aten.randint.generator,
    _aten.randint.low: _aten.randint.low_generator,
    _aten.randperm.default: _aten.randperm.generator,
}
"""Operations without a generator to the same operation with one."""


def _like(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def drawn(generator: torch.Generator, like: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return draw(torch.empty_like(like, **kwargs), *args, generator=generator)

    return drawn


def _native_dropout(
    generator: torch.Generator, input: torch.Tensor, rate: float, train: bool | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if train is False or rate == 0:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    mask = torch.empty_like(input).bernoulli_(1 - rate, generator=generator).bool()
    return input * mask * (0.0 if rate == 1 else 1 / (1 - rate)), mask


_IN_PLACE: dict[Any, Callable[..., Any]] = {
    _aten.rand_like.default: _like(torch.Tensor.uniform_),
    _aten.randn_like.default: _like(torch.Tensor.normal_),
    _aten.randint_like.default: _like(lambda empty, high, generator: empty.random_(0, high, generator=generator)),
    _aten.randint_like.low_dtype: _like(
        lambda empty, low, high, generator: empty.random_(low, high, generator=generator)
    ),
    _aten.native_dropout.default: _native_dropout,
}
"""Operations that cannot take a generator to functions that draw such numbers with one."""


class RunNumbers:
    """The random numbers of a training run.

    Args:
        seed: the run's seed.
        device: where it computes.
        rank: number of this process among those that train together; each draws other numbers.

    Example:
        >>> numbers = RunNumbers(42, torch.device("cpu"))
        >>> with numbers.step(shared=True):
        ...     dropped = torch.nn.functional.dropout(torch.ones(2, 3), 0.5)
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0) -> None:
        # Other numbers than initialisation draws from the same seed.
        first = int(np.random.SeedSequence([seed, rank, 1]).generate_state(1, np.uint64)[0]) >> 1
        self.generator = torch.Generator().manual_seed(first)
        self._places = [torch.device("cpu"), *([device] if device.type != "cpu" else [])]
        self._shared = [torch.Generator(place).manual_seed(first).get_state() for place in self._places]

    @contextmanager
    def step(self, *, shared: bool) -> Iterator[None]:
        """Compute one step inside: no other thread computes meanwhile, and random numbers are the run's.

        Args:
            shared: put the run's state into torch's shared generators until the step ends. Without it, the step must
                draw from `own_generator` alone, as our dropout on a CPU does; the shared generators are left alone.
        """
        with TURN:
            if shared:
                with self._lent():
                    yield
                return
            token = _OWN.set(self.generator)
            try:
                yield
            finally:
                _OWN.reset(token)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Put the run's state into torch's shared generators, and afterwards their own state back."""
        before = [_state(place) for place in self._places]
        try:
            for place, state in zip(self._places, self._shared, strict=True):
                _set_state(place, state)
            yield
            self._shared = [_state(place) for place in self._places]
        finally:
            for place, state in zip(self._places, before, strict=True):
                _set_state(place, state)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the generators' states, for a checkpoint."""
        shared = {place.type: state.clone() for place, state in zip(self._places, self._shared, strict=True)}
        return {"own": self.generator.get_state(), **shared}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Set the states that `state` returned; checkpoints of earlier versions have no key `own`."""
        self.generator.set_state(state.get("own", state["cpu"]))
        self._shared = [state.get(place.type, kept) for place, kept in zip(self._places, self._shared, strict=True)]


def _state(place: torch.device) -> torch.Tensor:
    if place.type == "cpu":
        return torch.get_rng_state()
    module: Any = torch.get_device_module(place)
    return module.get_rng_state() if place.index is None else module.get_rng_state(place)  # type: ignore[no-any-return]


def _set_state(place: torch.device, state: torch.Tensor) -> None:
    if place.type == "cpu":
        torch.set_rng_state(state)
        return
    module: Any = torch.get_device_module(place)
    module.set_rng_state(state) if place.index is None else module.set_rng_state(state, place)


@contextmanager
def borrowed(seed: int, device: torch.device) -> Iterator[None]:
    """Let torch's shared generators start from `seed` inside, and have their own state afterwards; for measurements."""
    numbers = RunNumbers(seed, device)
    with numbers.step(shared=True):
        yield
