"""`PredictionFile`: a file that has whole rows at any time, and what becomes of one that was there before."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lateprompt.predictors.outputs.columns import Columns, Survey
from lateprompt.predictors.outputs.formats import format_of, is_prediction_file
from lateprompt.predictors.outputs.parquet import ParquetSink
from lateprompt.predictors.outputs.sinks import LineSink, ScreenSink, Sink
from lateprompt.predictors.predicting import Prediction
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import keep_permissions, own_descriptor, sync_folder

SCREEN = "-"


def check_existing(path: str, *, overwrite: bool = False, tasks: Sequence[str] = ()) -> None:
    """Raise LatePromptError for an output file that is there, and is none of ours, unless it may be overwritten.

    Of several runs, `tasks` are the columns of their predictions.
    """
    file = Path(path)
    if path == SCREEN or own_descriptor(file) is not None or not file.is_file():
        return
    if overwrite or file.stat().st_size == 0 or is_prediction_file(file, tasks):
        return
    raise LatePromptError(
        f"output {path!r} exists and is no file of predictions; choose another name, or give --overwrite to replace it"
    )


class PredictionFile:
    """Predictions on their way into a file, whole rows at any time; use it in a `with` statement.

    A new file is written in its place; one that was there is replaced at the end, and until then the rows are in a file
    beside it (`out.partial.jsonl` for `out.jsonl`). Where the `with` block ends by an exception, what was written
    stays, up to the last whole row.

    Args:
        path: where to; `-` for the screen. The suffix says how: .csv, .tsv, .parquet, JSON lines for any other; .gz
            behind one of a text.
        labels: the task's labels; None for written texts; of several runs, each task's.
        errors: whether there may be rows with an error.
        survey: the columns of all rows, where they are known before; else a table has those of the first rows.
        overwrite: replace a file that is none of predictions.
        embeddings: whether there is a column `embedding`.
        mistakes: whether the rows are mistakes, see `Columns`.

    Raises:
        LatePromptError: a place that cannot be written, a full disk, or a table whose columns change on the way.

    Example:
        >>> from lateprompt.data import Row
        >>> from lateprompt.predictors.outputs.file import PredictionFile
        >>> from lateprompt.predictors.predicting import predict_windows
        >>> def label(classifier, texts: list[str], output: str) -> None:
        ...     with PredictionFile(output, labels=classifier.task.labels) as file:
        ...         for window in predict_windows(classifier, [Row(text) for text in texts]):
        ...             file.write(window)
    """

    def __init__(
        self,
        path: str | Path,
        *,
        labels: Sequence[str] | Mapping[str, Sequence[str]] | None,
        errors: bool = False,
        survey: Survey | None = None,
        overwrite: bool = False,
        embeddings: bool = False,
        mistakes: bool = False,
    ) -> None:
        self.name = str(path)
        self.format = format_of(self.name)
        tasks = labels if isinstance(labels, Mapping) else ()
        check_existing(self.name, overwrite=overwrite, tasks=tuple(tasks))
        self.columns = Columns(labels, errors=errors, flat=self.format.table, embeddings=embeddings, mistakes=mistakes)
        self.survey = survey
        self.errors = 0
        self.left = ""
        """After an exception: what is in which file."""
        self._sink: Sink | None = None
        self._place: Path | None = None
        self._target: Path | None = None
        self._held: int | None = None

    @property
    def rows(self) -> int:
        """How many rows are in the file."""
        return 0 if self._sink is None else self._sink.rows

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Write some rows; when it returns they are in the file (of a .parquet: when it is closed)."""
        assert self._sink is not None, "a PredictionFile is written in a with statement"
        lines = [self.columns.line(prediction) for prediction in predictions]
        try:
            self._sink.write(lines)
        except BrokenPipeError:  # the reader has what it wanted
            raise
        except OSError as error:
            raise LatePromptError(f"output {self.name!r} cannot be written: {error.strerror or error}") from None
        self.errors += sum(prediction.error is not None for prediction in predictions)

    def __enter__(self) -> PredictionFile:
        if self.survey is not None:
            self.columns.header(self.survey)  # the same names in all rows
        try:
            self._sink = self._open()
        except LatePromptError:
            self._release()
            raise
        except OSError as error:
            self._release()
            raise LatePromptError(f"output {self.name!r} cannot be written: {error.strerror or error}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            try:
                if kind is None:
                    self._finish()
                else:
                    self._abort()
            finally:
                self._release()

    def _finish(self) -> None:
        assert self._sink is not None
        try:
            self._sink.finish()
            if self._target is not None and self._place is not None:
                self._place.replace(self._target)
            if self._place is not None:
                sync_folder(self._place.parent)
        except OSError as problem:
            self._abort()
            raise LatePromptError(f"output {self.name!r} cannot be written: {problem.strerror or problem}") from None
        except LatePromptError:  # a row of the last ones
            self._abort()
            raise

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _abort(self) -> None:
        """Keep whole rows; without any, no file is left that was not there."""
        assert self._sink is not None
        with suppress(OSError):
            self._sink.abort()
        rows, place = self._sink.rows, self._place
        if place is None:
            self.left = f"{rows:,} rows were written before"
        elif rows:
            before = "" if self._target is None else f"; {self.name!r} is as it was"
            self.left = f"{self._shown(place)!r} has the first {rows:,} rows, the rest is missing{before}"
        else:
            with suppress(OSError):
                place.unlink()
            self.left = "nothing was written"

    def _shown(self, place: Path) -> str:
        """The file that is written, as the user would name it."""
        if self._target is None:
            return self.name
        near = Path(self.name).with_name(place.name)
        return str(near if os.path.realpath(near) == str(place) else place)  # elsewhere behind a link

    def _open(self) -> Sink:
        descriptor = None if self.name == SCREEN else own_descriptor(Path(self.name))
        if self.name == SCREEN or descriptor == 1:
            sys.stdout.flush()
            return ScreenSink()
        path = Path(os.path.realpath(self.name))
        if descriptor is not None or (path.exists() and not path.is_file()):  # a pipe or a device
            if self.format.kind == "parquet":
                raise LatePromptError(f"output {self.name!r} is no regular file, as a .parquet must be; write .jsonl")
            handle = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
            return LineSink(handle, self.format, self.columns, self.survey, whole=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._place = path
        if path.exists() and path.stat().st_size:
            self._target, self._place = path, _partial(path)
            self._held = os.open(path, os.O_RDONLY)
            _claim(self._held, self.name)
        kind: Any = ParquetSink if self.format.kind == "parquet" else LineSink
        handle = os.open(self._place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _claim(handle, self.name)
            os.ftruncate(handle, 0)
            if self._target is not None:
                keep_permissions(self._place, self._target.stat())
            return kind(handle, self.format, self.columns, self.survey)  # type: ignore[no-any-return]
        except BaseException:
            os.close(handle)
            raise


def _partial(path: Path) -> Path:
    """A name beside `path` with its suffixes, which no file has that is not ours."""
    form = format_of(str(path))
    stem = path.name.removesuffix(form.suffix) if form.suffix else path.name
    number = 1
    while True:
        place = path.with_name(f"{stem}.partial{'' if number == 1 else number}{form.suffix}")
        if not place.exists() or (place.is_file() and (not place.stat().st_size or is_prediction_file(place))):
            return place
        number += 1


def _claim(handle: int, name: str) -> None:
    """Hold the file until it is closed: a second predict into it would mix its rows with ours."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LatePromptError(f"output {name!r} is being written by another process; choose another name") from None
    except OSError:  # a file system without locks
        return


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for nothing here: they are ignored while a file is brought in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not made in Python
