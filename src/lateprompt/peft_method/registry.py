"""Make our methods known to PEFT as soon as both are imported, in whatever order, without importing PEFT for it.

`import lateprompt` has to be quick, and importing PEFT takes seconds. So a hook waits for PEFT, whoever imports it, and
imports then the modules that enter our methods into its tables. It works once and leaves nothing behind.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PEFT = "peft"
_OWN = "lateprompt."
_REGISTERING = ("lateprompt.peft_method.model", "lateprompt.peft_method.extra")
"""Modules that enter methods into PEFT's tables when they are imported."""


def register_with_peft() -> None:
    """Enter our methods into PEFT's tables: now if PEFT is there, else as soon as it has been imported."""
    if sys.modules.get(_PEFT) is not None:
        _import_registering()
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def _import_registering() -> None:
    for name in _REGISTERING:
        importlib.import_module(name)


class _Hook(MetaPathFinder):
    """Finds what the other finders find, and is told when PEFT, or a module of ours, has been executed.

    A module of ours that imports PEFT is itself half done when PEFT is there, and those that register need it: they are
    imported after the outermost one, in any thread, is done.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work = 0
        self._searching = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _PEFT and not fullname.startswith(_OWN):
            return None
        if getattr(self._searching, "name", None) == fullname:
            return None
        self._searching.name = fullname
        try:
            for finder in list(sys.meta_path):
                found = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = None if found is None or finder is self else found(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                        spec.loader = _Told(spec.loader, self)
                    return spec
        finally:
            self._searching.name = None
        return None

    def before(self) -> None:
        """A module of ours, or PEFT, is about to be executed."""
        with self._lock:
            self._at_work += 1

    def after(self, *, failed: bool) -> None:
        """It has been executed, or has failed."""
        with self._lock:
            last = self._at_work == 1 and self in sys.meta_path
            if failed or not last or sys.modules.get(_PEFT) is None:
                self._at_work -= 1
                return
        try:
            self._register()
        finally:
            with self._lock:
                self._at_work -= 1

    def _register(self) -> None:
        try:
            _import_registering()
        except ImportError:
            if self._at_work > 1:  # another thread has a module half done that was needed; it registers afterwards
                return
            _import_registering()  # it was done just now, or this says what is wrong
        with self._lock:
            if self in sys.meta_path:
                sys.meta_path.remove(self)


class _Told(Loader):
    """The loader that was found, which takes its own place again before it executes the module."""

    def __init__(self, loader: Any, hook: _Hook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        made: ModuleType | None = None if create is None else create(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._hook.before()
        try:
            self._loader.exec_module(module)
        except BaseException:
            self._hook.after(failed=True)
            raise
        self._hook.after(failed=False)
