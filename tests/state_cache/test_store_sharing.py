"""A folder of trunk states among several processes, with broken, foreign and read-only stores in it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fill import ROWS, classifier
from test_store import assert_right, files, sequences
from tiny_models import tiny_model

from lateprompt.cli.app import main
from lateprompt.state_cache import (
    CannotCache,
    TrunkStates,
    admin,
    list_stores,
    prune,
    prune_stores,
    row_store,
    verify_stores,
)
from lateprompt.state_cache import segment as segments
from lateprompt.state_cache import store as store_module
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.facts import STORE_FILE
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.state_cache.locking import LOCK_FILE, changing
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import _new_file as new_file


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert")


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(store_module, "BATCH_TOKENS", 16)


def process(work, *arguments) -> multiprocessing.Process:
    """Do some work in a process of its own."""
    made = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    made.start()
    return made


def ended(*processes: multiprocessing.Process) -> None:
    for one in processes:
        one.join(300)
        assert one.exitcode == 0


# -- fill, use and prune -------------------------------------------------------------------------------------------


def test_a_store_opened_before_a_prune_is_filled_after_it(model, tmp_path):
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    other = TrunkStates.open(tmp_path, model, 2)
    other.fill(ids[:3])
    prune(tmp_path, 0)
    assert not any(tmp_path.iterdir())
    store.fill(ids)
    assert_right(store, model, 2, ids)


def test_what_fill_gave_is_read_after_another_has_pruned_it(model, tmp_path, small_segments):
    ids = sequences(40)
    store, other = (TrunkStates.open(tmp_path, model, 2) for _ in range(2))
    store.fill(ids)
    other.fill(ids)  # all there: this one only looks
    prune(tmp_path, 0)
    for reader in (store, other):
        assert_right(reader, model, 2, ids)


def test_rows_found_but_not_held_are_an_error_that_says_so_and_come_back_with_a_fill(model, tmp_path):
    ids = sequences()
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    store = TrunkStates.open(tmp_path, model, 2)
    rows = store.find(ids)
    prune(tmp_path, 0)
    with pytest.raises(LatePromptError, match="is gone"):
        store.get(rows)
    assert len(store.missing(ids)) == len(ids)
    store.fill(ids)
    assert_right(store, model, 2, ids)


def test_every_look_at_a_segment_bears_its_removal(model, tmp_path, monkeypatch):
    """Between asking whether a file is there and opening it, another process may remove it."""
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    listed = segments.segment_files(store.folder)
    shutil.rmtree(store.folder)
    for name in (segments, row_store, admin):
        monkeypatch.setattr(name, "segment_files", lambda folder: listed, raising=False)
    late = TrunkStates.open(tmp_path, model, 2)
    assert late.nbytes == 0
    assert (late.find(ids) == -1).all()


def test_prune_leaves_a_store_that_is_being_filled(model, tmp_path, monkeypatch):
    monkeypatch.setattr(admin, "PRUNE_WAIT_SECONDS", 0.1)
    filling, idle = TrunkStates.open(tmp_path, model, 2), TrunkStates.open(tmp_path, model, 1)
    idle.fill(sequences(5))
    with filling.writing():
        assert prune_stores(tmp_path, 0).refused.keys() == {filling.folder.name}
        assert {path.name for path in filling.folder.iterdir()} == {STORE_FILE, LOCK_FILE}  # nothing in it, and yet
        assert not idle.folder.exists()
        filling.append([b"k" * 16], [torch.zeros(2, 32)])
        with pytest.raises(LatePromptError, match="another process is filling"):
            prune(tmp_path, 0)
    assert len(TrunkStates.open(tmp_path, model, 2)) == 1


def test_another_versions_lock_is_respected(model, tmp_path, monkeypatch):
    """A plain flock on the store's lock file, as anything may take it: the file stays, and so does the store."""
    monkeypatch.setattr(admin, "PRUNE_WAIT_SECONDS", 0.1)
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(sequences(3))
    ready = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        with (store.folder / LOCK_FILE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            ready.set()
            time.sleep(60)

    other = process(hold)
    ready.wait(60)
    try:
        with pytest.raises(LatePromptError, match="another process is filling"):
            prune(tmp_path, 0)
        assert len(TrunkStates.open(tmp_path, model, 2)) == 3
        assert (store.folder / LOCK_FILE).is_file()
    finally:
        other.kill()
        other.join()
    prune(tmp_path, 0)  # the lock of a dead process is none
    assert not store.folder.exists()


def test_who_waited_for_a_removed_lock_does_not_write_beside_its_successor(model, tmp_path):
    ids = sequences(30)
    store = TrunkStates.open(tmp_path, model, 2)
    with store.writing():
        other = process(lambda: TrunkStates.open(tmp_path, model, 2).fill(ids))
        time.sleep(1.0)  # it waits for this lock by now
        admin._remove_if_empty(store.folder)
        assert not store.folder.exists()
        successor = changing(store.folder, 5.0, create=True)
        successor.__enter__()
    time.sleep(0.5)  # the old lock is free: whoever took it for the store's would write now
    written = files(store, ".bin")
    successor.__exit__(None, None, None)
    ended(other)
    assert not written
    assert len(TrunkStates.open(tmp_path, model, 2)) == len({tuple(i) for i in ids})


def crowd(folder: Path, seed: int) -> None:
    model, rng = tiny_model("bert"), random.Random(seed)
    for turn in range(8):
        ids = sequences(25, seed=turn % 3)
        layer = 1 + turn % 2
        kept = TrunkStates.open(folder, model, layer)
        time.sleep(rng.uniform(0, 0.02))
        rows = kept.fill(ids)
        keep = kept.hold(rows) if rng.random() < 0.5 else ()
        prune_stores(folder, rng.choice([0, 6000, 20000]), keep=keep)
        time.sleep(rng.uniform(0, 0.02))
        assert_right(kept, model, layer, ids)


def test_a_crowd_that_fills_reads_and_prunes_one_folder(tmp_path, small_segments):
    ended(*(process(crowd, tmp_path, seed) for seed in range(3)))
    assert all(verdict.dropped == 0 and verdict.problem is None for verdict in verify_stores(tmp_path))


def train(model: str, folder: Path, layer: int, limit_gb: float) -> None:
    tuned = classifier(model, prompt_layer=layer)
    for _ in range(6):
        feed = tuned.batches(ROWS)
        (feed,), _ = tuned.cached([(feed, np.arange(len(feed)))], StatesSettings(str(folder), states_limit_gb=limit_gb))
        assert isinstance(feed, CachedBatches)
        for batch in feed.batches([np.arange(i, i + 8) for i in range(0, 40, 8)] * 3):
            assert batch.trunk_states.abs().sum() > 0


def test_trainings_that_prune_each_others_states(masked_lm, tmp_path):
    """Each has room for its own states alone, as two workers of a comparison with a tight limit."""
    train(masked_lm, tmp_path / "one", 1, 1.0)
    (alone,) = list_stores(tmp_path / "one")
    limit = 1.3 * alone["bytes"] / 1e9
    ended(*(process(train, masked_lm, tmp_path / "both", layer, limit) for layer in (1, 2)))
    train(masked_lm, tmp_path / "both", 3, limit)
    assert [store["prompt_layer"] for store in list_stores(tmp_path / "both")] == [3]


def test_threads_share_a_store(model, tmp_path, small_segments):
    ids = sequences(40)
    failed: list[BaseException] = []

    models = [tiny_model("bert") for _ in range(3)]

    def work(seed: int) -> None:
        try:
            mixed = random.Random(seed).sample(ids, len(ids))
            store = TrunkStates.open(tmp_path, models[seed], 2)
            store.fill(mixed)
            assert_right(store, models[seed], 2, mixed)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store = TrunkStates.open(tmp_path, model, 2)
    assert len(store._rows) == len({tuple(i) for i in ids})  # nothing was computed twice


def test_names_of_segments_are_unique_at_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(segments.time, "time_ns", lambda: 1)
    names = {segments.new_segment_path(tmp_path).name for _ in range(100)}
    assert len(names) == 100
    assert all(segments._NAME.fullmatch(name) for name in names)


def test_a_waiter_is_patient_while_the_other_gets_on(model, tmp_path):
    store = TrunkStates.open(tmp_path, model, 2)
    held = threading.Event()

    def slow() -> None:
        own = TrunkStates.open(tmp_path, model, 2)
        with own.writing():
            held.set()
            for i in range(10):
                own.append([bytes([i]) * 16], [torch.zeros(3, 32)])
                time.sleep(0.1)

    thread = threading.Thread(target=slow)
    thread.start()
    held.wait()
    store.fill(sequences(5), wait_seconds=0.4)
    thread.join()
    assert len(store) == 15


# -- broken, foreign and old stores --------------------------------------------------------------------------------

GOOD = {"format": 1, "model_type": "bert", "prompt_layer": 2, "hidden_size": 32, "dtype": "float32", "fingerprint": "0"}


def as_text(folder: Path, text: str) -> None:
    (folder / STORE_FILE).write_text(text)


BREAKS = {
    "garbage": lambda folder: (folder / STORE_FILE).write_bytes(b"\x00\xff{{{"),
    "empty": lambda folder: as_text(folder, ""),
    "list": lambda folder: as_text(folder, "[]"),
    "nested": lambda folder: as_text(folder, "[" * 100_000),
    "missing": lambda folder: as_text(folder, json.dumps({"format": 1})),
    "foreign": lambda folder: as_text(folder, json.dumps({"name": "shop"})),
    "future": lambda folder: as_text(folder, json.dumps({**GOOD, "format": 99})),
    "text": lambda folder: as_text(folder, json.dumps({**GOOD, "hidden_size": "wide"})),
    "bool": lambda folder: as_text(folder, json.dumps({**GOOD, "prompt_layer": True})),
    "negative": lambda folder: as_text(folder, json.dumps({**GOOD, "hidden_size": -5})),
    "huge": lambda folder: as_text(folder, json.dumps({**GOOD, "hidden_size": 10**40})),
    "dtype": lambda folder: as_text(folder, json.dumps({**GOOD, "dtype": ["float32"]})),
    "folder": lambda folder: (folder / STORE_FILE).mkdir(),
    "pipe": lambda folder: os.mkfifo(folder / STORE_FILE),
    "none": lambda folder: (folder / f"segment-{5:020d}.idx").write_bytes(b""),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_sibling_stops_nothing(kind, model, tmp_path, recwarn):
    ids = sequences(5)
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    broken = tmp_path / "a-broken-one"
    broken.mkdir()
    BREAKS[kind](broken)
    (broken / "letter.txt").write_text("dear")
    before = sorted(path.name for path in broken.iterdir())
    first, second = list_stores(tmp_path)
    assert first["problem"]
    assert "\n" not in first["problem"]
    assert (second["rows"], second["problem"]) == (5, None)
    bad, good = verify_stores(tmp_path)
    assert bad.problem
    assert (good.rows, good.dropped, good.problem) == (5, 0, None)
    assert prune_stores(tmp_path, 0).broken.keys() == {"a-broken-one"}
    assert [path.name for path in tmp_path.iterdir()] == ["a-broken-one"]
    assert sorted(path.name for path in broken.iterdir()) == before
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    assert prune(tmp_path, 0) > 0
    assert any("a-broken-one" in str(warning.message) for warning in recwarn)


def test_a_broken_sibling_on_the_command_line(model, tmp_path, capsys):
    TrunkStates.open(tmp_path, model, 2).fill(sequences(5))
    (tmp_path / "a-broken-one").mkdir()
    BREAKS["garbage"](tmp_path / "a-broken-one")
    for action, rows in (("list", 2), ("verify", 2), ("prune", 1)):
        more = ["--limit-gb", "0"] if action == "prune" else []
        assert main(["states", action, "--folder", str(tmp_path), "--json", *more]) == 2
        said = capsys.readouterr()
        assert len(json.loads(said.out)) == rows
        assert said.err.count("\n") == 1
        assert "a-broken-one" in said.err
    assert main(["states", "list", "--folder", str(tmp_path)]) == 2
    assert "a-broken-one" in capsys.readouterr().out
    for limit in (".nan", "-1"):
        assert main(["states", "prune", "--folder", str(tmp_path), "--limit-gb", limit]) == 2
        assert "limit_gb" in capsys.readouterr().err


def test_folders_of_others_are_no_stores(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "segment-list.idx").write_text("mine")
    (tmp_path / "readme.txt").write_text("mine")
    TrunkStates.open(tmp_path, model, 2).fill(sequences(3))
    assert [store["rows"] for store in list_stores(tmp_path)] == [3]
    prune(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "readme.txt"]


def test_prune_leaves_what_it_did_not_make(model, tmp_path):
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(sequences(3))
    for name in ("segment-notes.txt", "segment-1.bin", "thesis.docx", ".store.json.swp"):
        (store.folder / name).write_text("mine")
    (store.folder / ".store.json.k3_2h1g0").write_text("half")  # of an interrupted write of an early version
    prune(tmp_path, 0)
    assert sorted(path.name for path in store.folder.iterdir()) == [
        ".store.json.swp",
        "segment-1.bin",
        "segment-notes.txt",
        "thesis.docx",
    ]


def test_prune_removes_what_a_kill_in_the_middle_of_a_write_left(model, tmp_path):
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(sequences(3))
    index = next(path for path in segments.segment_files(store.folder) if path.suffix == ".idx")
    for path in (store.folder / STORE_FILE, index):
        new_file(path)
    prune(tmp_path, 0)
    assert not any(tmp_path.iterdir())


def test_stores_of_before_are_listed_verified_and_pruned(model, tmp_path):
    """Their names lack what makes segments unique, and their address knows nothing of the code."""
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(sequences(6))
    old = tmp_path / f"bert-p2-float32-{'0' * 16}"
    store.folder.rename(old)
    for path in segments.segment_files(old):
        path.rename(old / f"segment-{7:020d}{path.suffix}")
    as_text(old, json.dumps(GOOD))
    assert (TrunkStates.open(tmp_path, model, 2).find(sequences(6)) == -1).all()
    assert [found["rows"] for found in list_stores(tmp_path)] == [6]
    assert [(found.rows, found.dropped) for found in verify_stores(tmp_path)] == [(6, 0)]
    prune(tmp_path, 0)
    assert not any(tmp_path.iterdir())


# -- no permission, no room ----------------------------------------------------------------------------------------


@pytest.fixture
def shared():
    """A folder that every user may reach; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="lateprompt-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def as_reader(folder: Path):
    """Be somebody who may read what lies in a folder and write nothing."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
        return
    paths = [folder, *folder.rglob("*")]
    modes = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def test_a_store_that_may_only_be_read_is_read(masked_lm, shared):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    tuned.cached([(feed, np.arange(40))], StatesSettings(str(shared)))
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("*")}
    with as_reader(shared), warnings.catch_warnings():
        warnings.simplefilter("error")
        (kept,), seconds = tuned.cached([(feed, np.arange(40))], StatesSettings(str(shared)))
        assert isinstance(kept, CachedBatches)
        assert seconds == 0.0
        assert kept.batch(np.arange(4)).trunk_states is not None
        assert [found.problem for found in verify_stores(shared)] == [None]
    assert {path: path.stat().st_mtime_ns for path in shared.rglob("*")} == before


def test_full_disks_and_small_limits_do_not_matter_where_all_is_kept(masked_lm, tmp_path, monkeypatch):
    from lateprompt.training import kept

    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    monkeypatch.setattr(kept, "SPARE_BYTES", 1 << 60)
    (again,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path), states_limit_gb=1e-6))
    assert isinstance(again, CachedBatches)


@pytest.mark.parametrize("there", ["nothing", "some rows"])
def test_a_store_that_cannot_be_written_means_one_warning_and_the_trunk(there, masked_lm, shared):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    if there == "some rows":
        tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    with as_reader(shared), pytest.warns(UserWarning, match="the trunk is computed at each step") as said:
        (same,), seconds = tuned.cached([(feed, np.arange(40))], StatesSettings(str(shared)))
    assert len(said) == 1
    assert "--states off" in str(said[0].message)
    assert same is feed
    assert seconds == 0.0
    if there == "some rows":
        with as_reader(shared), pytest.raises(CannotCache):
            TrunkStates.open(shared, tuned.model, 2).fill([[5, 6, 7]])
        with as_reader(shared):
            refused = prune_stores(shared, 0)
        assert refused.freed_bytes == 0
        assert len(refused.refused) == 1


def test_a_store_that_may_not_be_read(masked_lm, shared, capsys):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    (closed,) = shared.iterdir()
    shared.chmod(0o755)
    closed.chmod(0)
    with _not_root(), pytest.warns(UserWarning, match="cannot be read"):
        (same,), _ = tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    assert same is feed
    with _not_root():
        (listed,) = list_stores(shared)
        assert main(["states", "list", "--folder", str(shared)]) == 2
    assert "cannot be read" in listed["problem"]
    assert "cannot be read" in capsys.readouterr().err
    closed.chmod(0o755)


def test_facts_that_may_not_be_read(masked_lm, shared):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    (closed,) = shared.glob(f"*/{STORE_FILE}")
    shared.chmod(0o755)
    closed.chmod(0)
    with _not_root(), pytest.warns(UserWarning, match="cannot be read"):
        (same,), _ = tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    assert same is feed


@contextmanager
def _not_root():
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_full_disk_leaves_whole_rows_and_training_goes_on(masked_lm, tmp_path, monkeypatch):
    """A limit on the size of files, which the kernel enforces as it does the disk's end."""
    monkeypatch.setattr(store_module, "BATCH_TOKENS", 64)
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_001, hard))
    try:
        with pytest.warns(UserWarning, match="no room for trunk states") as said:
            (same,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(said) == 1
    assert same is feed
    (found,) = verify_stores(tmp_path)
    assert found.rows > 0
    assert (found.dropped, found.problem) == (0, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to repair
        (kept,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    assert isinstance(kept, CachedBatches)


def test_a_disk_that_is_full_already_is_no_reason_to_stop(masked_lm, tmp_path):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.warns(UserWarning, match="no room for trunk states"):
            (same,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same is feed


def test_records_that_a_reader_may_have_seen_stay(tmp_path):
    """The index is full in the middle of a record: what was whole before stays, with its data."""
    segment = segments.Segment(tmp_path / f"segment-{1:020d}.bin", 4)
    segment.append([b"a" * 16], [2], [b"12345678"])
    real, size = segments._append, segments.RECORD.itemsize

    def full(path, data):
        if path == segment.index_path:
            real(path, data[: 2 * size + 7])
            raise OSError(28, "No space left on device")
        real(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_append", full)
        with pytest.raises(CannotCache, match="no room"):
            segment.append([b"b" * 16, b"c" * 16, b"d" * 16], [1, 1, 1], [b"bbbb", b"cccc", b"dddd"])
    records, read = segment.records()
    assert (len(records), read) == (3, 3)
    assert segment.index_path.stat().st_size == 3 * size
    assert segment.path.read_bytes() == b"12345678bbbbcccc"
    assert segment.repair() == 0


def test_a_segment_of_another_user_is_read_and_left_alone(model, tmp_path, monkeypatch):
    ids = sequences(10)
    TrunkStates.open(tmp_path, model, 2).fill(ids[:5])
    store = TrunkStates.open(tmp_path, model, 2)
    (theirs,) = files(store, ".bin")
    before = theirs.read_bytes()
    monkeypatch.setattr(segments, "may_write", lambda path: path.stem != theirs.stem)
    store.fill(ids)
    assert_right(store, model, 2, ids)
    assert theirs.read_bytes() == before
    assert len(files(store, ".bin")) == 2


def test_facts_that_may_not_be_read_mean_a_warning_and_the_trunk(masked_lm, shared):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    for path in shared.rglob("store.json"):
        path.chmod(0)
    with _not_root(), pytest.warns(UserWarning, match="cannot be read"):
        (same,), _ = tuned.cached([(feed, np.arange(10))], StatesSettings(str(shared)))
    assert same is feed


@pytest.mark.parametrize("when", ["store.json", "segment"])
def test_a_store_that_is_removed_while_it_is_filled(when, masked_lm, tmp_path, monkeypatch):
    tuned = classifier(masked_lm)
    feed = tuned.batches(ROWS)
    if when == "segment":
        append = TrunkStates.append

        def then_remove(self, *args):
            append(self, *args)
            shutil.rmtree(self.folder)

        monkeypatch.setattr(TrunkStates, "append", then_remove)
    else:
        monkeypatch.setattr(row_store, "write_json", lambda path, facts: (path.parent / "gone").stat())
    with pytest.warns(UserWarning, match="removed while they were filled"):
        (same,), _ = tuned.cached([(feed, np.arange(40))], StatesSettings(str(tmp_path)))
    assert same is feed


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_pipe_in_the_place_of_a_segment_is_left_alone(suffix, model, tmp_path):
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(sequences(6))
    (path,) = store.folder.glob(f"*{suffix}")
    path.unlink()
    os.mkfifo(path)
    assert [found["rows"] for found in list_stores(tmp_path)] == [0]  # reading it would wait for ever
    assert [found.rows for found in verify_stores(tmp_path)] == [0]
    again = TrunkStates.open(tmp_path, model, 2)
    assert (again.fill(sequences(6)) >= 0).all()
    prune(tmp_path, 0)
    assert path.is_fifo()


@pytest.mark.parametrize("name", ["", "  ", "~/states", "a\0b"])
def test_a_folder_of_states_without_a_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatePromptError, match="states"):
        StatesSettings(name).check(False)
    assert main(["states", "prune", "--limit-gb", "0", "--folder", name]) == 2
    assert "folder" in capsys.readouterr().err


def test_a_user_without_a_home_trains_without_states(monkeypatch):
    monkeypatch.delenv("LATEPROMPT_STATES")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(UserWarning, match="no home folder"):
        assert StatesSettings().folder is None
