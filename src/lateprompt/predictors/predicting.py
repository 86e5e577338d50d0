"""Predictions for a stream of rows: in the rows' order, with a memory that does not grow with their number.

A window of rows is read, encoded, sorted by length into batches, computed and handed on in the order it was read; only
then the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lateprompt.data import Example, Row, TargetEncoder, TaskEncoder
from lateprompt.data.rows import BadRow
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.linear.classifier import LinearClassifier
from lateprompt.predictors.linear.tfidf import TextEncoder
from lateprompt.predictors.multi_task import EMBEDDING, MultiTask
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.utils.errors import LatePromptError

Tuned = TextClassifier | LinearClassifier | TextWriter | MultiTask
OnError = Literal["stop", "skip"]
Progress = Callable[[int], None]

ROWS = 2048
"""Most rows in a window, by default: sorting more by length saves little padding."""
CHARACTERS = 2_000_000
"""Most characters in a window: a fast tokenizer takes some hundred bytes for each."""
_FIRST = 4
"""Batches in the first window; each further one has twice as many, so that the first results come early."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says of one row.

    Args:
        source: the row as it was read, empty where it could not be.
        prediction: the label, the list of labels (multi-label tasks) or the written text; None for a row with an error.
        scores: each label's probability; None for written texts, and for a row with an error.
        error: why there is no prediction.
        tasks: of several runs, what each says: by task its label and each label's probability; None: of one run.
        embedding: the frozen model's own pooled state, where it was asked for.
        expected: of a mistake, the row's own label, or list of labels.
    """

    source: Mapping[str, Any] = field(default_factory=dict)
    prediction: str | list[str] | None = None
    scores: Mapping[str, float] | None = None
    error: str | None = None
    tasks: Mapping[str, tuple[str | list[str], Mapping[str, float]]] | None = None
    embedding: Sequence[float] | None = None
    expected: str | list[str] | None = None


def predict_rows(
    tuned: Tuned,
    rows: Iterable[Row | BadRow],
    *,
    batch_size: int = 64,
    on_error: OnError = "stop",
    window: int | None = None,
    beams: int = 1,
    max_new_tokens: int | None = None,
    embeddings: bool = False,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each row, in the rows' order, as soon as its window of rows is computed.

    Args:
        tuned: what `lateprompt.predictors.kinds.load_run` gives, or a `MultiTask`.
        rows: rows, which are read as they are needed: `lateprompt.data.iter_rows` reads them from a file.
        batch_size: rows in a batch.
        on_error: what a row that cannot be predicted does: `stop` raises, after the predictions of the rows before it;
            `skip` gives a prediction with an `error`.
        window: most rows that are held at a time; default 2,048 (for written texts 8 batches).
        beams, max_new_tokens: for written texts, as in `TextWriter.write`.
        embeddings: for a `MultiTask`: give the frozen model's own pooled states too.
        progress: told the number of rows done since it was last told.

    Raises:
        LatePromptError: settings that cannot be (at once); with `stop`, a row that cannot be predicted.

    Example:
        >>> from lateprompt.data import iter_rows
        >>> from lateprompt.predictors.kinds import load_run
        >>> from lateprompt.predictors.predicting import predict_rows
        >>> def print_all(run: str, file: str) -> None:
        ...     classifier = load_run(run)
        ...     for found in predict_rows(classifier, iter_rows(file, task=classifier.task, labelled=False)):
        ...         print(found.prediction)
    """
    parts = predict_windows(
        tuned,
        rows,
        batch_size=batch_size,
        on_error=on_error,
        window=window,
        beams=beams,
        max_new_tokens=max_new_tokens,
        embeddings=embeddings,
        progress=progress,
    )
    return (prediction for part in parts for prediction in part)


def predict_windows(
    tuned: Tuned,
    rows: Iterable[Row | BadRow],
    *,
    batch_size: int = 64,
    on_error: OnError = "stop",
    window: int | None = None,
    beams: int = 1,
    max_new_tokens: int | None = None,
    embeddings: bool = False,
    progress: Progress | None = None,
) -> Iterator[list[Prediction]]:
    """`predict_rows`, a window at a time: what writes results wants to write many together."""
    if on_error not in ("stop", "skip"):
        raise LatePromptError(f"on_error {on_error!r} is unknown; choose stop or skip")
    for name, value in (("batch_size", batch_size), ("window", window), ("beams", beams)):
        if value is not None and value < 1:
            raise LatePromptError(f"{name} {value!r} is too small; give a whole number from 1")
    if isinstance(tuned, TextWriter):
        answers: _Answers = _Writing(tuned, batch_size, beams, max_new_tokens)
        most = window or 8 * batch_size
    else:
        if beams != 1 or max_new_tokens is not None:
            raise LatePromptError("beams and max_new_tokens are for models that write text; this one predicts labels")
        answers = _answers_of(tuned, batch_size, embeddings)
        most = window or max(ROWS, 8 * batch_size)
    return _predict(answers, rows, min(most, _FIRST * batch_size), most, on_error, progress)


def check_rows(
    tuned: Tuned, rows: Iterable[Row | BadRow], *, max_new_tokens: int | None = None
) -> Iterator[Row | BadRow]:
    """Pass rows on, having checked that each can be encoded, where a row that was read may fail in that.

    Raises:
        LatePromptError: a row that gives no tokens, or too many.
    """
    answers = _Writing(tuned, 1, 1, max_new_tokens) if isinstance(tuned, TextWriter) else _answers_of(tuned, 1, False)
    if not answers.may_refuse:
        yield from rows
        return
    start = 0
    for part in _windows(rows, ROWS, ROWS):
        good = [(number, row) for number, row in enumerate(part, start + 1) if isinstance(row, Row)]
        for (number, _), example in zip(good, answers.encode([row for _, row in good]), strict=True):
            if isinstance(example, str):
                raise LatePromptError(f"row {number}: {example}")
        start += len(part)
        yield from part


def _predict(
    answers: _Answers,
    rows: Iterable[Row | BadRow],
    first: int,
    most: int,
    on_error: OnError,
    progress: Progress | None,
) -> Iterator[list[Prediction]]:
    start = 0
    for part in _windows(rows, first, most):
        found = _predict_window(answers, part, on_error == "stop", progress)
        failed = next((index for index, one in enumerate(found) if one.error is not None), None)
        if on_error == "stop" and failed is not None:
            if failed:
                yield found[:failed]
            problem = str(found[failed].error)
            # A row that could be read does not know its line, and is counted.
            known = isinstance(part[failed], BadRow)
            raise LatePromptError(problem if known else f"row {start + failed + 1}: {problem}")
        start += len(part)
        yield found


def _predict_window(
    answers: _Answers, part: Sequence[Row | BadRow], stop: bool, progress: Progress | None
) -> list[Prediction]:
    """The predictions of a window's rows; with `stop` those up to the first error alone."""
    found: list[Prediction | None] = [None] * len(part)
    for index, row in enumerate(part):
        if isinstance(row, BadRow):
            found[index] = Prediction(row.source, error=f"{row.unit} {row.number}: {row.error}")
    places = [index for index, one in enumerate(found) if one is None]
    encoded = answers.encode([row for row in part if isinstance(row, Row)])
    for index, example in zip(places, encoded, strict=True):
        if isinstance(example, str):
            found[index] = Prediction(part[index].source, error=example)
    if stop:  # what stands behind the first error is not computed
        failed = next((index for index, one in enumerate(found) if one is not None), len(part))
        found = found[: failed + 1]
    pairs = zip(places, encoded, strict=True)
    good = [(index, one) for index, one in pairs if index < len(found) and not isinstance(one, str)]
    if good:
        answered = answers.answer([one for _, one in good], progress)
        for (index, _), answer in zip(good, answered, strict=True):
            found[index] = replace(answer, source=part[index].source)
    if progress is not None and len(found) > len(good):
        progress(len(found) - len(good))
    return [one for one in found if one is not None]


def _windows(rows: Iterable[Row | BadRow], first: int, most: int) -> Iterator[list[Row | BadRow]]:
    """The rows in lists of `first` rows, then of twice as many, up to `most`; rows of long texts in shorter ones."""
    limit, characters = first, 0
    part: list[Row | BadRow] = []
    try:
        for row in rows:
            part.append(row)
            characters += sum(len(value) for value in row.source.values() if isinstance(value, str))
            if isinstance(row, Row):
                characters += len(row.text) + len(row.text_pair or "")
            if len(part) >= limit or characters >= CHARACTERS:
                yield part
                part, characters = [], 0
                limit = min(2 * limit, most)
    except LatePromptError:  # of the reader: what came before it is predicted first
        if part:
            yield part
        raise
    if part:
        yield part


class _Answers:
    """What classifiers and writers do differently: which rows can be encoded, and what is said of them."""

    encoder: TaskEncoder | TargetEncoder | TextEncoder | MultiTask

    @property
    def may_refuse(self) -> bool:
        """Whether a text that was read may still give no tokens: others have the template's or special ones."""
        return self.encoder.may_be_empty

    def encode(self, rows: Sequence[Row]) -> list[Any]:
        """What `answer` takes of each row, or, as a text, what is wrong with it."""
        return _encode(self.encoder.encode, [Row(row.text, row.text_pair) for row in rows]) if rows else []

    def answer(self, examples: Sequence[Any], progress: Progress | None) -> Iterator[Prediction]:
        """The prediction for each, without its row."""
        raise TypeError(f"{type(self).__name__} must override answer")


def _encode(encode: Callable[[Sequence[Row]], Sequence[Any]], rows: Sequence[Row]) -> list[Any]:
    """All rows in one go, or, where one of them is refused, in halves until it is found."""
    try:
        return list(encode(rows))
    except LatePromptError as error:
        if len(rows) == 1:
            return [str(error).removeprefix("row 1 ")]  # its number in the list it was encoded with
        half = len(rows) // 2
        return _encode(encode, rows[:half]) + _encode(encode, rows[half:])


def _answers_of(tuned: TextClassifier | LinearClassifier | MultiTask, batch_size: int, embeddings: bool) -> _Answers:
    if isinstance(tuned, MultiTask):
        return _Asking(tuned, batch_size, embeddings)
    if embeddings:
        raise LatePromptError("embeddings come with a MultiTask; load the run by MultiTask.load([folder])")
    return _Labelling(tuned, batch_size)


class _Labelling(_Answers):
    def __init__(self, classifier: TextClassifier | LinearClassifier, batch_size: int) -> None:
        self.encoder = classifier.encoder
        classifier.restore()
        self.classifier, self.batch_size = classifier, batch_size

    def answer(self, examples: Sequence[Example], progress: Progress | None) -> Iterator[Prediction]:
        classifier, labels = self.classifier, self.classifier.task.labels
        feed = classifier.batched(examples)
        scores = classifier.batch_scores(feed, batch_size=self.batch_size, progress=progress)
        with np.errstate(invalid="ignore"):  # infinite scores are looked for below
            probabilities, given = classifier.probabilities_of(scores), classifier.answers_of(scores)
        for row, answer in zip(probabilities, given, strict=True):
            if np.isfinite(row).all():
                by_label = {label: round(score, 6) for label, score in zip(labels, row.tolist(), strict=True)}
                yield Prediction(prediction=answer, scores=by_label)
            else:
                yield Prediction(error=_no_numbers(row.tolist()))


def _no_numbers(scores: Sequence[float]) -> str:
    shown = f"{str(scores[:20])[:-1]}, …]" if len(scores) > 20 else str(scores)
    return f"the model's scores are no numbers ({shown}); predict with a float32 model"


class _Asking(_Answers):
    def __init__(self, model: MultiTask, batch_size: int, embeddings: bool) -> None:
        self.encoder = self.model = model
        self.batch_size, self.embeddings = batch_size, embeddings

    def encode(self, rows: Sequence[Row]) -> list[Any]:
        def ways(part: Sequence[Row]) -> Sequence[Any]:
            return self.model.encode(part, embeddings=self.embeddings)

        return _encode(ways, [Row(row.text, row.text_pair) for row in rows]) if rows else []

    def answer(self, examples: Sequence[Any], progress: Progress | None) -> Iterator[Prediction]:
        found = self.model.answer(examples, embeddings=self.embeddings, batch_size=self.batch_size, progress=progress)
        for answers in found:
            state = answers.pop(EMBEDDING, None)
            wrong = [name for name, answer in answers.items() if not np.isfinite([*answer["scores"].values()]).all()]
            if wrong:
                yield Prediction(error=f"task {wrong[0]!r}: {_no_numbers([*answers[wrong[0]]['scores'].values()])}")
                continue
            tasks = {
                name: (answer["label"], {label: round(score, 6) for label, score in answer["scores"].items()})
                for name, answer in answers.items()
            }
            yield Prediction(tasks=tasks, embedding=None if state is None else state.tolist())


class _Writing(_Answers):
    def __init__(self, writer: TextWriter, batch_size: int, beams: int, max_new_tokens: int | None) -> None:
        self.encoder = writer.encoder
        writer.restore()
        if max_new_tokens is not None and max_new_tokens < 1:
            raise LatePromptError(f"max_new_tokens {max_new_tokens!r} is too small; give a whole number from 1")
        self.writer, self.batch_size, self.beams = writer, batch_size, beams
        self.new = max_new_tokens or writer.settings.max_target_length

    @property
    def may_refuse(self) -> bool:
        longer = self.new > self.writer.settings.max_target_length  # than what sources were cut for
        return longer or super().may_refuse

    def encode(self, rows: Sequence[Row]) -> list[Any]:
        return [self._with_room(example) for example in super().encode(rows)]

    def _with_room(self, example: Example | str) -> Example | str:
        problem = None if isinstance(example, str) else self.writer.no_room(example.read + 1, self.new)
        return example if problem is None else problem

    def answer(self, examples: Sequence[Example], progress: Progress | None) -> Iterator[Prediction]:
        texts = self.writer.write(
            examples, batch_size=self.batch_size, beams=self.beams, max_new_tokens=self.new, progress=progress
        )
        for text in texts:
            yield Prediction(prediction=text)
