"""`lateprompt bench tasks`: answering many tasks on the same texts, against a model a task and a plain pass.

All tasks are read-only npg prompts with a linear head each, on one frozen model. They are timed beside one plain pass
of that model, beside as many ordinary late prompts (each a whole pass, as separate models would make), and beside
ordinary late prompts that share the layers below them. A last pair times a batch of which each row asks one of ten
tasks, beside the same batch with one task for all rows. Everything takes turns in one process, on random weights and
tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.experiments.bench import Bench, BenchSettings
from lateprompt.peft_method.config import LatePromptConfig
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.loading import DTYPES
from lateprompt.utils.randomness import borrowed
from lateprompt.utils.validation import Count, OneOf, Seed, check_types

MIXED = 10
"""Tasks of the mixed batch."""
SHARED_TRUNK = 10
"""Most ordinary late prompts that are timed on a common trunk."""
_LATE = "ordinary"


@dataclass
class TasksBenchSettings:
    """What is measured.

    Args:
        model: a shape (roberta-base, roberta-large: random weights) or a folder or hub id of a masked LM.
        batch: texts in a batch.
        length: tokens in a text.
        prompt_layer: number of layers below the prompts, or a fraction of the depth.
        tasks: how many tasks are asked at once.
        num_prompt_tokens: prompt vectors of a task.
        dtype: float type of the frozen weights.
        repeats: timed passes; the median is printed.
        seed: seed of weights and tokens.
        device: where to run; default a GPU if there is one.

    Example:
        >>> from lateprompt.experiments.bench_tasks import TasksBenchSettings
        >>> TasksBenchSettings(tasks=[1, 10], num_prompt_tokens=1).tasks
        [1, 10]
    """

    model: str = "roberta-base"
    batch: Count = 16
    length: Count = 64
    prompt_layer: int | float | str = "0.5"
    tasks: list[Count] = field(default_factory=lambda: [1, 3, 10, 30, 100])
    num_prompt_tokens: Count = 5
    dtype: Annotated[str, OneOf(tuple(DTYPES))] = "float32"
    repeats: Count = 5
    seed: Seed = 42
    device: str | None = None

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)


class TasksBench:
    """One frozen model with an adapter a task, and the passes that are timed.

    Args:
        settings: what is measured.
    """

    def __init__(self, settings: TasksBenchSettings) -> None:
        self.settings = settings
        self.bench = Bench(
            BenchSettings(
                settings.model,
                settings.batch,
                settings.length,
                settings.prompt_layer,
                settings.dtype,
                methods=["read-npg"],
                memory=False,
                seed=settings.seed,
                device=settings.device,
            )
        )
        most = max(*settings.tasks, MIXED)
        self.names = [f"task{number}" for number in range(most)]
        layer = resolve_prompt_layer(settings.prompt_layer, self.bench.layers)
        base = self.bench.fresh_model().base_model
        model = wrap(base, self._config(layer, read_only=True), self.names[0])
        for name in self.names[1:]:
            model.add_adapter(name, self._config(layer, read_only=True))
        model.add_adapter(_LATE, self._config(layer, read_only=False))
        model.set_adapter(_LATE)
        self.model, self.prompt_layer = model.eval(), layer
        self.layer: Any = model.base_model.layer
        batch = self.bench.batch
        self.inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    def _config(self, layer: int, *, read_only: bool) -> LatePromptConfig:
        k = self.settings.num_prompt_tokens
        return LatePromptConfig(prompt_layer=layer, num_prompt_tokens=k, head_labels=2, read_only=read_only)

    def plain(self) -> None:
        """A plain pass of the frozen model."""
        self.layer.frozen.above(0)(**self.inputs)

    def read_only(self, tasks: int) -> None:
        """So many read-only tasks, each with its head, on one pass."""
        text = self.layer.frozen_text(self.prompt_layer, whole=True, keys=True, **self.inputs)
        pooled = text.last.mean(1)
        for name, mean in self.layer.read_tasks(self.names[:tasks], text).items():
            self.layer.late_prompt_heads[name](torch.cat([mean, pooled], 1))

    def late_prompt(self, states: torch.Tensor | None = None) -> None:
        """One ordinary late prompt with its head: a whole pass, or from the states of a common trunk."""
        more = {} if states is None else {"trunk_states": states}
        self.layer.late_prompt_heads[_LATE](self.layer(**self.inputs, **more).last_hidden_state.mean(1))

    def shared_trunk(self, tasks: int) -> None:
        """So many ordinary late prompts on one pass of the layers below them."""
        states = self.layer.run_trunk(self.prompt_layer, self.inputs)
        for _ in range(tasks):
            self.late_prompt(states)

    def one_a_row(self, tasks: int) -> None:
        """Each row asks one of so many tasks."""
        names = [self.names[row % tasks] for row in range(self.settings.batch)]
        self.layer(**self.inputs, adapter_names=names)


def run_bench_tasks(settings: TasksBenchSettings) -> dict[str, Any]:
    """Measure all passes in turn, `repeats` times around, after one turn that is not counted.

    Returns:
        `rows`, one a number of tasks: milliseconds of read-only tasks on one pass, of separate late prompts (as many
        times one) and of late prompts on a common trunk (up to 10), and their ratios; `plain_ms`; `mixed`: milliseconds
        of a batch with one task a row and with one task for all, and their ratio.

    Raises:
        LatePromptError: a setting that cannot be.
    """
    settings.check()
    bench = TasksBench(settings)
    passes: dict[tuple[str, int], Callable[[], None]] = {("plain", 1): bench.plain, ("late", 1): bench.late_prompt}
    for tasks in settings.tasks:
        passes["read", tasks] = lambda tasks=tasks: bench.read_only(tasks)  # type: ignore[misc]
        if tasks <= SHARED_TRUNK:
            passes["shared", tasks] = lambda tasks=tasks: bench.shared_trunk(tasks)  # type: ignore[misc]
    passes["mixed", MIXED] = lambda: bench.one_a_row(MIXED)
    passes["mixed", 1] = lambda: bench.one_a_row(1)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in passes}
    with borrowed(settings.seed, bench.bench.device), torch.no_grad():
        for turn in range(settings.repeats + 1):
            for key, run in passes.items():
                started = time.perf_counter()
                run()
                bench.bench.synchronize()
                if turn:
                    times[key].append(time.perf_counter() - started)

    def ratio(one: tuple[str, int], other: tuple[str, int]) -> float:
        """Of the same turns: the machine's drift cancels."""
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    rows = []
    for tasks in settings.tasks:
        own, shared = ("read", tasks), ("shared", tasks)
        rows.append(
            {
                "tasks": tasks,
                "ms": 1000 * statistics.median(times[own]),
                "plain_passes": ratio(own, ("plain", 1)),
                "separate_ms": 1000 * tasks * statistics.median(times["late", 1]),
                "speed_vs_separate": tasks * ratio(("late", 1), own),
                "shared_trunk_ms": 1000 * statistics.median(times[shared]) if shared in times else None,
            }
        )
    return {
        "plain_ms": 1000 * statistics.median(times["plain", 1]),
        "num_prompt_tokens": settings.num_prompt_tokens,
        "rows": rows,
        "mixed": {
            "one_task_a_row_ms": 1000 * statistics.median(times["mixed", MIXED]),
            "one_task_ms": 1000 * statistics.median(times["mixed", 1]),
            "speed_vs_one_task": ratio(("mixed", 1), ("mixed", MIXED)),
        },
    }
