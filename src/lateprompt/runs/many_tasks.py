"""`train_tasks`: many tasks on the same texts, trained in one run from one store of the frozen model's states.

One frozen model has an adapter for each task. A step is one read pass of all tasks' prompts on a batch; tasks do not
influence each other, so that each gets the weights that a run of its own would give it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from lateprompt.data import Row, Task
from lateprompt.data.batch import IGNORED
from lateprompt.data.batches import Batches
from lateprompt.data.label_columns import LabelledRows, read_label_columns
from lateprompt.data.row_checks import check_choosing_labels, shared_rows, unknown_labels, warn_shared, warn_unknown
from lateprompt.data.sampling import draw
from lateprompt.methods import adapter_config, parse_method
from lateprompt.predictors.base import pick_device
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.multi_task import EMBEDDING, MultiTask
from lateprompt.predictors.saved_run import ADAPTER
from lateprompt.readouts.head import HeadReadout
from lateprompt.readouts.tasks import TasksReadout
from lateprompt.run_folder.entries import CHECKPOINTS, FILES, MANIFEST
from lateprompt.run_folder.folder import METRICS_FILE, RunFolder
from lateprompt.runs.answers import calibrate, warn_of_one_class
from lateprompt.runs.data import DEV, DEV_ROWS, TEST, TRAIN, VALIDATION, Rows, fingerprint, resolve_task
from lateprompt.runs.environment import peak_memory_bytes
from lateprompt.runs.saving import write_run
from lateprompt.runs.train import check_run
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.class_weights import row_weights
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.distributed import processes
from lateprompt.training.evaluate import measure
from lateprompt.training.loop import FitResult, rows_needed
from lateprompt.training.many_tasks import TasksTrainer
from lateprompt.training.metrics import UNKNOWN
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_json
from lateprompt.utils.randomness import TURN, seeded

NO, YES = "no", "yes"
"""The labels of a task that asks whether a text has one of the labels of a list."""


def train_tasks(
    model: ModelSettings,
    data: DataSettings,
    columns: Sequence[str] = (),
    recipe: RecipeSettings | None = None,
    output: str | Path | None = None,
    states: StatesSettings | None = None,
    *,
    multi_label: str | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> tuple[MultiTask, dict[str, Any]]:
    """Train a classifier for each of several tasks on the same texts, in one run.

    The files have the labels of all tasks in columns of their own; a row with an empty cell does not count for that
    task. Each task gets what a run of its own would give it (the same weights where nothing drops out and every row has
    its label), for about the time of one.

    Args:
        model: the model's settings; the method is a read-only prompt without a tuner, the readout a head.
        data: the files; `shots` and `dev_rows` draw rows whatever their labels are.
        columns: the columns with labels; each is a task of this name.
        recipe: how to train.
        output: a folder; each task gets a run folder in it, and `metrics.json` has the figures of all. None: nowhere.
        states: whether and where the frozen model's states are kept.
        multi_label: a column with a list of labels a row, or a text of labels with `|` between them (an empty one: none
            of them); each label that the training rows have is a task of its name, with the labels no and yes.
        overwrite: replace the runs that are there; files that no run wrote are an error.
        quiet: no progress bar.

    Returns:
        The tuned model, which answers all tasks in one pass, and what went to `metrics.json`.

    Raises:
        LatePromptError: settings or data that cannot be, or a folder that may not be written to.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from lateprompt import train_tasks
        >>> from lateprompt.demo import installed_encoder
        >>> from lateprompt.training.data_settings import DataSettings
        >>> from lateprompt.training.settings import ModelSettings, RecipeSettings
        >>> rows = [("a warm film", "good", "film"), ("a dull film", "bad", "film"), ("a fine soup", "good", "food")]
        >>> lines = [json.dumps({"text": text, "mood": mood, "topic": topic}) for text, mood, topic in rows]
        >>> _ = Path("rows.jsonl").write_text("\\n".join(lines))
        >>> tuned, measured = train_tasks(
        ...     ModelSettings(installed_encoder(), method="read-npg"),
        ...     DataSettings("rows.jsonl"),
        ...     ["mood", "topic"],
        ...     RecipeSettings(max_steps=2),
        ... )
        >>> sorted(tuned.classify(["a fine film"])[0]), sorted(measured["tasks"])
        (['mood', 'topic'], ['mood', 'topic'])
    """
    started = time.perf_counter()
    recipe, states = recipe or RecipeSettings(), states or StatesSettings()
    _check_settings(model, data, recipe, states, columns, multi_label)
    folder = None if output is None else RunFolder(output)
    if folder is not None:
        folder.check(
            overwrite=overwrite, inputs=_inputs(data), apart=columns if multi_label is None else _below(folder)
        )
    rows = load_task_rows(data, columns, multi_label, recipe.seed)
    names = list(rows.tasks)
    run = TasksRun(model, rows, recipe, states, data=data, multi_label=multi_label, quiet=quiet)
    if folder is None:
        run.build()
        run.train()
        return run.tuned, run.measured(started)
    _check_folders(folder, names, data, overwrite=overwrite)
    run.build()
    with folder.locked():
        folder.settle(locked=True)
        _check_folders(folder, names, data, overwrite=overwrite)
        run.train()
        measured = run.measured(started)
        _write(folder, run, measured)
    return run.tuned, measured


def _write(folder: RunFolder, run: TasksRun, measured: dict[str, Any]) -> None:
    """Write all folders; the runs that are there stay until all new ones are written. The folder's lock is held."""
    folders = {name: RunFolder(folder.path / name) for name in run.rows.tasks}
    with ExitStack() as held:
        for own in folders.values():
            held.enter_context(own.locked())
            own.settle(locked=True)
        try:
            for name, own in folders.items():
                own.stage(partial(run.write_files, task=name))
            folder.stage(lambda place: write_json(place / METRICS_FILE, measured))
        except BaseException:
            for own in folders.values():
                own.discard()
            raise
        for own in (*folders.values(), folder):
            own.settle(locked=True)


# -- what is asked for -------------------------------------------------------------------------------------------------


def _check_settings(
    model: ModelSettings,
    data: DataSettings,
    recipe: RecipeSettings,
    states: StatesSettings,
    columns: Sequence[str],
    multi_label: str | None,
) -> None:
    """Raise LatePromptError for settings that cannot be, before anything is read."""
    if isinstance(columns, str):
        raise LatePromptError(f"columns {columns!r} is one name; give a list of columns")
    if not columns and multi_label is None:
        raise LatePromptError("columns is empty; give the columns with labels (--label-columns, --multi-label)")
    names = [*columns, *([] if multi_label is None else [multi_label])]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise LatePromptError(f"columns has {name!r}, which is no column; give names of columns")
        if names.count(name) > 1:
            raise LatePromptError(f"columns has {name!r} twice; give each column once")
    check_run(model, data, recipe, states)
    parts = parse_method(model.method)
    if len(parts) > 1 or not parts[0].method.read_only:
        raise LatePromptError(
            f"method {model.method!r} cannot train many tasks at once; give a read-only prompt without a tuner, such "
            "as read-npg"
        )
    if model.readout not in ("auto", "head"):
        raise LatePromptError(f"readout {model.readout!r} cannot train many tasks at once; give head")
    if isinstance(recipe.class_weight, Mapping):
        raise LatePromptError(f"class_weight {recipe.class_weight!r} names one task's labels; give balanced")
    for name in ("task", "label_words", "label_column", "target_column"):
        value = getattr(data, name)
        if value is not None:
            raise LatePromptError(f"{name} {value!r} belongs to one task, but there are many; leave it out")
    if processes().count > 1:
        raise LatePromptError(f"{processes().count} processes cannot train many tasks together; start one")


def _check_names(names: Sequence[str]) -> None:
    """Raise LatePromptError for names of tasks that cannot be names of folders."""
    taken = {*FILES, MANIFEST, *CHECKPOINTS, EMBEDDING}
    seen: dict[str, str] = {}
    for name in names:
        bad = set(name) & set("/\\:\0") or name.startswith(".") or name != name.strip() or len(name.encode()) > 200
        if bad or not name.isprintable() or name.casefold() in taken:
            raise LatePromptError(f"task {name!r} cannot be the name of a folder; rename this column, or this label")
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise LatePromptError(
                f"tasks {other!r} and {name!r} would have one folder where case does not count; rename one of them"
            )


def _inputs(data: DataSettings) -> list[str]:
    return [data.train, *data.dev, *data.test]


def _below(folder: RunFolder) -> list[str]:
    """The names of all folders in a folder: which of them are tasks', the data will say."""
    if not folder.path.is_dir():
        return []
    return [path.name for path in folder.path.iterdir() if path.is_dir()]


def _check_folders(folder: RunFolder, names: Sequence[str], data: DataSettings, *, overwrite: bool) -> None:
    """Raise LatePromptError if the runs may not be written."""
    folder.check(overwrite=overwrite, inputs=_inputs(data), apart=names)
    for name in names:
        RunFolder(folder.path / name).check(overwrite=overwrite, inputs=_inputs(data))


# -- the rows ----------------------------------------------------------------------------------------------------------


@dataclass
class TaskRows:
    """The rows of several tasks.

    Args:
        tasks: what is asked, by name.
        columns: of each task its column, if it has one of its own.
        rows: the rows of all sets, without labels; their `task` is the first one.
        labels: by the name of a set (`Rows.sets`) and the task, each row's label; None: it has none.
    """

    tasks: dict[str, Task]
    columns: dict[str, str | None]
    rows: Rows
    labels: dict[str, dict[str, list[str | None]]]

    def of(self, name: str, task: str) -> list[Row]:
        """The rows of a set that count for a task, with their labels."""
        pairs = zip(self.rows.sets()[name], self.labels[name][task], strict=True)
        return [replace(row, label=label) for row, label in pairs if label is not None]

    def classes(self, name: str) -> np.ndarray:
        """The class ids (rows, tasks) of a set's rows; -100 where a row has no label."""
        found = []
        for task_name, task in self.tasks.items():
            ids: dict[str | None, int] = {label: i for i, label in enumerate(task.labels)}
            ids[None] = IGNORED
            found.append([ids.get(label, UNKNOWN) for label in self.labels[name][task_name]])
        return np.array(found, dtype=np.int64).T


def load_task_rows(data: DataSettings, columns: Sequence[str], multi_label: str | None, seed: int) -> TaskRows:
    """Read, check and sample what the settings name; rows without any label are left out.

    Raises:
        LatePromptError: bad data.
    """

    def read(path: str, split: str, *, needed: bool = False) -> LabelledRows:
        own = {"text": data.text_column, "text_pair": data.text_pair_column}
        return read_label_columns(path, columns, multi_label, split=split, columns=own, needed=needed)

    found = read(data.train, "train", needed=True)
    listed = sorted({label for labels in found.listed for label in labels or ()})
    for name in listed:
        if name in columns:
            raise LatePromptError(f"label {name!r} in column {multi_label!r} is the name of a column too; rename one")
    names = [*columns, *listed]
    _check_names(names)
    train, labels = _split(found, columns, listed)
    tasks = {name: _task(data, name if name in columns else None, name, train, labels[name]) for name in names}
    sets = {}
    for split, paths in ((VALIDATION, data.dev), (TEST, data.test)):
        for path in paths:
            sets[split, path] = _split(read(path, split), columns, listed)
    dev: tuple[list[Row], dict[str, list[str | None]]] = [], {name: [] for name in names}
    if data.dev:
        dev = sets.pop((VALIDATION, data.dev[0]))
        for name, task in tasks.items():
            own = [
                replace(row, label=label) for row, label in zip(dev[0], dev[1][name], strict=True) if label is not None
            ]
            if not own:
                raise LatePromptError(
                    f"{data.dev[0]}: no row has a label for task {name!r}, so none can choose its best weights; label "
                    "some, or leave out the dev file"
                )
            check_choosing_labels(own, task, f"{data.dev[0]}, task {name!r}")
    if data.shots is not None or data.dev_rows is not None:
        if data.dev_rows is not None and data.shots is None and data.dev_rows >= len(train):
            raise LatePromptError(
                f"dev_rows {data.dev_rows!r} leave none of the {len(train)} rows in {data.train!r} to train on"
            )
        shots = len(train) - (data.dev_rows or 0) if data.shots is None else data.shots
        drawn, rest = draw([""] * len(train), shots, seed, dev_size=data.dev_rows or DEV_ROWS)
        if not data.dev:
            dev = _taken(train, labels, rest)
        train, labels = _taken(train, labels, drawn)
        for name in names:
            if not any(label is not None for label in labels[name]):
                raise LatePromptError(
                    f"none of the {len(train)} rows drawn from {data.train!r} has a label for task {name!r}; draw more"
                )
    more_dev = {path: own[0] for (split, path), own in sets.items() if split == VALIDATION}
    test = {path: own[0] for (split, path), own in sets.items() if split == TEST}
    rows = Rows(next(iter(tasks.values())), train, dev[0], more_dev, test)
    of_sets = {TRAIN: labels, DEV: dev[1]}
    of_sets |= {rows.name_of(path, split): own[1] for (split, path), own in sets.items()}
    return TaskRows(tasks, {name: name if name in columns else None for name in names}, rows, of_sets)


def _split(
    found: LabelledRows, columns: Sequence[str], listed: Sequence[str]
) -> tuple[list[Row], dict[str, list[str | None]]]:
    """Rows that have a label of some task, and their labels by task."""
    labels = {name: found.labels[name] for name in columns}
    for name in listed:
        labels[name] = [None if own is None else YES if name in own else NO for own in found.listed]
    counted = [i for i in range(len(found.rows)) if any(own[i] is not None for own in labels.values())]
    return _taken(found.rows, labels, counted)


def _taken(
    rows: Sequence[Row], labels: Mapping[str, Sequence[str | None]], numbers: Sequence[int]
) -> tuple[list[Row], dict[str, list[str | None]]]:
    """Some of the rows, and their labels."""
    return [rows[i] for i in numbers], {name: [own[i] for i in numbers] for name, own in labels.items()}


def _task(data: DataSettings, column: str | None, name: str, rows: Sequence[Row], labels: Sequence[str | None]) -> Task:
    """The plain task of a column, or (None) of a label in a list, as a run of its own would have it."""
    own = [replace(row, label=label) for row, label in zip(rows, labels, strict=True) if label is not None]
    if column is None:
        shown = next((row for row in own if row.text_pair is not None), own[0])
        own = [replace(shown, label=label) for label in (NO, YES)]
    found = sorted({str(row.label) for row in own})
    if len(found) < 2:
        raise LatePromptError(
            f"{data.train}: all labels in column {name!r} are {found[0]!r}, but a task needs two; leave this column out"
        )
    return cast(Task, resolve_task(replace(data, label_column=column), own, "head"))


# -- the run -----------------------------------------------------------------------------------------------------------


@dataclass
class TasksRun:
    """Many tasks on one frozen model: built, trained, measured and written.

    Args:
        model: the model's and the method's settings.
        rows: the tasks and their rows.
        recipe: how to train.
        states: whether and where states are kept.
        data: where the rows come from.
        multi_label: the column with lists of labels.
        quiet: no progress bars.

    Attributes:
        tuned: the model of all tasks (`build`).
        metrics: of each task what goes to its `metrics.json` (`train`).
    """

    model: ModelSettings
    rows: TaskRows
    recipe: RecipeSettings
    states: StatesSettings
    data: DataSettings
    multi_label: str | None = None
    quiet: bool = True

    tuned: MultiTask = field(init=False, repr=False)
    metrics: dict[str, dict[str, Any]] = field(init=False, repr=False)
    results: dict[str, FitResult] = field(init=False, repr=False)
    fill_seconds: float = field(init=False, default=0.0)
    _batches: dict[str, Batches] = field(init=False, repr=False)
    _calibrated: dict[str, dict[str, Any]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = self.recipe.resolved(len(self.rows.rows.train), self.model.method)

    def build(self) -> None:
        """Load the frozen model, give each task a fresh adapter as a run of its own would have it, and encode the rows.

        Raises:
            LatePromptError: a setting or model that cannot be, or a row that cannot be encoded.
        """
        names = list(self.rows.tasks)
        device = pick_device(self.model.device)
        # On the CPU, where a single run makes its adapter too.
        settings = replace(self.model, readout="head", device="cpu")
        first = TextClassifier.build(settings, self.rows.tasks[names[0]], seed=self.recipe.seed)
        first.settings.device = self.model.device
        peft_model, layer = first.model, first.layer
        tuned: dict[str, TextClassifier] = {}
        for number, name in enumerate(names):
            adapter = ADAPTER if number == 0 else f"task{number}"
            task = self.rows.tasks[name]
            if number:
                extra = {"head_pooling": first.settings.head_pooling, "head_labels": len(task.labels)}
                with TURN, seeded(self.recipe.seed):
                    peft_model.add_adapter(adapter, adapter_config(first.settings, extra))
            layer.set_adapter(adapter)  # what is made next asks for the active one
            tuned[name] = TextClassifier(replace(first.settings), task, peft_model, first.tokenizer, device, adapter)
            tuned[name].base_fingerprint = first.base_fingerprint
        layer.set_adapter(ADAPTER)
        self.tuned = MultiTask(tuned)
        lead = tuned[names[0]]
        sets = self.rows.rows.sets().items()
        self._batches = {name: lead.batches(rows) for name, rows in sets if rows}

    def train(self) -> None:
        """Fill the store, train all tasks and measure them.

        Raises:
            LatePromptError: the training diverged.
        """
        self._warn()
        tuned = self.tuned.tasks
        lead = next(iter(tuned.values()))
        wanted = [
            (part, rows_needed(part, self.recipe) if name == TRAIN else np.arange(len(part)))
            for name, part in self._batches.items()
        ]
        cached, self.fill_seconds = lead.cached(wanted, self.states, quiet=self.quiet)
        batches = dict(zip(self._batches, cached, strict=True))
        for name, part in batches.items():
            part.labels = self.rows.classes(name)  # in the place of one task's
        batches[TRAIN].weights = self._weights()
        adapters = {name: own.adapter for name, own in tuned.items()}
        readout = TasksReadout({name: cast(HeadReadout, own.readout) for name, own in tuned.items()}, adapters)
        self._train_all()
        trainer = TasksTrainer(
            self.tuned.model,
            readout,
            batches[TRAIN],
            batches.get(DEV),
            self.recipe,
            sizes={name: len(task.labels) for name, task in self.rows.tasks.items()},
            metrics={name: task.metrics for name, task in self.rows.tasks.items()},
            device=self.tuned.device,
            quiet=self.quiet,
        )
        trainer.run()
        self.results = trainer.results()
        self._calibrate(trainer, batches)
        measured = {name: self._measure(trainer, part) for name, part in batches.items() if name not in (TRAIN, DEV)}
        self.metrics = {name: self._metrics_of(name, measured) for name in tuned}

    def _weights(self) -> np.ndarray | None:
        """The training rows' weights (rows, tasks) by each task's classes; None without class weights."""
        if self.recipe.class_weight is None:
            return None
        weights = np.ones((len(self.rows.rows.train), len(self.rows.tasks)), dtype=np.float32)
        for column, (name, task) in enumerate(self.rows.tasks.items()):
            labels = self.rows.labels[TRAIN][name]
            labelled = [i for i, label in enumerate(labels) if label is not None]
            own = row_weights(self.recipe.class_weight, [str(labels[i]) for i in labelled], task.labels)
            if own is not None:
                weights[labelled, column] = own
        return weights

    def _calibrate(self, trainer: TasksTrainer, batches: Mapping[str, Batches]) -> None:
        """Fit each task's temperature on its dev rows; warn of tasks that have learnt but one class."""
        held_out = DEV in batches
        found = trainer.scores(batches[DEV]) if held_out else {}
        nothing = np.zeros((0, 1), dtype=np.float32), np.zeros(0, dtype=np.int64)
        for name, tuned in self.tuned.tasks.items():
            scores, labels = found.get(name, nothing)
            if held_out:
                warn_of_one_class(scores.argmax(1), labels, tuned.task.labels, DEV, self.recipe, task=name)
            source = DEV if held_out else None
            self._calibrated[name] = calibrate(tuned, scores, labels, source=source, wanted=self.recipe.calibrate)

    def _measure(self, trainer: TasksTrainer, part: Batches) -> dict[str, dict[str, float]]:
        """Each task's metrics of its rows, and their calibration error."""
        return {
            name: {
                **measure(scores, labels, trainer.task_metrics[name]),
                **self.tuned.tasks[name].calibration.errors(scores, labels),
            }
            for name, (scores, labels) in trainer.scores(part).items()
        }

    def _train_all(self) -> None:
        """Let the weights of all adapters be trained: PEFT lets those of the active one."""
        layer: Any = self.tuned.layer
        for table in layer.adapter_layer_names:
            getattr(layer, table).requires_grad_(True)

    def _warn(self) -> None:
        """Warn of rows that sets share, and of labels that a task does not have."""
        warn_shared(shared_rows(self.rows.rows.sets()))
        for name, rows in self.rows.rows.sets().items():
            if name == TRAIN or not rows:
                continue
            for task in self.rows.tasks:
                own = self.rows.of(name, task)
                warn_unknown(unknown_labels(own, self.rows.tasks[task]), len(own), f"{name}, task {task}")

    def _metrics_of(self, task: str, measured: Mapping[str, Mapping[str, dict[str, float]]]) -> dict[str, Any]:
        """What goes to a task's `metrics.json`; what it took is what all tasks took together."""
        rows, result, tuned = self.rows.rows, self.results[task], self.tuned.tasks[task]

        def of(paths: Mapping[str, Any], split: str) -> dict[str, dict[str, float]]:
            found = {path: measured.get(rows.name_of(path, split), {}).get(task) for path in paths}
            return {path: values for path, values in found.items() if values is not None}

        self.tuned.layer.set_adapter(tuned.adapter)
        return {
            **result.metrics,
            **self._calibrated[task],
            "dev_sets": of(rows.more_dev, VALIDATION),
            "test": of(rows.test, TEST),
            "train_rows": len(self.rows.of(TRAIN, task)),
            "dev_rows": len(self.rows.of(DEV, task)),
            "tasks_in_run": len(self.rows.tasks),
            "steps": result.steps,
            "trainable_parameters": tuned.trainable_parameters,
            "train_seconds": result.train_seconds,
            "tokens_per_second": result.tokens_per_second,
            "trunk_fill_seconds": self.fill_seconds,
            "peak_memory_bytes": peak_memory_bytes(self.tuned.device),
        }

    def measured(self, started: float) -> dict[str, Any]:
        """What goes to the `metrics.json` of all tasks.

        Args:
            started: when the run began, by `time.perf_counter`.
        """
        first = next(iter(self.results.values()))
        return {
            "tasks": self.metrics,
            "train_rows": len(self.rows.rows.train),
            "dev_rows": len(self.rows.rows.dev),
            "steps": first.steps,
            "trainable_parameters": sum(own["trainable_parameters"] for own in self.metrics.values()),
            "train_seconds": first.train_seconds,
            "trunk_fill_seconds": self.fill_seconds,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self.tuned.device),
        }

    def write_files(self, place: Path, task: str) -> None:
        """Write the files of a task's run folder straight into a folder."""
        tuned = self.tuned.tasks[task]
        self.tuned.layer.set_adapter(tuned.adapter)  # the weights that count as trained
        column = self.rows.columns[task]
        data = {**asdict(self.data), "label_column": column}
        data |= {} if column is not None else {"multi_label": self.multi_label}
        data["fingerprints"] = {name: fingerprint(self.rows.of(name, task)) for name in self.rows.rows.sets()}
        facts = {
            "data": data,
            "labels": list(tuned.task.labels),
            "num_layers": tuned.layer.num_layers,
            "tasks_in_run": list(self.rows.tasks),
            "states": asdict(self.states),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        history = self.results[task].history
        write_run(place, tuned, recipe=asdict(self.recipe), history=history, metrics=self.metrics[task], facts=facts)
