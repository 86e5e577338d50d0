"""A run folder in the hands of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lateprompt.run_folder.folder import RunFolder
from lateprompt.training.distributed import processes
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import FullDiskError


class TrainingFolder:
    """A run folder in the hands of a training: the main process locks it and writes, all know where the state is kept.

    Args:
        folder: the folder.
        held: what ends with the training.
        inputs: files that must not be replaced.
        overwrite, resume: as in `train_run`.
    """

    def __init__(
        self, folder: RunFolder, held: ExitStack, inputs: Sequence[str], *, overwrite: bool, resume: bool
    ) -> None:
        self.folder, self.held, self.overwrite, self.resume = folder, held, overwrite, resume
        self.inputs, self.is_locked = inputs, False
        self.place: Path | None = None
        if processes().is_main:
            self._check()
            if folder.path.exists():  # else there is nothing yet that another one could be at work in
                self._lock()

    def _check(self) -> None:
        self.folder.check(overwrite=self.overwrite, resume=self.resume, inputs=self.inputs)

    def _lock(self) -> None:
        self.held.enter_context(self.folder.locked())
        self.folder.settle(locked=True)
        self._check()  # another one may have ended in between
        self.is_locked = True

    def begin(self) -> Path:
        """Where the state is kept; called when nothing can be wrong with settings and data any more."""
        together = processes()
        if together.is_main:
            if not self.is_locked:
                self._lock()
            self.place = self.folder.begin(overwrite=self.overwrite, resume=self.resume)
        place = together.gather(self.place)[0]
        assert isinstance(place, Path)
        return place

    @contextmanager
    def training(self) -> Iterator[None]:
        """While it trains: after an error the folder is as it was, unless there is a state to go on from."""
        try:
            yield
        except Exception as error:
            hopeless = isinstance(error, LatePromptError) and not isinstance(error, FullDiskError)  # it diverged
            self._abandon(keep_state=not (self.overwrite and hopeless))
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While the new run takes its place: what was trained is not lost by an error."""
        try:
            yield
        except Exception:
            self._abandon(keep_state=True)
            raise

    def _abandon(self, *, keep_state: bool) -> None:
        if self.place is not None and processes().is_main:
            self.folder.abandon(self.place, keep_state=keep_state)
