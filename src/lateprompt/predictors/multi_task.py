"""`MultiTask`: many tuned classifiers of one base model, which runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from peft import PeftModel

from lateprompt.backbone.families import core_of
from lateprompt.backbone.read_only.tasks import keeps_keys
from lateprompt.backbone.read_only.text import FrozenText
from lateprompt.data import Example, Row, Task, TaskEncoder
from lateprompt.data.batch import Batch
from lateprompt.data.batches import Batches, sorted_batches
from lateprompt.data.task import default_task
from lateprompt.methods import is_late
from lateprompt.peft_method.layer import LatePromptLayer
from lateprompt.peft_method.tail_tuner import FULL
from lateprompt.peft_method.wrapping import wrap
from lateprompt.predictors.base import OpenedRun, pick_device
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.fingerprints import model_fingerprint
from lateprompt.predictors.loading import load_base, load_tokenizer
from lateprompt.predictors.multi_label import classifier_kind, classifier_kind_in
from lateprompt.predictors.saved_run import ADAPTER_WEIGHTS, load_adapter_weights
from lateprompt.readouts.head import HeadReadout, pool_states
from lateprompt.run_folder.folder import reading
from lateprompt.state_cache.keys import row_key
from lateprompt.state_cache.memory import CacheInfo, TextCache
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.randomness import TURN, seeded
from lateprompt.utils.suggestions import unknown

EMBEDDING = "embedding"
"""The frozen model's own pooled state, among a text's answers: no task's name."""
_POOLINGS = ("mean", "cls", "last")
_TOGETHER = 4096
"""Rows that are encoded and sorted at a time."""

Text = str | tuple[str, str] | Row
Answers = dict[str, Any]
"""By task `label` and `scores`, and perhaps `EMBEDDING`."""
Encoded = tuple[Example, ...]
"""One text, in each of the ways in which the tasks encode it."""
Route = Literal["shared", "path", "late", "own"]


@dataclass(frozen=True)
class _Task:
    """One task.

    Args:
        name: its name.
        tuned: its classifier, on the common model.
        route: how it is computed: `shared`, its prompt is read with the others'; `path`, in a read pass of its own,
            whose path has a tail tuner; `late`, an ordinary late prompt from the common trunk's states; `own`, alone.
        layer: p.
        size: k; 0 where there is no prompt.
    """

    name: str
    tuned: TextClassifier
    route: Route
    layer: int
    size: int


@dataclass(frozen=True)
class _Plan:
    """What is asked of some texts: the tasks by the way in which they encode texts, and whether embeddings are wanted.

    Args:
        tasks: of each encoder, the tasks.
        encoders: the encoders; those of embeddings last, one for texts and one for pairs.
        embeddings: whether these are there.
    """

    tasks: list[list[_Task]]
    encoders: list[TaskEncoder]
    embeddings: bool


class MultiTask:
    """Tuned classifiers of one base model: a text goes through the frozen model once, whatever number of tasks it has.

    Read-only prompts of all tasks are read in one pass; ordinary late prompts share the layers below them. Answers are
    those of `TextClassifier.load(folder)`, whichever tasks are asked together.

    Args:
        tasks: classifiers by name, each an adapter of the same PEFT model; `load` makes them from run folders.
        cache_bytes: keep what the frozen model computes of texts in memory, up to so many bytes; 0: keep nothing.

    Example:
        >>> from lateprompt.predictors.multi_task import MultiTask
        >>> def label(runs: list[str], texts: list[str]) -> None:
        ...     model = MultiTask.load(runs, cache_bytes=1 << 30)
        ...     for text, answers in zip(texts, model.classify(texts)):
        ...         print(text, {task: answer["label"] for task, answer in answers.items()})
    """

    def __init__(self, tasks: Mapping[str, TextClassifier], *, cache_bytes: int = 0) -> None:
        if not tasks:
            raise LatePromptError("tasks is empty; give at least one run")
        for name in tasks:
            if not isinstance(name, str) or not name.strip() or name == EMBEDDING:
                raise LatePromptError(f"task name {name!r} cannot be; give another one: {{'name': folder}}")
        first = next(iter(tasks.values()))
        other = next((name for name, tuned in tasks.items() if tuned.model is not first.model), None)
        if other is not None:
            raise LatePromptError(f"task {other!r} is on a model of its own; load all runs by MultiTask.load")
        self.model: PeftModel = first.model
        self.layer: LatePromptLayer = first.layer
        self.tokenizer, self.device = first.tokenizer, first.device
        self.cache = TextCache(cache_bytes)
        self._tasks = {name: self._made(name, tuned) for name, tuned in tasks.items()}
        self._low = min([t.layer for t in self._tasks.values() if t.route != "own"], default=self.layer.num_layers - 1)
        longest = max(tuned.max_length for tuned in tasks.values())
        self._bare: dict[bool, TaskEncoder] = {
            pair: TaskEncoder(self.tokenizer, default_task(["a", "b"], pair=pair), "head", longest)
            for pair in (False, True)
        }

    def _made(self, name: str, tuned: TextClassifier) -> _Task:
        layer, adapter = self.layer, tuned.adapter
        slot, generators = layer.slots[adapter], dict(layer.late_prompt_generators.items())
        generator = generators.get(adapter)
        route: Route = "own"
        if is_late(tuned.settings.method) and adapter not in layer.input_prompts and not tuned.readout.continuations():
            if not (slot.read_only and generator is not None):
                route = "late"
            elif tuned.readout.reads_tasks():
                route = "path" if adapter in layer.tail_tuners else "shared"
        size = 0 if generator is None else int(generator.num_prompt_tokens)  # type: ignore[arg-type]
        return _Task(name, tuned, route, slot.prompt_layer, size)

    @classmethod
    def load(
        cls,
        runs: Sequence[str | Path] | Mapping[str, str | Path],
        *,
        model: str | None = None,
        device: str | None = None,
        check_model: bool = True,
        cache_bytes: int = 0,
    ) -> MultiTask:
        """The classifiers of run folders on one base model in memory.

        Args:
            runs: run folders, whose names are the tasks'; or task names to run folders.
            model: where the base model is, if not where it was.
            device: where to run; default a GPU if there is one.
            check_model: refuse runs of other base models than the first one's.
            cache_bytes: see the class.

        Raises:
            LatePromptError: as `TextClassifier.load`; two folders of one name; runs of different base models; a run
                that trained the base model's own weights.
        """
        folders = _named(runs)
        if not folders:
            raise LatePromptError("runs is empty; give at least one run folder")
        opened = {}
        for name, folder in folders.items():
            with reading(folder):
                opened[name] = classifier_kind_in(folder).open_run(folder, model, device)
            tuner = opened[name].adapter.tuner or {}
            if tuner.get("peft_type") == FULL and len(folders) > 1:
                raise LatePromptError(
                    f"run {str(folder)!r} trained the base model's own weights, which no other task can share; load it "
                    "alone, by TextClassifier.load"
                )
        first = next(iter(opened.values()))
        lead = next((run for run in opened.values() if run.settings.readout != "head"), first)
        if check_model:
            _check_same_base(folders, opened)
        base = load_base(lead.settings.model, lead.settings.readout, dtype=lead.settings.dtype)
        found = {"head": model_fingerprint(core_of(base)), lead.settings.readout: model_fingerprint(base)}
        if check_model:
            _check_base(folders, opened, found)
        tokenizer, place = load_tokenizer(lead.settings.model), pick_device(device)
        tuned: dict[str, TextClassifier] = {}
        peft_model: PeftModel | None = None
        for number, (name, run) in enumerate(opened.items()):
            adapter = f"task{number}"
            try:
                with TURN, seeded(0):  # for weights that the file's take the place of
                    if peft_model is None:
                        peft_model = wrap(base, run.adapter, adapter)
                    else:
                        peft_model.add_adapter(adapter, run.adapter)
                with reading(folders[name]):
                    load_adapter_weights(peft_model, folders[name] / ADAPTER_WEIGHTS, adapter)
            except LatePromptError as error:
                raise LatePromptError(f"run {str(folders[name])!r}: {error}") from None
            cast(Any, peft_model.base_model).layer.set_adapter(adapter)  # what is made next asks for the active one
            kind, task = classifier_kind(cast(Task, run.task)), cast(Any, run.task)
            tuned[name] = kind(run.settings, task, peft_model, tokenizer, place, adapter)
            tuned[name].base_fingerprint = found.get(run.settings.readout)
            tuned[name].calibration = run.calibration
            tuned[name].take_facts(run.run, folders[name])
        return cls(tuned, cache_bytes=cache_bytes)

    @property
    def tasks(self) -> dict[str, TextClassifier]:
        """The classifiers by task."""
        return {name: task.tuned for name, task in self._tasks.items()}

    def reading_task(self, text_column_given: bool = False) -> Task:
        """The task by which rows for all of them are read from a file.

        Args:
            text_column_given: whether the user says which column has the texts.

        Raises:
            LatePromptError: the tasks read their texts from different columns, and nobody says which is meant.
        """
        own = {name: tuned.task for name, tuned in self.tasks.items()}
        first, lead = next(iter(own.items()))
        for name, task in own.items():
            pairs = [{**one.columns, **one.chosen_columns}.get("text", "text") for one in (lead, task)]
            if pairs[0] != pairs[1] and not text_column_given:
                raise LatePromptError(
                    f"tasks {first!r} and {name!r} read their texts from different columns ({pairs[0]!r}, "
                    f"{pairs[1]!r}); say which one the file has with --text-column"
                )
        return next((task for task in own.values() if task.is_pair), lead)

    def cache_info(self) -> CacheInfo:
        """Hits, misses and sizes of the cache of texts."""
        return self.cache.info()

    def classify(
        self,
        texts: Iterable[Text],
        tasks: Sequence[str] | None = None,
        *,
        embeddings: bool = False,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """Labels and probabilities of texts, for all tasks or some.

        Args:
            texts: texts, pairs of texts, or rows.
            tasks: the names of the tasks that are wanted; None: all.
            embeddings: whether the frozen model's own pooled state is wanted too.
            batch_size: texts in a batch.
            progress: told the number of texts done since it was last told.

        Returns:
            For each text `{task: {"label": label, "scores": {label: probability}}}`, of a multi-label task with the
            list of its labels for `label`; with `embeddings` also `"embedding"`, the state (hidden,) as an array:
            the mean over the text for encoders, the last token's for decoders, of the text alone without any task's
            template.

        Raises:
            LatePromptError: no such task, or a text that a task cannot read.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise LatePromptError(f"batch_size {batch_size!r} is too small; give a whole number from 1")
        if isinstance(texts, str):
            raise LatePromptError(f"texts {texts[:40]!r} is one text; give a list of texts")
        rows = [_row(text) for text in texts]
        found: list[Answers] = []
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            encoded = self.encode(part, tasks, embeddings=embeddings)
            found += self.answer(encoded, tasks, embeddings=embeddings, batch_size=batch_size, progress=progress)
        return found

    # -- in two steps: encode, answer --------------------------------------------------------------------------------

    @property
    def may_be_empty(self) -> bool:
        """Whether an empty text would give no tokens for some task."""
        return any(encoder.may_be_empty for encoder in self._plan(None, embeddings=True).encoders)

    def encode(self, rows: Sequence[Row], tasks: Sequence[str] | None = None, *, embeddings: bool = False) -> list[Any]:
        """What `answer` takes of each row; LatePromptError for a row that a task cannot read."""
        plan = self._plan(tasks, embeddings=embeddings)
        bare = [Row(row.text, row.text_pair) for row in rows]
        ways = [encoder.encode(bare) for encoder in plan.encoders[: len(plan.tasks)]]
        if embeddings:
            way: list[Example | None] = [None] * len(rows)
            for pair, encoder in self._bare.items():
                places = [i for i, row in enumerate(bare) if (row.text_pair is not None) == pair]
                for place, example in zip(places, encoder.encode([bare[i] for i in places]), strict=True):
                    way[place] = example
            ways.append(cast(list[Example], way))
        return list(zip(*ways, strict=True))

    def answer(
        self,
        encoded: Sequence[Encoded],
        tasks: Sequence[str] | None = None,
        *,
        embeddings: bool = False,
        batch_size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answers]:
        """`classify` of what `encode` gave for the same tasks."""
        plan = self._plan(tasks, embeddings=embeddings)
        answers: list[Answers] = [{} for _ in encoded]
        if not encoded:
            return answers
        scores: dict[str, np.ndarray] = {}
        states: np.ndarray | None = None
        ways = list(zip(*encoded, strict=True))
        for number, together in enumerate(_equal_ways(ways)):
            feed = Batches(ways[together[0]], self.tokenizer.pad_token_id or 0)
            for rows in sorted_batches(feed.lengths, batch_size):
                parts, state = self._answer_batch(feed, rows, together, ways, plan)
                for name, part in parts.items():
                    if name not in scores:
                        scores[name] = np.empty((len(encoded), part.shape[1]), dtype=part.dtype)
                    scores[name][rows] = part
                if state is not None:
                    states = np.empty((len(encoded), state.shape[1]), state.dtype) if states is None else states
                    states[rows] = state
                if progress is not None and number == 0:
                    progress(len(rows))
        for name in tasks if tasks is not None else self._tasks:
            tuned = self._tasks[name].tuned
            with np.errstate(invalid="ignore"):
                probabilities, given = tuned.probabilities_of(scores[name]), tuned.answers_of(scores[name])
            for answer, row, label in zip(answers, probabilities.tolist(), given, strict=True):
                answer[name] = {"label": label, "scores": dict(zip(tuned.task.labels, row, strict=True))}
        if states is not None:
            for answer, state in zip(answers, states, strict=True):
                answer[EMBEDDING] = state
        return answers

    def _plan(self, names: Sequence[str] | None, *, embeddings: bool) -> _Plan:
        if isinstance(names, str):
            raise LatePromptError(f"tasks {names!r} is one name; give a list of names")
        chosen = list(self._tasks if names is None else dict.fromkeys(names))
        for name in chosen:
            if name not in self._tasks:
                raise LatePromptError(unknown("task", name, list(self._tasks)))
        if not chosen and not embeddings:
            raise LatePromptError("tasks [] asks for nothing; give at least one task, or embeddings=True")
        ways: dict[Any, tuple[TaskEncoder, list[_Task]]] = {}
        for name in chosen:
            encoder = self._tasks[name].tuned.encoder
            ways.setdefault(encoder.signature, (encoder, []))[1].append(self._tasks[name])
        encoders = [encoder for encoder, _ in ways.values()]
        more = list(self._bare.values()) if embeddings else []
        return _Plan([tasks for _, tasks in ways.values()], [*encoders, *more], embeddings)

    # -- one batch ---------------------------------------------------------------------------------------------------

    def _answer_batch(
        self, feed: Batches, rows: np.ndarray, together: Sequence[int], ways: Sequence[Sequence[Example]], plan: _Plan
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Scores (rows, labels) by task, and the embeddings (rows, hidden), of texts that some ways encode alike."""
        batch = feed.batch(rows).to(self.device)
        batches: dict[str, Batch] = {}
        tasks: list[_Task] = []
        for way in together:
            if way >= len(plan.tasks):
                continue
            own = replace(batch, read=torch.tensor([ways[way][i].read for i in rows]).to(self.device))
            batches |= {task.name: own for task in plan.tasks[way]}
            tasks += plan.tasks[way]
        wants_state = plan.embeddings and len(plan.tasks) in together
        keys = None
        if self.cache.limit_bytes:
            keys = [row_key(feed.examples[i].input_ids, feed.examples[i].token_type_ids) for i in rows]
        with torch.inference_mode(), TURN:
            if self.layer.training:
                self.layer.eval()
            return self._compute(batch, batches, tasks, keys, wants_state)

    def _compute(
        self,
        batch: Batch,
        batches: Mapping[str, Batch],
        tasks: Sequence[_Task],
        keys: Sequence[bytes] | None,
        wants_state: bool,
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        shared = [task for task in tasks if task.route == "shared"]
        paths = [task for task in tasks if task.route == "path"]
        late = [task for task in tasks if task.route == "late"]
        pool = "last" if self.layer.family.causal else "mean"
        wanted = {kind for task in (*shared, *paths) if (kind := _pooling(task)) is not None}
        wanted |= {pool} if wants_state else set()
        text: FrozenText | None = None
        pooled: dict[str, torch.Tensor] = {}
        if shared or paths or wants_state:
            self._activate((shared or tasks or list(self._tasks.values()))[0])
            low = min([task.layer for task in (*shared, *paths, *late)], default=self.layer.num_layers - 1)
            queries = sum(task.size for task in shared)
            text, pooled = self._text(batch, self._low if keys is not None else low, queries, sorted(wanted), keys)
        scores: dict[str, torch.Tensor] = {}
        for part in ([shared] if shared else []) + [[task] for task in paths]:
            assert text is not None
            self._activate(part[0])
            anchors = _anchors(part, batches)
            means = self.layer.read_tasks([task.tuned.adapter for task in part], text, anchors)
            for task in part:
                own = pooled.get(_pooling(task) or "")
                scores[task.name] = task.tuned.readout.read_scores(means[task.tuned.adapter], own)
        trunks: dict[int, torch.Tensor] = {} if text is None else dict(text.states)
        for task in tasks:
            if task.route in ("shared", "path"):
                continue
            self._activate(task)
            own_batch = batches[task.name]
            if task.route == "late":
                if task.layer not in trunks:
                    trunks[task.layer] = self.layer.run_trunk(task.layer, batch.backbone_inputs())
                own_batch = replace(own_batch, trunk_states=trunks[task.layer])
            scores[task.name] = task.tuned.readout.scores(own_batch).float()
        state = pooled[pool].float().cpu().numpy() if wants_state else None
        return {name: part.cpu().numpy() for name, part in scores.items()}, state

    def _activate(self, task: _Task) -> None:
        """Let its adapter answer calls that name none; another one's tail tuner is then off."""
        if self.layer.active_adapters != [task.tuned.adapter]:
            self.layer.set_adapter(task.tuned.adapter, inference_mode=True)

    def _text(
        self, batch: Batch, low: int, queries: int, poolings: Sequence[str], keys: Sequence[bytes] | None
    ) -> tuple[FrozenText, dict[str, torch.Tensor]]:
        """The frozen states from the layer `low` on, and the frozen output pooled in some ways."""
        inputs, length = batch.backbone_inputs(), batch.input_ids.shape[1]
        if keys is None:
            kept = keeps_keys(self.layer.family, self.layer.config, length, queries)
            text = self.layer.frozen_text(low, whole=bool(poolings), keys=kept and queries > 0, **inputs)
            return text, {kind: pool_states(text.last, batch.attention_mask, kind) for kind in poolings}  # type: ignore[arg-type]
        found = [self.cache.get(key) for key in keys]
        missing = [i for i, part in enumerate(found) if part is None]
        if missing:
            for i, part in zip(missing, self._make(batch, low, missing), strict=True):
                self.cache.put(keys[i], part)
                found[i] = part
        parts = [part for part in found if part is not None]
        layers, _, hidden = parts[0][0].shape
        together = parts[0][0].new_zeros(layers, len(parts), length, hidden)
        for i, (states, _) in enumerate(parts):
            together[:, i, : states.shape[1]] = states
        together = together.to(self.device)
        pooled = torch.stack([own for _, own in parts], 1).to(self.device)
        text = self.layer.frozen_text(low, **inputs, trunk_states={low + i: part for i, part in enumerate(together)})
        return text, {kind: pooled[_POOLINGS.index(kind)] for kind in poolings}

    def _make(self, batch: Batch, low: int, rows: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of some rows, the states (layers, own length, hidden) and the pooled ones (ways, hidden), each by itself."""
        at = torch.tensor(rows, device=batch.input_ids.device)
        mask = batch.attention_mask[at]
        lengths = mask.sum(1).tolist()
        width = max(lengths)
        mask = mask[:, :width]
        inputs: dict[str, Any] = {"input_ids": batch.input_ids[at, :width], "attention_mask": mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids[at, :width]
        text = self.layer.frozen_text(low, whole=True, **inputs)
        states = torch.stack([text.states[layer] for layer in sorted(text.states)]).cpu()
        assert text.last is not None
        pooled = torch.stack([pool_states(text.last, mask, kind) for kind in _POOLINGS]).cpu()
        return [
            (states[:, i, :length].clone(memory_format=torch.contiguous_format), pooled[:, i].clone())
            for i, length in enumerate(lengths)
        ]


def _pooling(task: _Task) -> str | None:
    """How its head pools the frozen model's output; None: it reads none."""
    readout = task.tuned.readout
    return readout.pooling if isinstance(readout, HeadReadout) else None


def _anchors(tasks: Sequence[_Task], batches: Mapping[str, Batch]) -> dict[str, torch.Tensor]:
    """By adapter the positions that its prompt stands for, one tensor for all that have the same."""
    made: dict[Any, torch.Tensor] = {}
    alike: list[torch.Tensor] = []
    found = {}
    for task in tasks:
        readout, batch = task.tuned.readout, batches[task.name]
        key = readout.kind, _pooling(task), id(batch)
        if key not in made:
            own = readout.anchor(batch)
            made[key] = next((other for other in alike if torch.equal(other, own)), own)
            if made[key] is own:
                alike.append(own)
        found[task.tuned.adapter] = made[key]
    return found


def _equal_ways(ways: Sequence[Sequence[Example]]) -> list[list[int]]:
    """The ways in which texts are encoded, those together that give the same token ids for all of them."""
    groups: dict[bytes, list[int]] = {}
    for number, way in enumerate(ways):
        key = b"".join(row_key(example.input_ids, example.token_type_ids) for example in way)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _row(text: Text) -> Row:
    if isinstance(text, Row):
        return text
    if isinstance(text, str):
        return Row(text)
    if isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return Row(text[0], text[1])
    raise LatePromptError(f"text {str(text)[:60]!r} is no text; give a str, a pair of them, or a Row")


def _named(runs: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, Path]:
    """Task names to run folders."""
    if isinstance(runs, str | Path):
        raise LatePromptError(f"runs {str(runs)!r} is one folder; give a list of folders, or names to folders")
    if isinstance(runs, Mapping):
        return {name: Path(folder) for name, folder in runs.items()}
    found: dict[str, Path] = {}
    for run in runs:
        folder = Path(run)
        name = folder.name or folder.resolve().name
        if name in found:
            raise LatePromptError(
                f"runs {str(found[name])!r} and {str(folder)!r} have the same name {name!r}; give one of them another "
                "(in Python: {'name': folder, …})"
            )
        found[name] = folder
    return found


def _check_same_base(folders: Mapping[str, Path], opened: Mapping[str, OpenedRun]) -> None:
    """Raise LatePromptError for runs of one kind of readout that were trained on different base models."""
    seen: dict[bool, tuple[str, OpenedRun]] = {}
    for name, run in opened.items():
        other, there = seen.setdefault(run.settings.readout == "head", (name, run))
        known = run.fingerprint is not None and there.fingerprint is not None
        if known and run.fingerprint != there.fingerprint:
            raise _other_base(folders[other], there, folders[name], run)
    first, lead = next(iter(opened.items()))
    for name, run in opened.items():
        if run.settings.dtype != lead.settings.dtype:
            raise _other_base(folders[first], lead, folders[name], run)


def _check_base(folders: Mapping[str, Path], opened: Mapping[str, OpenedRun], found: Mapping[str, str | None]) -> None:
    """Raise LatePromptError for a run whose base model is not the one that was loaded."""
    lead = next((name for name, run in opened.items() if run.settings.readout != "head"), next(iter(opened)))
    for name, run in opened.items():
        there = found.get(run.settings.readout)
        if run.fingerprint is None or there is None or run.fingerprint == there:
            continue
        if name != lead:
            raise _other_base(folders[lead], opened[lead], folders[name], run)
        raise LatePromptError(
            f"model {run.settings.model!r} has other weights than the one that run {str(folders[name])!r} was trained "
            f"on: its fingerprint is {there}, the run has {run.fingerprint}; give the model it was trained on "
            "(--model), or take this one all the same with --ignore-fingerprint (in Python: check_model=False)"
        )


def _other_base(one: Path, first: OpenedRun, other: Path, second: OpenedRun) -> LatePromptError:
    facts = [f"{run.settings.model!r} in {run.settings.dtype}, {run.fingerprint}" for run in (first, second)]
    return LatePromptError(
        f"runs {str(one)!r} and {str(other)!r} have different base models ({facts[0]}; {facts[1]}); only tasks of one "
        "base model can be asked together"
    )
