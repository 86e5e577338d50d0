"""`lateprompt bench`: training steps of several methods side by side, interleaved, in one run.

All methods read the mask's hidden state through the same LM head over the same two words, in the same dtype, with the
same attention kernel and optimiser: what differs is the method. One row shows PEFT's prompt tuning out of the box.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import peft
import torch
from torch import nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaForMaskedLM

from lateprompt.classifier import pick_device
from lateprompt.config import LatePromptConfig
from lateprompt.families import core_of, num_layers_of
from lateprompt.pretrained import DTYPES, load_base, load_config
from lateprompt.readout import Batch, LMHead, WordReadout
from lateprompt.run import peak_memory_bytes
from lateprompt.split import resolve_prompt_layer

_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
SHAPES: dict[str, dict[str, Any]] = {"roberta-base": {}, "roberta-large": _LARGE}
"""Architectures that are benchmarked with random weights, without a hub."""
WORDS = (100, 200)
BASELINE = "prompt tuning 20"


@dataclass
class BenchSettings:
    """What is measured.

    Args:
        model: a shape (roberta-base, roberta-large: random weights) or a folder or hub id of a masked LM.
        batch: rows in a batch.
        length: tokens in a row.
        prompt_layer: number of layers below the late prompt, or a fraction of the depth.
        dtype: float type of the frozen weights of all methods.
        repeats: timed steps of each method; the median is printed.
        memory: measure each method's peak memory in a fresh process of its own.
        seed: seed of weights and tokens.
        device: where to run; default a GPU if there is one.
    """

    model: str = "roberta-base"
    batch: int = 16
    length: int = 64
    prompt_layer: int | float | str = "0.5"
    dtype: str = "float32"
    repeats: int = 7
    memory: bool = False
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raise ValueError for a setting that cannot be."""
        for name in ("batch", "length", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r} is too small; give a whole number from 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Cost:
    """Layers that a step computes: forward, backward through frozen weights, weight gradients, and extra positions."""

    forward: float
    backward: float
    weights: float = 0.0
    extra_positions: int = 0


class Bench:
    """A model and a batch, on which every method makes steps."""

    def __init__(self, settings: BenchSettings) -> None:
        settings.check()
        self.settings = settings
        self.device = pick_device(settings.device)
        torch.manual_seed(settings.seed)
        model = self.fresh_model()
        self.config = model.config
        self.layers = num_layers_of(core_of(model))
        self.prompt_layer = resolve_prompt_layer(settings.prompt_layer, self.layers)
        self._shared: Any = model
        ids = torch.randint(5, self.config.vocab_size, (settings.batch, settings.length))
        self.labels = (torch.arange(settings.batch) % len(WORDS)).to(self.device)
        self.batch = Batch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            read=torch.full((settings.batch,), settings.length // 2),
            labels=self.labels,
        ).to(self.device)

    def fresh_model(self) -> Any:
        """The masked LM, in training mode, on the device."""
        name, dtype = self.settings.model, self.settings.dtype
        if name in SHAPES:
            config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, **SHAPES[name])
            model: Any = RobertaForMaskedLM(config)
            model = model.to(dtype=DTYPES[dtype])
        else:
            load_config(name)
            model = load_base(name, "mask", dtype=dtype)
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

    def rival(self, config: peft.PeftConfig | None, *, fresh: bool = False) -> Callable[[], None]:
        """A PEFT method on the backbone (None: full tuning), with our readout's economy."""
        base = self.fresh_model() if fresh else self._shared
        backbone = base.base_model
        head = LMHead(base, backbone, torch.tensor(WORDS))
        if config is None:
            model: nn.Module = backbone.requires_grad_(True)
        else:
            backbone.requires_grad_(False)
            model = peft.get_peft_model(backbone, config)
        model.train()
        batch, labels = self.batch, self.labels

        def loss() -> torch.Tensor:
            hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            hidden = hidden[:, -batch.input_ids.shape[1] :]
            scores = head(hidden[torch.arange(len(hidden), device=hidden.device), batch.read])
            return F.cross_entropy(scores.float(), labels)

        return self.stepper(model, loss)

    def out_of_the_box(self) -> Callable[[], None]:
        """PEFT's prompt tuning as its documentation has it: the whole vocabulary at every position."""
        base = self._shared
        backbone = base.base_model
        head = LMHead(base, backbone)
        model = peft.get_peft_model(backbone, _prompt_tuning(20))
        model.train()
        batch, k = self.batch, 20
        targets = torch.full((len(batch.read), self.settings.length + k), -100, device=self.device)
        words = torch.tensor(WORDS, device=self.device)[self.labels]
        targets[torch.arange(len(batch.read), device=self.device), batch.read + k] = words

        def loss() -> torch.Tensor:
            hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
            return F.cross_entropy(head(hidden).flatten(0, 1).float(), targets.flatten())

        return self.stepper(model, loss)

    def late_prompt(self, generator: str, *, kept: bool) -> Callable[[], None]:
        """LPT, with the trunk run at each step or its states kept."""
        base = self.fresh_model()
        config = LatePromptConfig(prompt_layer=self.prompt_layer, generator=generator, num_prompt_tokens=5)
        model = peft.get_peft_model(base, config)
        model.train()
        layer: Any = model.base_model.layer
        readout = WordReadout(model.get_base_model(), layer, WORDS, "mask", "labels")
        batch = self.batch
        if kept:
            with torch.no_grad():
                trunk = layer.split_at(self.prompt_layer).trunk.eval()
                output = trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            batch = Batch(**{**vars(batch), "trunk_states": output.last_hidden_state})
        return self.stepper(model, lambda: readout.loss(batch))

    def floating_operations(self, cost: Cost) -> float:
        """Matrix-product operations of a step: linear layers and attention, 2 per multiply-add."""
        d, inner = self.config.hidden_size, self.config.intermediate_size
        length = self.settings.length + cost.extra_positions
        layer = 2 * (4 * d * d + 2 * d * inner) + 4 * length * d
        return float(self.settings.batch * length * layer * (cost.forward + cost.backward + cost.weights))

    def ceiling(self) -> Callable[[], float]:
        """A matrix product of the model's own shape and dtype; returns its operations per second."""
        rows, d = self.settings.batch * self.settings.length, self.config.hidden_size
        a = torch.randn(rows, d, device=self.device, dtype=DTYPES[self.settings.dtype])
        b = torch.randn(d, self.config.intermediate_size, device=self.device, dtype=DTYPES[self.settings.dtype])

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


def _prompt_tuning(tokens: int) -> peft.PeftConfig:
    return peft.PromptTuningConfig(task_type=peft.TaskType.FEATURE_EXTRACTION, num_virtual_tokens=tokens)


@dataclass(frozen=True)
class Method:
    """One row: how its step is made, and which layers it computes (of `layers`, with `p` below the prompt)."""

    make: Callable[[Bench], Callable[[], None]]
    cost: Callable[[int, int], Cost]
    states: bool = False


METHODS: dict[str, Method] = {
    BASELINE: Method(lambda b: b.rival(_prompt_tuning(20)), lambda n, p: Cost(n, n, 0, 20)),
    "prompt tuning 20, out of the box": Method(lambda b: b.out_of_the_box(), lambda n, p: Cost(n, n, 0, 20)),
    "prompt tuning 100": Method(lambda b: b.rival(_prompt_tuning(100)), lambda n, p: Cost(n, n, 0, 100)),
    "LoRA r=8": Method(
        lambda b: b.rival(
            peft.LoraConfig(
                task_type=peft.TaskType.FEATURE_EXTRACTION, r=8, lora_dropout=0.0, target_modules=["query", "value"]
            ),
            fresh=True,
        ),
        lambda n, p: Cost(n, n),
    ),
    "full tuning": Method(lambda b: b.rival(None, fresh=True), lambda n, p: Cost(n, n, n)),
    "LPT npg": Method(lambda b: b.late_prompt("npg", kept=False), lambda n, p: Cost(n, n - p, 0, 5)),
    "LPT npg, kept states": Method(
        lambda b: b.late_prompt("npg", kept=True), lambda n, p: Cost(n - p, n - p, 0, 5), states=True
    ),
    "LPT mppg, kept states": Method(
        lambda b: b.late_prompt("mppg", kept=True), lambda n, p: Cost(n - p, n - p, 0, 5), states=True
    ),
}


def run_bench(settings: BenchSettings, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the methods in turn, `repeats` times around, after one step each that is not counted.

    Returns:
        `ceiling_gflops`, and `rows` with one entry per method.
    """
    names = list(methods or METHODS)
    bench = Bench(settings)
    steps = {name: METHODS[name].make(bench) for name in names}
    ceiling = bench.ceiling()
    times: dict[str, list[float]] = {name: [] for name in names}
    ceilings: list[float] = []
    for turn in range(settings.repeats + 1):
        rate = ceiling()
        for name in names:
            started = time.perf_counter()
            steps[name]()
            bench.synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
        if turn:
            ceilings.append(rate)
    best = statistics.median(ceilings)
    memory = {name: peak_memory(settings, name) for name in names} if settings.memory else {}
    rows = []
    for name in names:
        seconds = statistics.median(times[name])
        operations = bench.floating_operations(METHODS[name].cost(bench.layers, bench.prompt_layer))
        row: dict[str, Any] = {
            "method": name,
            "states": METHODS[name].states,
            "dtype": settings.dtype,
            "step_ms": 1000 * seconds,
            "tokens_per_second": settings.batch * settings.length / seconds,
            # Pair by pair: both were timed in the same turn, so the machine's drift cancels.
            "speed_vs_prompt_tuning": statistics.median(
                b / a for a, b in zip(times[name], times[BASELINE], strict=True)
            )
            if BASELINE in times
            else None,
            "ceiling_fraction": operations / seconds / best,
        }
        if memory:
            row["peak_memory_bytes"] = memory[name]
            row["memory_vs_prompt_tuning"] = memory[name] / memory[BASELINE] if BASELINE in memory else None
        rows.append(row)
    return {"ceiling_gflops": best / 1e9, "rows": rows}


def peak_memory(settings: BenchSettings, method: str) -> int:
    """Peak memory of a fresh process that makes three steps of one method: weights, activations, optimiser."""
    arguments = json.dumps({"settings": asdict(settings), "method": method})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "lateprompt.bench", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(
            f"the process measuring the memory of {method!r} failed: {done.stderr.strip().splitlines()[-1:]}"
        )
    return int(done.stdout)


def _measure_memory(arguments: str) -> int:
    given = json.loads(arguments)
    bench = Bench(BenchSettings(**given["settings"]))
    step = METHODS[given["method"]].make(bench)
    for _ in range(3):
        step()
    bench.synchronize()
    return peak_memory_bytes(bench.device)


if __name__ == "__main__":
    print(_measure_memory(sys.argv[1]))
