"""`lateprompt bench`: training steps of several methods side by side, interleaved, in one run.

All methods read the mask's hidden state through the same LM head over the same two words, in the same dtype, with the
same attention kernel and optimiser: what differs is the method. One row shows PEFT's prompt tuning out of the box, with
the whole vocabulary at every position, and one shows it with our dropout, which is cheaper on a CPU.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, RobertaConfig

from lateprompt.backbone.kernels.cpu_mode import CpuKernels
from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.experiments.baselines import BaselineBackbone, baseline_words
from lateprompt.experiments.methods import BASELINE, LATE_PROMPT_TOKENS, METHODS, ComparedMethod, Cost
from lateprompt.methods import adapter_config
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.base import pick_device
from lateprompt.predictors.loading import DTYPES, load_base, load_config, max_positions
from lateprompt.predictors.offload import OffloadedWeights
from lateprompt.readouts import Batch, LMHead, WordReadout
from lateprompt.runs.environment import memory_bytes, peak_memory_bytes, reset_peak_memory
from lateprompt.training.settings import ModelSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import borrowed, seeded
from lateprompt.utils.suggestions import unknown
from lateprompt.utils.validation import Count, OneOf, Seed, check_types

_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
SHAPES: dict[str, dict[str, Any]] = {"roberta-base": {}, "roberta-large": _LARGE}
"""Architectures that are benchmarked with random weights, without a hub."""
WORDS = (100, 200)


@dataclass
class BenchSettings:
    """What is measured.

    Args:
        model: a shape (roberta-base, roberta-large: random weights) or a folder or hub id of a masked LM.
        batch: rows in a batch.
        length: tokens in a row.
        prompt_layer: number of layers below the late prompt, or a fraction of the depth.
        dtype: float type of the frozen weights of all methods (but for those whose name says another).
        methods: which methods to measure, by name; default all but the compiled one.
        repeats: timed steps of each method; the median is printed.
        memory: measure each method's peak memory, in a fresh process of its own.
        seed: seed of weights and tokens.
        device: where to run; default a GPU if there is one.
    """

    model: str = "roberta-base"
    batch: Count = 16
    length: Count = 64
    prompt_layer: int | float | str = "0.5"
    dtype: Annotated[str, OneOf(tuple(DTYPES))] = "float32"
    methods: list[str] | None = None
    repeats: Count = 7
    memory: bool = True
    seed: Seed = 0
    device: str | None = None

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)
        for name in self.methods or ():
            if name not in METHODS:
                raise LatePromptError(unknown("method", name, METHODS))

    @property
    def names(self) -> list[str]:
        """The methods to measure."""
        return list(self.methods or (name for name, method in METHODS.items() if method.by_default))


class Bench:
    """A model and a batch, on which every method makes steps."""

    def __init__(self, settings: BenchSettings) -> None:
        settings.check()
        self.settings = settings
        self.device = pick_device(settings.device)
        self.config = self._config()
        self.layers = int(self.config.num_hidden_layers)
        self.prompt_layer = resolve_prompt_layer(settings.prompt_layer, self.layers)
        self._check_positions()
        numbers = torch.Generator().manual_seed(settings.seed)
        ids = torch.randint(5, self.config.vocab_size, (settings.batch, settings.length), generator=numbers)
        self.labels = (torch.arange(settings.batch) % len(WORDS)).to(self.device)
        self.batch = Batch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            read=torch.full((settings.batch,), settings.length // 2),
            labels=self.labels,
        ).to(self.device)

    def _check_positions(self) -> None:
        limit = max_positions(self.config)
        for name in self.settings.names:
            extra = METHODS[name].input_tokens
            if limit is not None and self.settings.length + extra > limit:
                raise LatePromptError(
                    f"length {self.settings.length!r} and {extra} prompt tokens of {name} exceed the {limit} positions "
                    f"of {self.settings.model!r}; give at most {limit - extra}, or leave it out of --methods"
                )

    def _config(self) -> Any:
        name = self.settings.model
        if name in SHAPES:
            return RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **SHAPES[name])
        return load_config(name)

    @cached_property
    def shared(self) -> Any:
        """One frozen model for the methods that leave it as it is."""
        return self.fresh_model()

    def fresh_model(self, dtype: str | None = None) -> Any:
        """The masked LM, in training mode, on the device."""
        name, dtype = self.settings.model, dtype or self.settings.dtype
        if name in SHAPES:
            with seeded(self.settings.seed):
                model: Any = AutoModelForMaskedLM.from_config(self.config, dtype=DTYPES[dtype])
        else:
            model = load_base(name, "masked_lm", dtype=dtype)
        return model.to(self.device).train()

    def stepper(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """One optimiser step of what is trainable in `model`."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)

        def step() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def step_of(self, method: ComparedMethod) -> Callable[[], None]:
        """What makes a training step of a compared method."""
        if method.is_late_prompt:
            return self._late_prompt(method)
        return self._out_of_the_box(method) if method.stock else self._baseline(method)

    def _backbone(self, method: ComparedMethod) -> tuple[Any, BaselineBackbone]:
        """The masked LM, and in its backbone's place a method of PEFT's, in training mode."""
        base = self.shared if method.leaves_the_model else self.fresh_model()
        return base, BaselineBackbone.around(base.base_model, method).train()

    def _baseline(self, method: ComparedMethod) -> Callable[[], None]:
        """A method of PEFT's with our readout, which computes the label words' scores at the read position alone."""
        base, backbone = self._backbone(method)
        readout = baseline_words(base, backbone, WORDS, "masked_lm", "labels")
        dropout = CpuKernels if method.fast_dropout and self.device.type == "cpu" else nullcontext

        def loss() -> torch.Tensor:
            with dropout():
                return readout.loss(self.batch)

        return self.stepper(backbone, loss)

    def _out_of_the_box(self, method: ComparedMethod) -> Callable[[], None]:
        """A method of PEFT's as its documentation has it: the whole vocabulary at every position."""
        head = LMHead(self.shared, self.shared.base_model)
        _, backbone = self._backbone(method)
        batch, k = self.batch, method.input_tokens
        targets = torch.full((len(batch.read), self.settings.length + k), -100, device=self.device)
        words = torch.tensor(WORDS, device=self.device)[self.labels]
        targets[torch.arange(len(batch.read), device=self.device), batch.read + k] = words

        def loss() -> torch.Tensor:
            hidden = backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            return F.cross_entropy(head(hidden).flatten(0, 1).float(), targets.flatten())

        return self.stepper(backbone, loss)

    def _late_prompt(self, method: ComparedMethod) -> Callable[[], None]:
        """A late prompt, with the trunk run at each step or its states stored (and its weights freed)."""
        settings = ModelSettings(
            self.settings.model, method.method, dict(method.options), self.prompt_layer, LATE_PROMPT_TOKENS
        )
        model = wrap(self.fresh_model(method.dtype), adapter_config(settings, {}))
        model.train()
        layer: Any = model.base_model.layer
        layer.compile_tail = method.compiled
        readout = WordReadout(model.get_base_model(), layer, WORDS, "masked_lm", "labels")
        batch = self.batch
        if method.states:
            batch = self._with_states(batch, layer, method)
            OffloadedWeights.offload(model.get_base_model(), layer, self.prompt_layer, readout)
        return self.stepper(model, lambda: readout.loss(batch))

    @torch.no_grad()
    def _with_states(self, batch: Batch, layer: Any, method: ComparedMethod) -> Batch:
        """The batch with the states that a store would give: of the prompt layer, or of all layers above too."""
        arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if not method.layers:
            trunk = layer.split_at(self.prompt_layer).trunk.eval()
            return replace(batch, trunk_states=trunk(**arguments).last_hidden_state)
        hidden = layer.frozen.above(0)(**arguments, output_hidden_states=True).hidden_states
        states = {p: hidden[p] for p in range(self.prompt_layer, self.layers)}
        if not method.keys:
            return replace(batch, layer_states=states)
        return replace(batch, trunk_states=states[self.prompt_layer], text_keys=layer.frozen.text_keys(states))

    def floating_operations(self, cost: Cost) -> float:
        """Matrix-product operations of a step: linear layers and attention, 2 per multiply-add."""
        d, inner = self.config.hidden_size, self.config.intermediate_size
        length = self.settings.length + cost.extra_positions
        linear = 2 * (4 * d * d + 2 * d * inner)
        attention = 4 * length * d  # two products forward, four backward
        layers = cost.forward * (linear + attention) + cost.backward * (linear + 2 * attention) + cost.weights * linear
        queries = 2 * cost.queries * (linear + 4 * length * d)
        return float(self.settings.batch * (length * layers + queries))

    def ceiling(self, dtype: str) -> Callable[[], float]:
        """A matrix product of the model's own shape; returns its operations per second."""
        rows, d = self.settings.batch * self.settings.length, self.config.hidden_size
        a = torch.randn(rows, d, device=self.device, dtype=DTYPES[dtype])
        b = torch.randn(d, self.config.intermediate_size, device=self.device, dtype=DTYPES[dtype])

        def measure() -> float:
            started = time.perf_counter()
            for _ in range(4):
                torch.mm(a, b)
            self.synchronize()
            return float(4 * 2 * rows * d * b.shape[1] / (time.perf_counter() - started))

        return measure

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Method = ComparedMethod
"""Its name in earlier releases."""


def run_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure the methods in turn, `repeats` times around, after one step each that is not counted.

    Returns:
        `ceiling_gflops`, and `rows` with one entry per method.
    """
    bench = Bench(settings)  # loads no weights yet; a setting that cannot be is found here, not after minutes
    with borrowed(settings.seed, bench.device):  # the steps draw as PEFT's do, from torch's generators
        return _measure_steps(bench, settings)


def _measure_steps(bench: Bench, settings: BenchSettings) -> dict[str, Any]:
    names = settings.names
    # Before anything is big here: a process of its own needs room.
    memory = {name: peak_memory(settings, name) for name in names} if settings.memory else {}
    steps = {name: bench.step_of(METHODS[name]) for name in names}
    dtypes = {name: METHODS[name].dtype or settings.dtype for name in names}
    ceilings = {dtype: bench.ceiling(dtype) for dtype in {settings.dtype, *dtypes.values()}}
    rates: dict[str, list[float]] = {dtype: [] for dtype in ceilings}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(settings.repeats + 1):
        for dtype, measure in ceilings.items():
            rate = measure()
            if turn:
                rates[dtype].append(rate)
        for name in names:
            started = time.perf_counter()
            steps[name]()
            bench.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    best = {dtype: statistics.median(values) for dtype, values in rates.items()}
    rows = []
    for name in names:
        method, seconds = METHODS[name], statistics.median(times[name])
        operations = bench.floating_operations(method.cost(bench.layers, bench.prompt_layer))
        # Pair by pair: both were timed in the same turn, so the machine's drift cancels.
        pairs = zip(times[name], times.get(BASELINE, []), strict=BASELINE in times)
        ratios = [base / own for own, base in pairs]
        row: dict[str, Any] = {
            "method": method.title,
            "name": name,
            "states": method.states,
            "dtype": dtypes[name],
            "step_ms": 1000 * seconds,
            "tokens_per_second": settings.batch * settings.length / seconds,
            "speed_vs_prompt_tuning": statistics.median(ratios) if ratios else None,
            "peak_memory_bytes": memory.get(name),
            "memory_vs_prompt_tuning": memory[name] / memory[BASELINE] if BASELINE in memory else None,
            "ceiling_fraction": operations / seconds / best[dtypes[name]],
        }
        rows.append(row)
    return {"ceiling_gflops": best[settings.dtype] / 1e9, "rows": rows}


def peak_memory(settings: BenchSettings, method: str) -> int:
    """Peak memory of three training steps of one method in a fresh process: weights, activations, optimiser.

    Without Python and its libraries, and without what building the model took for a while.
    """
    arguments = json.dumps({"settings": asdict(settings), "method": method})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lateprompt.experiments.bench", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LatePromptError(
            f"the process measuring the memory of {method!r} failed: {done.stderr.strip().splitlines()[-1:]}"
        )
    return int(done.stdout)


def _measure_memory(arguments: str) -> int:
    given = json.loads(arguments)
    bench = Bench(BenchSettings(**given["settings"]))
    with borrowed(bench.settings.seed, bench.device):
        before = memory_bytes(bench.device)
        step = bench.step_of(METHODS[given["method"]])
        reset_peak_memory()
        for _ in range(3):
            step()
        bench.synchronize()
    return peak_memory_bytes(bench.device) - before


if __name__ == "__main__":
    print(_measure_memory(sys.argv[1]))
