"""One at a time changes a store: whoever fills, prunes or verifies it holds its lock, and a dead process holds none.

The lock is the file `lock` in the store's folder, locked by the kernel (`flock`). Only its holder may remove it, with
the store: whoever waited for the removed file notices, and begins again with a new one. Reading takes no lock.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import FULL, FullDiskError

LOCK_FILE = "lock"
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class CannotCache(LatePromptError):
    """A store can be neither filled nor changed now: no permission, no room, or another process that does not end.

    A training goes on without stored states.
    """


CannotKeep = CannotCache
"""Its name in earlier releases."""


class Busy(CannotCache):
    """Another process changes the store, and does not end."""


@contextmanager
def put_plainly(folder: Path) -> Iterator[None]:
    """Raise `CannotCache` for what the disk or its permissions refuse; any other error stays as it is."""
    try:
        yield
    except (OSError, FullDiskError) as error:
        if isinstance(error, FullDiskError) or error.errno in FULL:
            raise CannotCache(
                f"no room for trunk states on the disk of {str(folder)!r}; free some (lateprompt states prune), use "
                "another folder, or --states off"
            ) from None
        if error.errno in _NO_PERMISSION:
            raise CannotCache(
                f"trunk states {str(folder)!r} cannot be written ({error.strerror}); mend its permissions, use "
                "another folder, or --states off"
            ) from None
        raise


@contextmanager
def changing(
    folder: Path, wait_seconds: float, *, create: bool = False, progress: Callable[[], int] | None = None
) -> Iterator[None]:
    """Be the only one who changes the store in `folder`.

    Args:
        folder: the store's own folder.
        wait_seconds: how long to wait for another process that changes it.
        create: make the folder if there is none.
        progress: a number that grows while the other process gets on; while it does, waiting goes on.

    Raises:
        CannotCache: another holds the lock for longer, or it cannot be taken here.
        LatePromptError: a folder that cannot be.
    """
    lock = _take(folder, wait_seconds, create, progress)
    try:
        yield
    finally:
        lock.release()


def _take(folder: Path, wait_seconds: float, create: bool, progress: Callable[[], int] | None) -> BaseFileLock:
    reached = progress() if progress is not None else 0
    vanished_until = time.monotonic() + max(wait_seconds, 10.0)
    while True:
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise CannotCache(f"trunk states {str(folder)!r} are gone; another process has removed them")
            lock = FileLock(folder / LOCK_FILE)  # one for each holder: threads keep each other out too
            lock.acquire(timeout=wait_seconds)
            return lock
        except Timeout:
            now = progress() if progress is not None else 0
            if now <= reached:
                raise Busy(
                    f"another process is filling trunk states {str(folder)!r}; wait, or use another folder"
                ) from None
            reached = now
        except FileNotFoundError:  # another has removed the folder since
            if time.monotonic() >= vanished_until:
                raise
        except (FileExistsError, NotADirectoryError) as error:
            raise cannot_hold(folder, error) from None
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            reason = getattr(error, "strerror", None) or str(error)
            raise CannotCache(
                f"trunk states {str(folder)!r} cannot be locked for writing ({reason}); mend its permissions, use "
                "another folder, or --states off"
            ) from None


def cannot_hold(folder: Path, error: OSError) -> LatePromptError:
    """What to say of a folder that is none."""
    return LatePromptError(
        f"folder {str(folder)!r} cannot hold trunk states: {error.strerror}; choose another, or --states off"
    )
