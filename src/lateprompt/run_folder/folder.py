"""A run folder: one writer at a time, and a new run replaces an old one as a whole.

A run first writes all its files into a sub-folder, its manifest last. Then the files are moved into place, the manifest
last again. If that is interrupted, the next process that reads or writes the folder moves the rest. So a folder never
holds parts of two runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lateprompt.run_folder.entries import (
    CHECKPOINT,
    CHECKPOINTS,
    FILES,
    KNOWN,
    LOCK,
    MANIFEST,
    NEW_CHECKPOINT,
    STARTED,
    STATE,
    clear_staging,
    foreign_entries,
    has_state,
    is_checkpoint,
    is_legacy,
    is_plain,
    manifest_of,
    refuse,
    remove_checkpoint,
    sha256_of,
    write_manifest,
)
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import STAGING, check_place, given_path, naming, sync_folder, write_json

METRICS_FILE = "metrics.json"


class RunFolder:
    """The folder that a run is written to.

    Args:
        folder: its path; it need not exist. A symbolic link to a folder stays a link.

    Raises:
        LatePromptError: a blank name.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from lateprompt.run_folder import RunFolder
        >>> def write(place):  # the files appear in the run folder together, or not at all
        ...     _ = (place / "metrics.json").write_text(json.dumps({"accuracy": 0.9}))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     run = RunFolder(Path(place) / "run")
        ...     run.check(overwrite=False)
        ...     with run.locked():
        ...         run.replace(write)
        ...     sorted(path.name for path in run.path.iterdir())
        ['manifest.json', 'metrics.json']
    """

    def __init__(self, folder: str | Path) -> None:
        self.shown = given_path(folder)
        self.path = Path(os.path.realpath(self.shown))
        self._made: list[Path] = []

    # -- before the work ---------------------------------------------------------------------------------------------

    def check(
        self,
        *,
        overwrite: bool,
        resume: bool = False,
        inputs: Iterable[str | Path] = (),
        apart: Collection[str] = (),
    ) -> None:
        """Raise an error if a run may not be written here; create and remove nothing.

        Args:
            overwrite: allow an existing run to be replaced.
            resume: allow an interrupted run to be continued.
            inputs: files that the run reads, which it must not replace.
            apart: names of sub-folders that are run folders themselves; whoever writes there checks them.

        Raises:
            LatePromptError: the path is a file, the folder is not empty or not writable, or it has files that do not
                belong to a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise LatePromptError(f"output {str(self.shown)!r} is a file; give a folder")
        check_place(self.path, self.shown, "output folder")
        if not self.path.is_dir() or self._is_empty():
            return
        if not (overwrite or resume):
            raise LatePromptError(
                f"output folder {str(self.shown)!r} is not empty; use --overwrite, --resume, or another folder "
                "(in Python: overwrite=True, resume=True)"
            )
        for name, why in foreign_entries(self.path):
            if name in apart:
                continue
            if not resume or name.partition("/")[0] in (*FILES, MANIFEST, STAGING) or name in CHECKPOINTS:
                raise refuse(self.shown, name, why)
        if not resume:
            self._check_inputs(inputs)

    def _is_empty(self) -> bool:
        """Return whether nothing is there, except what a run leaves that was stopped before its first checkpoint."""
        started = self.path / CHECKPOINT
        return all(
            entry.name == LOCK or (entry == started and is_checkpoint(started) and not has_state(started))
            for entry in self.path.iterdir()
        )

    def _check_inputs(self, inputs: Iterable[str | Path]) -> None:
        for given in inputs:
            for name in FILES:
                with suppress(OSError):
                    if Path(given).samefile(self.path / name):
                        raise LatePromptError(
                            f"{str(given)!r} is read, and would be replaced by the run in {str(self.shown)!r}; copy it "
                            "elsewhere, or give another folder"
                        )

    @contextmanager
    def locked(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the folder's lock, so that no other process writes here; a killed process leaves no lock behind.

        Args:
            wait_seconds: how long to wait for another process to finish.

        Raises:
            LatePromptError: another process (or thread) is writing here.
        """
        with naming(self.shown):
            self._made = [place for place in (self.path, *self.path.parents) if not place.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            try:
                lock.acquire(timeout=wait_seconds)
            except Timeout:
                raise LatePromptError(
                    f"another training is at work in {str(self.shown)!r}; wait until it has ended, or give another "
                    "folder"
                ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # before it is released: afterwards it could be another process's
                (self.path / LOCK).unlink()
            lock.release()
            with suppress(OSError):  # folders made here that stayed empty
                for place in self._made:
                    place.rmdir()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def is_finished(self) -> bool:
        """Return whether a complete run is here and no other has begun to replace it."""
        begun = any(is_checkpoint(self.path / name) for name in CHECKPOINTS)
        return (self.path / METRICS_FILE).is_file() and not begun

    def begin(self, *, overwrite: bool, resume: bool) -> Path:
        """Choose the folder for this run's checkpoints (with `resume` that of the interrupted run), and create it.

        A run that is here, and the checkpoint of one, stay until the new run is complete.
        """
        old, new = self.path / CHECKPOINT, self.path / NEW_CHECKPOINT
        chosen = old
        if resume:
            chosen = new if is_checkpoint(new) else old
        else:
            remove_checkpoint(new)
            if has_state(old):
                chosen = new if overwrite else old
            else:
                remove_checkpoint(old)
        with naming(self.shown):
            chosen.mkdir(exist_ok=True)
        if not any((chosen / name).is_file() for name in (STARTED, STATE)):
            write_json(chosen / STARTED, {"format": "lateprompt checkpoint"})
        return chosen

    def abandon(self, checkpoint: Path, *, keep_state: bool) -> None:
        """Clean up after an error: remove this run's checkpoints, so that the folder is as it was.

        Args:
            checkpoint: the folder that `begin` returned.
            keep_state: keep the checkpoint if there is one that training can be resumed from.
        """
        if not (keep_state and has_state(checkpoint)):
            remove_checkpoint(checkpoint)

    # -- a new run ---------------------------------------------------------------------------------------------------

    def put(self, write: Callable[[Path], None]) -> None:
        """Take the lock, finish what was interrupted here, and `replace` the run that is here."""
        with self.locked():
            self.settle(locked=True)
            self.replace(write)

    def replace(self, write: Callable[[Path], None]) -> None:
        """Replace the run that is here by the files that `write` writes: `stage`, and `settle`. The lock must be held.

        Until all files are written, the old run stays as it is.

        Args:
            write: called with an empty folder, to write the files into.

        Raises:
            LatePromptError: the disk is full, or a file of one of these names is here that does not belong to a run.
        """
        self.stage(write)
        self._move()

    def stage(self, write: Callable[[Path], None]) -> None:
        """Write a new run beside the one that is here, which `settle` then replaces; arguments and errors as `replace`.

        What was staged and is not wanted any more goes away by `discard`.
        """
        staging = self.path / STAGING
        with naming(self.shown):
            clear_staging(self.path)
            staging.mkdir()
        try:
            write(staging)
            for path in staging.iterdir():
                self._check_replaceable(path.name, manifest_of(self.path) or {})
            write_manifest(staging)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove a new run that has not taken its place. The lock must be held."""
        clear_staging(self.path)

    def _check_replaceable(self, name: str, *known: dict[str, str]) -> None:
        path = self.path / name
        if not os.path.lexists(path):
            return
        if is_plain(path) and name in KNOWN and is_legacy(self.path):
            return
        if not is_plain(path) or not any(name in hashes for hashes in known):
            raise refuse(self.shown, name, "which no run wrote")
        if sha256_of(path) not in [hashes.get(name) for hashes in known]:
            raise refuse(self.shown, name, "which was changed after the run wrote it")

    def _move(self) -> None:
        """Move the waiting files into place; after any interruption, calling it again finishes the move."""
        staging = self.path / STAGING
        new, old = manifest_of(staging), manifest_of(self.path) or {}
        if new is None:
            return
        waiting = [name for name in (*FILES, *sorted(set(new) - set(FILES))) if (staging / name).is_file()]
        for name in waiting:
            self._check_replaceable(name, old, new)
        with naming(self.shown):
            for name in waiting:
                (staging / name).replace(self.path / name)
            ours = {*old, *(KNOWN if is_legacy(self.path) else ())}
            for name in sorted(ours - set(new)):
                with suppress(LatePromptError):  # a file that a user has changed stays
                    self._check_replaceable(name, old)
                    (self.path / name).unlink(missing_ok=True)
            for name in CHECKPOINTS:
                remove_checkpoint(self.path / name)
            sync_folder(self.path)
            (staging / MANIFEST).replace(self.path / MANIFEST)
            clear_staging(self.path)
            sync_folder(self.path)

    @property
    def is_pending(self) -> bool:
        """Return whether a new run is complete but not yet moved into place."""
        return manifest_of(self.path / STAGING) is not None

    def settle(self, *, locked: bool = False) -> None:
        """Finish a replacement that was interrupted, or wait for one that is going on.

        Args:
            locked: whether the caller holds the lock.

        Raises:
            LatePromptError: it cannot be finished.
        """
        if not self.is_pending:
            return
        try:
            if locked:
                self._move()
            else:
                with self.locked(wait_seconds=10.0):
                    self._move()
        except OSError as error:
            raise LatePromptError(
                f"a new run is about to take its place in {str(self.shown)!r}, and cannot ({error.strerror}); make the "
                "folder writable and try again"
            ) from None


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Read the files of a run, sure that they all belong to the same run.

    Raises:
        LatePromptError: the run was replaced while it was read.
    """
    run = RunFolder(folder)
    run.settle()
    before = _manifest_bytes(run.path)

    def changed() -> bool:
        return run.is_pending or _manifest_bytes(run.path) != before

    message = f"the run in {str(folder)!r} was replaced while it was read; try again"
    try:
        yield
    except LatePromptError:
        if changed():
            raise LatePromptError(message) from None
        raise
    if changed():
        raise LatePromptError(message)


def _manifest_bytes(folder: Path) -> bytes | None:
    with suppress(OSError):
        if is_plain(folder / MANIFEST):
            return (folder / MANIFEST).read_bytes()
    return None
