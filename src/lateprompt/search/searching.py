"""`Search`: which method, prompt layer and rate to train with, found on kept states."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lateprompt.backbone.split import resolve_prompt_layer
from lateprompt.data import AnyTask, MultiLabelTask, Row, TextTask
from lateprompt.methods import check_method, is_late
from lateprompt.run_folder.entries import JOURNAL, SEARCH_FILE
from lateprompt.search.candidates import Space, Trial, asked_of, methods_of, rates_of
from lateprompt.search.choice import Choice, choose
from lateprompt.search.frozen import FrozenRows
from lateprompt.search.rows import LEAST_ROWS, MOST_ROWS, Part, parts_of, sample
from lateprompt.search.settings import AUTO, SearchSettings, searches_layers
from lateprompt.search.study import Record, Study, identity_of
from lateprompt.search.trying import RUNGS, Trying, predict_linearly
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.distributed import processes
from lateprompt.training.metrics import METRICS, primary_metric
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError, first_line
from lateprompt.utils.files import write_lines

BEST_LAYERS = 3
"""Of the probed layers, so many are candidates, beside the default one."""
NOISE = 0.5
"""Standard errors below the best at a rung that are never a reason to drop a setting."""
SPARE_SECONDS = 6.0
"""Of a budget, what is left for building the winner, its last evaluation and its files."""


@dataclass
class Found:
    """What a search has found.

    Args:
        model, recipe: the winner's settings, all filled in.
        asked: what was left open.
        records: a line for each setting that was tried.
        choice: how it was chosen; None where nothing could be measured.
        probes: by layer, the accuracy of a logistic regression on the frozen states there.
        facts: further facts for the run file.
    """

    model: ModelSettings
    recipe: RecipeSettings
    asked: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    choice: Choice | None = None
    probes: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` says of it: the winner, and the accuracy that was expected of it, with its interval."""
        said: dict[str, Any] = {
            "chosen_method": self.model.method,
            "chosen_prompt_layer": int(self.model.prompt_layer),
            "chosen_lr": self.recipe.peak_rate,
            "settings_tried": len(self.records),
            "search_seconds": self.facts.get("seconds", 0.0),
        }
        if self.choice is not None:
            own = self.choice
            said |= {"expected_accuracy": own.accuracy, "expected_low": own.low, "expected_high": own.high}
        return said

    def run_facts(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        choice = None if self.choice is None else asdict(self.choice)
        return {"asked": self.asked, **self.metrics(), "probes": self.probes, "choice": choice, **self.facts}

    def write_files(self, place: Path) -> None:
        """Write the table of what was tried into a folder."""
        write_lines(place / SEARCH_FILE, self.records)


def check_search(model: ModelSettings) -> None:
    """Raise LatePromptError for settings that cannot be searched, before anything is read."""
    if model.method == AUTO:
        if model.options:
            raise LatePromptError(
                f"method 'auto' chooses among methods with their own options, and {next(iter(model.options))!r} is of "
                "one; leave out --set, or give the method and --prompt-layer auto"
            )
    else:
        check_method(model.method, model.options)
        if not is_late(model.method):
            raise LatePromptError(
                f"method {model.method!r} does not keep to the layers above the prompt layer, so prompt_layer 'auto' "
                "has nothing to choose; leave it out"
            )
    if model.trunk_dropout:
        raise LatePromptError("method 'auto' and prompt_layer 'auto' train on kept states; leave out --trunk-dropout")
    if processes().count > 1:
        raise LatePromptError("method 'auto' and prompt_layer 'auto' search in one process; start without a launcher")


class Search:
    """Find the method, prompt layer and rate to train with; `run` does it.

    One pass of the frozen model keeps the states of all candidate layers. Logistic regressions on them rank the layers.
    Then settings are trained on the kept states, and dropped by successive halving, on dev rows or by cross-validation.

    Args:
        model: the model's settings, with method or prompt_layer auto.
        task: what is asked; it has labels.
        train, dev: the rows; without dev rows the training rows are cross-validated.
        recipe: what was asked of the recipe.
        settings: budget and tries.
        weights: (training rows,) factors of their losses, or None.
        started: `time.perf_counter()` at the beginning of the budget; None: now.

    Raises:
        LatePromptError: settings, rows or a model that cannot be.
    """

    def __init__(
        self,
        model: ModelSettings,
        task: AnyTask,
        train: Sequence[Row],
        dev: Sequence[Row],
        recipe: RecipeSettings,
        settings: SearchSettings,
        *,
        weights: np.ndarray | None = None,
        started: float | None = None,
    ) -> None:
        check_search(model)
        if isinstance(task, TextTask):
            raise LatePromptError(
                f"method 'auto' and prompt_layer 'auto' choose by labels, and task {task.name!r} has texts for "
                "answers; give a method and a prompt layer"
            )
        if isinstance(task, MultiLabelTask):
            raise LatePromptError(
                f"method 'auto' and prompt_layer 'auto' choose by the accuracy of one label a row, and task "
                f"{task.name!r} has several; give a method and a prompt layer"
            )
        self.model, self.task, self.recipe, self.settings = model, task, recipe, settings
        self.started = time.perf_counter() if started is None else started
        self.earlier = 0.0
        self.train_rows = len(train)
        some = sample([row.label for row in train], MOST_ROWS, recipe.seed)
        known = [row for row in dev if row.label in task.labels]
        tested = [known[i] for i in sample([row.label for row in known], MOST_ROWS, recipe.seed)]
        self.num_train, self.num_dev = len(some), len(tested)
        self.methods = methods_of(model)
        own = None if weights is None else np.concatenate([weights[some], np.ones(len(tested))])
        self.frozen = FrozenRows(model, task, [*(train[i] for i in some), *tested], self.methods, own)
        self.metric = primary_metric(task.metrics)

    # -- what may be tried -------------------------------------------------------------------------------------------

    def run(self, states: StatesSettings, *, folder: Path | None = None, quiet: bool = True) -> Found:
        """Keep the states, probe the layers, try settings, and choose.

        Args:
            states: where states are kept; with `off` they are for as long as the search lasts.
            folder: a folder of checkpoints for the search's journal; None: it cannot be resumed.
            quiet: no progress bar.

        Raises:
            LatePromptError: rows that cannot be, or a journal of another search.
        """
        with ExitStack() as held:
            return self._run(states, folder, held, quiet)

    def _run(self, states: StatesSettings, folder: Path | None, held: ExitStack, quiet: bool) -> Found:
        frozen = self.frozen
        layers = frozen.layers if searches_layers(self.model) else [self._default_layer]
        if self.num_train < LEAST_ROWS:
            return self._default_alone(f"{self.num_train} training rows are too few to choose by")
        parts = parts_of(frozen.rows.labels, self.num_dev, self.recipe.seed)
        place = states.folder
        if place is None:
            place = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="lateprompt-states-")))
        frozen.keep(layers, place, states, quiet=quiet)
        labels = np.concatenate([frozen.rows.labels[part.test] for part in parts])
        probes = self._probe(layers, parts, labels)
        space = self._space(probes)
        identity = identity_of(
            [asdict(self.model), asdict(self.recipe), asdict(space), frozen.rows.labels.tolist(), self._rows_hash()]
        )
        study = Study(space, self.recipe.seed, None if folder is None else folder / JOURNAL, identity)
        self.earlier = study.spent
        with Bar("settings tried", self.settings.tries, quiet=quiet, start=len(study.records)) as bar:
            while not self._is_over(study):
                trial = study.next()
                if trial is None:
                    break
                bar.note(f"{trial.method} at layer {trial.layer}")
                record = self._try(study, trial, parts, labels)
                study.end(record)
                study.set_spent(self._elapsed())
                bar.advance()
        return self._choose(study.records, space, labels, probes, len(parts))

    @property
    def _default_layer(self) -> int:
        if searches_layers(self.model):
            return self.frozen.default_layer
        return resolve_prompt_layer(self.model.prompt_layer, self.frozen.num_layers)

    def _rows_hash(self) -> str:
        digest = hashlib.sha256()
        for example in self.frozen.rows.examples:
            digest.update(np.asarray(example.input_ids, dtype="<i4").tobytes() + b"|")
        return digest.hexdigest()

    def _probe(self, layers: Sequence[int], parts: Sequence[Part], labels: np.ndarray) -> dict[int, float]:
        """By layer, the accuracy of a logistic regression on its states; none for a single layer."""
        if len(layers) < 2:
            return {}
        return {layer: float((predict_linearly(self.frozen, layer, parts) == labels).mean()) for layer in layers}

    def _space(self, probes: dict[int, float]) -> Space:
        default = Trial(self.methods[0], self._default_layer, 1.0)
        rows = self.num_dev or self.num_train
        best = max(probes.values(), default=0.0)
        enough = best - math.sqrt(best * (1 - best) / rows)
        # The label can be read there as well as anywhere; the lower one leaves more layers to the prompt.
        good = sorted(layer for layer, score in probes.items() if score >= enough)
        ranked = [*good, *sorted(set(probes) - set(good), key=lambda layer: -probes[layer])]
        first = default.layer if default.layer in good or not good else good[0]
        layers = tuple(sorted({*ranked[:BEST_LAYERS], default.layer}))
        return Space(self.methods, layers, rates_of(self.recipe), default, first)

    # -- trying ------------------------------------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def _left(self, final_seconds: float) -> float:
        """Seconds that are left for trying, if a training of the winner takes so long."""
        budget = self.settings.seconds
        return float("inf") if budget is None else budget - self._elapsed() - final_seconds - SPARE_SECONDS

    def _is_over(self, study: Study) -> bool:
        records = study.records
        if self.settings.tries is not None and len(records) >= self.settings.tries:
            return True
        if not records:
            return False
        if records[0].state != "complete":  # there was no time to measure even the default
            return True
        # The dearest of those that might win decides how much time must be left, and the default how long a try takes.
        final = max(record.final_seconds for record in records if record.state == "complete")
        return self._left(final) < records[0].seconds / 2

    def _try(self, study: Study, trial: Trial, parts: Sequence[Part], labels: np.ndarray) -> Record:
        began = time.perf_counter()
        record = Record(trial.method, trial.layer, trial.rate, None)
        is_default = not study.records
        try:
            with Trying(self.frozen, trial, parts, self.recipe, self.train_rows) as trying:
                record.lr = trying.lr
                self._climb(study, trying, record, labels, is_default)
        except (LatePromptError, ValueError, NotImplementedError) as error:
            if is_default:
                raise
            record.state = "pruned" if record.steps else "skipped"
            record.note = first_line(error)
        record.seconds = time.perf_counter() - began
        return record

    def _climb(self, study: Study, trying: Trying, record: Record, labels: np.ndarray, is_default: bool) -> None:
        """Take a setting from rung to rung, until it is dropped, the time is over, or it has reached the top."""
        for rung, steps in trying.rungs:
            late = trying.seconds_to(steps) > self._left(trying.final_seconds)
            if late and trying.steps:
                record.state, record.note = "pruned", "no time left"
                return
            predicted = trying.climb(steps)
            record.steps, record.predicted = steps, predicted.tolist()
            record.score = METRICS[self.metric](labels, predicted)
            record.step_seconds, record.final_seconds = trying.step_seconds, trying.final_seconds
            stop = study.should_stop(rung, record.score)
            best = study.best_at(rung)
            # What may be level with the best is not dropped for noise.
            stop = stop and record.score < best - NOISE * math.sqrt(abs(best * (1 - best)) / len(labels))
            if rung < RUNGS[-1] and stop and not is_default:
                record.state, record.note = "pruned", "others were better by then"
                return

    # -- choosing ----------------------------------------------------------------------------------------------------

    def _choose(
        self, records: Sequence[Record], space: Space, labels: np.ndarray, probes: dict[int, float], folds: int
    ) -> Found:
        whole = [record for record in records if record.state == "complete" and record.predicted is not None]
        first = next((record for record in records if record.trial == space.default), None)
        if first is not None and first not in whole and first.predicted is not None:
            whole = [first]  # there was time for nothing else
        winner, choice = space.default, None
        if whole and first is not None:
            whole = [first, *(record for record in whole if record is not first)]
            predicted = np.array([record.predicted for record in whole])
            choice = choose(predicted, labels, self.task.metrics, self.recipe.seed)
            winner = whole[choice.winner].trial
        lines = [{**record.line(), "chosen": record.trial == winner} for record in records]
        facts = {
            "measured_on": f"{len(labels)} dev rows" if self.num_dev else f"{len(labels)} training rows, held out",
            "folds": 0 if self.num_dev else folds,
            "metric": self.metric,
            "states": dict(Counter(record.state for record in records)),
            "seconds": self._elapsed(),
        }
        return self._found(winner, lines, choice, probes, facts)

    def _default_alone(self, why: str) -> Found:
        return self._found(Trial(self.methods[0], self._default_layer, 1.0), [], None, {}, {"note": why})

    def _found(self, winner: Trial, lines: Any, choice: Choice | None, probes: Any, facts: Any) -> Found:
        facts = {**facts, "settings": asdict(self.settings)}
        asked = asked_of(self.model, self.recipe)
        recipe = winner.recipe(self.recipe, self.train_rows)
        if recipe.folds is None and choice is not None:  # the search has said what to expect
            recipe = replace(recipe, folds=0)
        return Found(winner.model(self.model), recipe, asked, lines, choice, probes, facts)
