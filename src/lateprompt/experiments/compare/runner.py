"""Runs a plan: worker processes, resuming, the search before, the table after each run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lateprompt.experiments.compare.cost import estimate
from lateprompt.experiments.compare.folder import (
    CHOSEN_FILE,
    LOCK_FILE,
    PLAN_FILE,
    SEARCH_FILE,
    check_results,
    plan_text,
)
from lateprompt.experiments.compare.plan import Plan, RunSpec
from lateprompt.experiments.compare.search import choose, search_runs
from lateprompt.experiments.compare.table import result_of, write_parquet, write_table
from lateprompt.experiments.compare.worker import RESULT_FILE, fail
from lateprompt.utils.console import Bar
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_lines, write_text

WORKER = "from lateprompt.experiments.compare.worker import main; main()"
_SIGNALLED_TOGETHER = 2.0
"""Seconds within which a signal that ended a worker ends this process too (Ctrl-C, a scheduler): no failed run."""


def compare(
    plan: Plan,
    results: Path,
    *,
    workers: int = 1,
    retry_failed: bool = False,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Run what of a plan has not finished yet; the rows of the table.

    A run that has a result is not done again; after an interruption the same call goes on.

    Args:
        plan: the plan.
        results: folder of the results.
        workers: processes at a time; they share the CPU's threads.
        retry_failed: run failed ones again.
        quiet: no progress bar.

    Raises:
        LatePromptError: settings that cannot be, another comparison at work in this folder, or files in the places of
            its own that none has made.
    """
    if workers < 1:
        raise LatePromptError(f"workers {workers!r} is too small; give a whole number from 1")
    results = check_results(results)
    results.mkdir(parents=True, exist_ok=True)
    with _locked(results):
        write_text(results / PLAN_FILE, plan_text(plan))
        chosen: dict[tuple[str, str], dict[str, Any]] = {}
        if plan.search is not None:
            searched = [spec for _, _, spec in search_runs(plan)]
            _run_all("search", searched, results, workers, retry_failed, quiet, lambda: None)
            found = {spec.key: result_of(results, spec) or {} for spec in searched}
            chosen, tries = choose(plan, found)
            write_lines(results / SEARCH_FILE, tries)
            write_text(results / CHOSEN_FILE, yaml.safe_dump(_as_methods(plan, chosen), sort_keys=False))
        specs = plan.runs(chosen=chosen)
        _run_all("runs", specs, results, workers, retry_failed, quiet, lambda: write_table(results, specs))
        rows = write_table(results, specs)
        write_parquet(results, rows)
    return rows


def waiting(
    plan: Plan, results: Path, *, retry_failed: bool = False
) -> tuple[list[RunSpec], list[tuple[RunSpec, Any]]]:
    """The runs that are left, and those that have finished with their results.

    Where a search has not finished, the comparison's runs are those with default settings.
    """
    searched = [spec for _, _, spec in search_runs(plan)]
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    if searched:
        with contextlib.suppress(LatePromptError):
            chosen, _ = choose(plan, {spec.key: result_of(results, spec) or {} for spec in searched})
    specs = searched + plan.runs(chosen=chosen)
    found = [(spec, result_of(results, spec)) for spec in specs]
    left = [s for s, result in found if result is None or (retry_failed and result["status"] == "failed")]
    return left, [(s, result) for s, result in found if result is not None and result["status"] == "done"]


def cost(plan: Plan, results: Path, *, retry_failed: bool = False) -> tuple[list[list[str]], float, str]:
    """As `estimate`, for what is left of a plan."""
    left, done = waiting(plan, results, retry_failed=retry_failed)
    return estimate(left, done)


def _as_methods(plan: Plan, chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """Methods of another plan, with the chosen settings; by model where there are several."""
    by_model = {}
    for model in plan.models:
        entries = [entry.changed(chosen[model.name, entry.name]) for entry in plan.methods]
        methods = [{key: value for key, value in vars(entry).items() if value} for entry in entries]
        by_model[model.name] = {"methods": methods}
    return next(iter(by_model.values())) if len(by_model) == 1 else by_model


def _run_all(
    title: str,
    specs: Sequence[RunSpec],
    results: Path,
    workers: int,
    retry_failed: bool,
    quiet: bool,
    after_each: Callable[[], Any],
) -> None:
    """Do what is missing of some runs: groups of one method and model to a process, `workers` at a time."""
    groups: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:  # in the plan's order, whatever is missing of each
        groups.setdefault((spec.settings.model, spec.name), [])
    done, seen = 0, set()
    for spec in specs:
        if spec.folder in seen:  # a setting that a method tries twice
            done += 1
            continue
        seen.add(spec.folder)
        result = result_of(results, spec)
        if result is not None and not (retry_failed and result["status"] == "failed"):
            done += 1
            continue
        groups[spec.settings.model, spec.name].append(spec)
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        return
    queue: Queue[list[RunSpec]] = Queue()
    for group in groups.values():
        queue.put(group)
    finished: Queue[RunSpec | BaseException] = Queue()
    stop = threading.Event()
    crowd = min(workers, len(groups))  # no thread is put by for a process that has nothing to do
    crew = [_Crew(queue, finished, stop, results, max(1, _cores() // crowd)) for _ in range(crowd)]
    try:
        with Bar(title, len(specs), quiet=quiet, start=done) as bar:
            for thread in crew:
                thread.start()
            for _ in range(sum(map(len, groups.values()))):
                ended = finished.get()
                if isinstance(ended, BaseException):
                    raise ended
                bar.note(f"{ended.name}, {ended.task}")
                bar.advance()
                after_each()
    finally:
        stop.set()
        for thread in crew:
            thread.end()


class _Crew(threading.Thread):
    """Feeds one worker process after the other."""

    def __init__(
        self,
        queue: Queue[list[RunSpec]],
        finished: Queue[RunSpec | BaseException],
        stop: threading.Event,
        results: Path,
        threads: int,
    ) -> None:
        super().__init__(daemon=True)
        self.queue, self.finished, self.stopped, self.results, self.threads = queue, finished, stop, results, threads
        self.process: subprocess.Popen[str] | None = None
        self.log = results / "worker.log"

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                try:
                    group = self.queue.get_nowait()
                except Empty:
                    return
                self._work(group)
        except BaseException as error:  # shown by the main thread
            self.finished.put(error)

    def _work(self, group: list[RunSpec]) -> None:
        for spec in group:
            if self.stopped.is_set():
                return
            folder = self.results / "runs" / spec.folder
            (folder / RESULT_FILE).unlink(missing_ok=True)
            if self.process is None or self.process.poll() is not None:
                self._start()
            process, said = self.process, self._log_size()
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps({"folder": str(folder.absolute()), "run": spec.to_json()}) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if self.stopped.is_set():
                return
            if not answer:
                code = process.wait()
                if code < 0 and self.stopped.wait(_SIGNALLED_TOGETHER):
                    return
                fail(folder, f"the process ended with code {code}{self._last_words(said)}")
                self.process = None
            self.finished.put(spec)
        self.end()

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.is_file() else 0

    def _last_words(self, start: int) -> str:
        """What was written to the log since it had this size; other workers write there too."""
        with self.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def end(self) -> None:
        """Stop the process."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.stopped.is_set():
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(results: Path) -> Iterator[None]:
    """One comparison at a time in a folder; the lock of a dead process is none."""
    lock = FileLock(results / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LatePromptError(
            f"another lateprompt compare is at work in {str(results)!r}; wait for it, or give another --output"
        ) from None
    try:
        yield
    finally:
        lock.release()
