"""`Study`: what a search has tried, in an Optuna study whose journal (JSON lines) lies in the run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lateprompt.search.candidates import Space, Trial
from lateprompt.utils.errors import LatePromptError

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
except ImportError:
    raise LatePromptError(
        "method 'auto' and prompt_layer 'auto' need the package optuna: pip install 'lateprompt[search]'"
    ) from None

_RECORD = "record"
_ASKS = 30
"""How often the sampler is asked for something new before the next untried setting is taken."""


@dataclass
class Record:
    """A setting that was tried.

    Args:
        method, prompt_layer, rate, lr: the setting; rate is the multiple of the method's own learning rate.
        steps: how many steps it got to.
        score: the task's metric on rows that it was not trained on, after these; None: it was never measured.
        seconds: how long it took.
        state: complete, pruned or skipped.
        note: why it was pruned or skipped.
        predicted: class ids of the tested rows.
        step_seconds: seconds of a step.
        final_seconds: about how long a training of the winner takes.
    """

    method: str
    prompt_layer: int
    rate: float
    lr: float | None
    steps: int = 0
    score: float | None = None
    seconds: float = 0.0
    state: str = "complete"
    note: str = ""
    predicted: list[int] | None = None
    step_seconds: float = 0.0
    final_seconds: float = 0.0

    @property
    def trial(self) -> Trial:
        """The setting as it is asked for."""
        return Trial(self.method, self.prompt_layer, self.rate)

    def line(self) -> dict[str, Any]:
        """What the table of tried settings says."""
        hidden = ("predicted", "rate", "step_seconds", "final_seconds")
        return {name: value for name, value in asdict(self).items() if name not in hidden}


class _NoLock(JournalFileOpenLock):
    """No lock of the journal's own: the run folder's is held."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Study:
    """Optuna's study of a search.

    Args:
        space: what may be tried.
        seed: seed of what is tried next.
        journal: the file of the study, which is gone on with if it is there; None: in memory.
        identity: what the search is, as JSON; a journal of another one is refused.

    Raises:
        LatePromptError: the journal is of another search, or broken.
    """

    def __init__(self, space: Space, seed: int, journal: Path | None, identity: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.seed = space, seed
        storage: Any = None
        try:
            if journal is not None:
                _drop_torn_line(journal)
                storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal))))
            self._study = optuna.create_study(
                storage=storage,
                study_name="search",
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
            )
            known = self._study.user_attrs.get("identity")
        except (ValueError, KeyError, TypeError) as error:
            raise LatePromptError(
                f"journal {str(journal)!r} of the search is broken: {error}; use --overwrite"
            ) from None
        if known is None:
            self._study.set_user_attr("identity", identity)
        elif known != identity:
            raise LatePromptError(
                f"journal {str(journal)!r} is of a search with other settings or rows; resume with the same ones, or "
                "use --overwrite without --resume"
            )
        self._distributions: dict[str, Any] = {
            "method": optuna.distributions.CategoricalDistribution(space.methods),
            "layer": optuna.distributions.CategoricalDistribution(space.layers),
            "rate": optuna.distributions.CategoricalDistribution(space.rates),
        }
        for begun in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            self._study.tell(begun.number, state=optuna.trial.TrialState.FAIL)  # interrupted: it is tried again
        found = (own.user_attrs.get(_RECORD) for own in self._study.get_trials(deepcopy=False))
        self.records = [Record(**record) for record in found if record is not None]
        self._open: Any = None

    @property
    def spent(self) -> float:
        """Seconds of earlier, interrupted searches."""
        return float(self._study.user_attrs.get("spent", 0.0))

    def set_spent(self, seconds: float) -> None:
        """Note the seconds so far."""
        self._study.set_user_attr("spent", seconds)

    def next(self) -> Trial | None:
        """What is tried next: the first ones in their order, then what Optuna's TPE sampler suggests; None: no more."""
        seen = {record.trial for record in self.records}
        skipped = {record.method for record in self.records if record.state == "skipped"}
        for trial in self.space.first():
            if trial not in seen and trial.method not in skipped:
                return self._begin(trial)
        # Anew for each trial: what is suggested then depends on what was tried, and not on an interruption.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(self.seed + len(self.records)) % 2**32, n_startup_trials=5
        )
        for _ in range(_ASKS):
            self._open = self._study.ask(self._distributions)
            asked = self._open.params
            trial = Trial(asked["method"], asked["layer"], asked["rate"])
            if trial not in seen and trial.method not in skipped and self.space.normal(trial) == trial:
                return trial
            self._study.tell(self._open, state=optuna.trial.TrialState.FAIL)
        rest = (
            self.space.normal(Trial(method, layer, rate))
            for method in self.space.methods
            for layer in self.space.layers
            for rate in self.space.rates
            if method not in skipped
        )
        left = next((trial for trial in rest if trial not in seen), None)
        return None if left is None else self._begin(left)

    def _begin(self, trial: Trial) -> Trial:
        self._study.enqueue_trial({"method": trial.method, "layer": trial.layer, "rate": trial.rate})
        self._open = self._study.ask(self._distributions)
        return trial

    def should_stop(self, rung: int, score: float) -> bool:
        """Report a rung's score of the setting that is tried; whether it is not among the better half there."""
        self._open.report(score, rung)
        return bool(self._open.should_prune())

    def best_at(self, rung: int) -> float:
        """The best score at a rung so far."""
        trials = self._study.get_trials(deepcopy=False)
        return max(trial.intermediate_values[rung] for trial in trials if rung in trial.intermediate_values)

    def end(self, record: Record) -> None:
        """Keep what has come of the setting that was tried."""
        states = optuna.trial.TrialState
        self._open.set_user_attr(_RECORD, asdict(record))
        if record.state == "complete" and record.score is not None:
            self._study.tell(self._open, record.score)
        else:
            self._study.tell(self._open, state=states.PRUNED if record.state == "pruned" else states.FAIL)
        self.records.append(record)


def _drop_torn_line(journal: Path) -> None:
    """Cut off what a killed process has not finished writing."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


def identity_of(parts: Sequence[Any]) -> str:
    """What a search is, as JSON."""
    return json.dumps(parts, sort_keys=True, default=str)
