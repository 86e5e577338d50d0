"""`Trying`: one setting on its way through the rungs, trained on each part of the rows at the same time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np

from lateprompt.search.candidates import LINEAR, Trial
from lateprompt.search.frozen import FrozenRows
from lateprompt.search.rows import Part
from lateprompt.training.evaluate import predict_scores
from lateprompt.training.loop import Trainer, plan_steps
from lateprompt.training.settings import RecipeSettings

RUNGS = (1, 2)
"""Where settings are compared, in halves of the search's steps: earlier, what starts slowly has no chance."""
MOST_STEPS = 120
"""Steps of a setting in the search; the winner's training has those of its recipe."""


class Trying:
    """One setting: `climb` trains it to the next rung and predicts the rows that it was not trained on.

    Args:
        frozen: the frozen model and the rows' states.
        trial: what is tried.
        parts: which rows are trained on and which are predicted.
        asked: the recipe that was asked for.
        rows: how many rows the winner will be trained on.

    Raises:
        LatePromptError: the model cannot do it.
    """

    def __init__(
        self, frozen: FrozenRows, trial: Trial, parts: Sequence[Part], asked: RecipeSettings, rows: int
    ) -> None:
        self.frozen, self.trial, self.parts = frozen, trial, parts
        recipe = trial.recipe(asked, rows)
        self.lr = None if trial.method in LINEAR else recipe.peak_rate
        self.final_steps = plan_steps(rows, recipe)[1]
        self.total_steps = min(self.final_steps, MOST_STEPS)
        self.recipe = replace(recipe, max_steps=self.total_steps, patience=None)
        self.steps = 0
        self.step_seconds = 0.0
        """Seconds of a step, as far as it is known."""
        self._trainers: list[Trainer] = []
        self._tested = [(frozen.rows, part.test) for part in parts]
        if trial.method not in LINEAR:
            self._build()

    def _build(self) -> None:
        self._tested = []
        for part in self.parts:
            tuned = self.frozen.build(self.trial.model(self.frozen.settings), self.trial.layer, seed=self.recipe.seed)
            train, test = (self.frozen.batches(tuned, rows) for rows in (part.train, part.test))
            trainer = Trainer(
                tuned.model,
                tuned.readout,
                train,
                None,
                self.recipe,
                metrics=self.frozen.task.metrics,
                device=tuned.device,
            )
            self._trainers.append(trainer)
            self._tested.append((test, part.test))

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """Each rung: its resource, in halves, and the steps to it; a linear model has but one."""
        if self.trial.method in LINEAR:
            return [(RUNGS[-1], 0)]
        steps = {rung: max(1, self.total_steps * rung // RUNGS[-1]) for rung in RUNGS}
        return list(steps.items())

    def seconds_to(self, steps: int) -> float:
        """About how long it takes to train on to so many steps, all parts together."""
        return (steps - self.steps) * len(self.parts) * self.step_seconds

    @property
    def final_seconds(self) -> float:
        """About how long the winner's training takes."""
        return self.final_steps * self.step_seconds

    def climb(self, steps: int) -> np.ndarray:
        """Train on to so many steps; the class ids (tested rows,) of the rows in the order of the parts.

        Raises:
            LatePromptError: the training diverged.
        """
        if self.trial.method in LINEAR:
            return self._linear()
        started = time.perf_counter()
        found = []
        for trainer in self._trainers:
            while trainer.steps_done < steps:
                trainer.step()
            trainer.evaluate()  # says if it has diverged
        self.step_seconds = (time.perf_counter() - started) / max(1, (steps - self.steps) * len(self.parts))
        self.steps = steps
        for trainer, (test, _) in zip(self._trainers, self._tested, strict=True):
            scores = predict_scores(
                trainer.readout, test, batch_size=self.recipe.eval_batch_size, device=trainer.device
            )
            found.append(scores.argmax(1))
        return np.concatenate(found)

    def _linear(self) -> np.ndarray:
        return predict_linearly(self.frozen, self.frozen.num_layers, self.parts)

    def __enter__(self) -> Trying:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trainer in self._trainers:
            trainer.close()


def predict_linearly(frozen: FrozenRows, layer: int, parts: Sequence[Part]) -> np.ndarray:
    """The class ids (tested rows,) by a logistic regression on the frozen states of a layer, part by part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = frozen.rows.labels
    found = []
    for part in parts:
        train, test = (frozen.features(layer, rows) for rows in (part.train, part.test))
        if len(np.unique(labels[part.train])) < 2:
            found.append(np.full(len(part.test), labels[part.train[0]]))
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        weights = None if frozen.rows.weights is None else frozen.rows.weights[part.train]
        probe.fit(train, labels[part.train], logisticregression__sample_weight=weights)
        found.append(probe.predict(test))
    return np.concatenate(found)
