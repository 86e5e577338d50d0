"""Run folders: only what a run wrote is replaced, only when the new run is whole; kills, locks, full disks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest

from lateprompt.predictors.classifier import TextClassifier
from lateprompt.run_folder.entries import KNOWN, LOCK, MANIFEST
from lateprompt.run_folder.folder import RunFolder, reading
from lateprompt.runs.train import DataSettings, load_run, train_run
from lateprompt.training import fit as fit_module
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import STAGING


def settings(model, **more):
    return ModelSettings(model, **{"method": "npg", "prompt_layer": 2, "bottleneck_dim": 4, **more})


def train(model, data, output, *, seed=1, overwrite=False, resume=False, **recipe):
    recipe = RecipeSettings(**{"max_steps": 3, "batch_size": 8, "eval_every": 1, "seed": seed, **recipe})
    rows = DataSettings(data["train"], dev=[data["dev"]], task="sst2")
    return train_run(settings(model), rows, recipe, output, overwrite=overwrite, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, masked_lm, data):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(masked_lm, data, folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def seed_of(folder):
    return json.loads((folder / "run.json").read_text())["recipe"]["seed"]


def test_a_run_is_replaced(run, masked_lm, data):
    train(masked_lm, data, run, seed=2, overwrite=True)
    assert seed_of(run) == 2
    assert sorted(contents(run)) == sorted([*KNOWN, MANIFEST])
    load_run(run)


FOREIGN = {
    "file": ("thesis.docx", lambda path: path.write_text("mine")),
    "hidden": (".env", lambda path: path.write_text("mine")),
    "repository": (".git", lambda path: (path.mkdir(), (path / "HEAD").write_text("ref"))),
    "folder": ("figures", lambda path: path.mkdir()),
    "link": ("link", lambda path: path.symlink_to("/etc/passwd")),
    "edited": ("README.md", lambda path: path.write_text("my notes")),
    "edited settings": ("run.json", lambda path: path.write_text(path.read_text().replace("sst2", "sst-2"))),
    "linked weights": (
        "adapter_model.safetensors",
        lambda path: (path.rename(path.parent.parent / "w"), path.symlink_to("../w")),
    ),
    "foreign checkpoint": ("checkpoint", lambda path: (path.mkdir(), (path / "state.json").write_text("{}"))),
    "waiting": (STAGING, lambda path: (path.mkdir(), (path / "notes.txt").write_text("mine"))),
    "fifo": ("fifo", os.mkfifo),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("how", ["train", "save"])
def test_what_no_run_wrote_stays_and_is_named(kind, how, run, masked_lm, data, monkeypatch):
    name, make = FOREIGN[kind]
    make(run / name)
    names = sorted(path.name for path in run.iterdir())
    monkeypatch.setattr("lateprompt.runs.train.load_rows", None)  # it is found before any work
    replace = {
        "train": lambda: train(masked_lm, data, run, seed=2, overwrite=True),
        "save": lambda: RunFolder(run).check(overwrite=True),
    }
    with pytest.raises(LatePromptError, match="move it away, or give another folder") as caught:
        replace[how]()
    assert repr(name)[:-1] in str(caught.value)
    assert str(run) in str(caught.value)
    assert sorted(path.name for path in run.iterdir()) == names
    if kind != "edited settings":
        assert seed_of(run) == 1


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_no_name(name, masked_lm, data):
    with pytest.raises(LatePromptError, match="is no name"):
        train(masked_lm, data, name)
    with pytest.raises(LatePromptError, match="is no name"):
        RunFolder(name)


def test_the_working_directory(tmp_path, masked_lm, data, monkeypatch):
    (tmp_path / "thesis.docx").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatePromptError, match=r"folder '\.' has 'thesis\.docx', which no run wrote"):
        train(masked_lm, data, ".", overwrite=True)
    (tmp_path / "thesis.docx").unlink()
    train(masked_lm, data, ".")
    train(masked_lm, data, ".", seed=2, overwrite=True)
    assert seed_of(tmp_path) == 2


def test_a_link_to_a_folder_stays_a_link(run, tmp_path, masked_lm, data):
    link = tmp_path / "link"
    link.symlink_to(run)
    train(masked_lm, data, link, seed=2, overwrite=True)
    assert link.is_symlink()
    assert seed_of(run) == 2
    (run / "mine.txt").write_text("mine")
    with pytest.raises(LatePromptError, match=r"mine\.txt"):
        train(masked_lm, data, link, seed=3, overwrite=True)


def test_runs_of_earlier_versions(run, masked_lm, data):
    """They have no manifest: known names are ours, in a folder with a run.json of ours."""
    (run / MANIFEST).unlink()
    (run / ".run.json.k3_x9abc").write_text("{")  # a kill left it
    load_run(run)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(LatePromptError, match=r"notes\.txt"):
        train(masked_lm, data, run, seed=2, overwrite=True)
    (run / "notes.txt").unlink()
    train(masked_lm, data, run, seed=2, overwrite=True)
    assert sorted(contents(run)) == sorted([".run.json.k3_x9abc", *KNOWN, MANIFEST])
    (run / MANIFEST).unlink()
    (run / "run.json").write_text('{"model": "somebody else\'s"}')
    with pytest.raises(LatePromptError, match=r"'README\.md', which no run wrote"):
        train(masked_lm, data, run, seed=3, overwrite=True)


def test_somebody_elses_manifest(run, masked_lm, data):
    (run / MANIFEST).write_text('{"name": "my web page", "files": {"run.json": {}}}')
    with pytest.raises(LatePromptError, match=r"'manifest\.json', which no run wrote"):
        train(masked_lm, data, run, seed=2, overwrite=True)


def test_a_run_that_reads_what_it_would_replace(run, masked_lm, data):
    rows = DataSettings(data["train"], task=str(run / "task.yaml"))
    with pytest.raises(LatePromptError, match=r"task\.yaml' is read, and would be replaced"):
        train_run(settings(masked_lm), rows, RecipeSettings(max_steps=1), run, overwrite=True)


def test_saving_a_model_touches_no_other_file(run, masked_lm, tmp_path):
    tuned = TextClassifier.load(run)
    place = tmp_path / "place"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    tuned.save(place)
    tuned.save(place)
    assert (place / "notes.txt").read_text() == "mine"
    (place / "task.yaml").write_text("mine")
    before = contents(place)
    with pytest.raises(LatePromptError, match=r"'task\.yaml', which was changed"):
        tuned.save(place)
    assert contents(place) == before


# -- a new run that does not succeed -------------------------------------------------------------------------------


def test_a_diverging_run_leaves_the_old_one(run, masked_lm, data):
    before = contents(run)
    with pytest.raises(LatePromptError, match="diverged"):
        train(masked_lm, data, run, seed=2, overwrite=True, lr=1e30, max_grad_norm=0.0, max_steps=30)
    assert contents(run) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_run_leaves_the_old_one_and_resumes(stop, again, run, masked_lm, data, monkeypatch):
    before = contents(run)
    real = fit_module.save_checkpoint

    def interrupted(*arguments):
        real(*arguments)
        raise stop

    for _ in range(1 + again):  # also where an interrupted run is overwritten
        with monkeypatch.context() as patched:
            patched.setattr(fit_module, "save_checkpoint", interrupted)
            with pytest.raises(stop):
                train(masked_lm, data, run, seed=2, overwrite=True)
    assert before.items() <= contents(run).items()
    assert load_run(run).settings.method == "npg"
    assert not (run / LOCK).exists()
    train(masked_lm, data, run, seed=2, resume=True)
    assert seed_of(run) == 2
    assert sorted(contents(run)) == sorted([*KNOWN, MANIFEST])


def test_an_interrupted_run_stays_until_the_next_has_succeeded(tmp_path, masked_lm, data, monkeypatch):
    real = fit_module.save_checkpoint

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(masked_lm, data, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(LatePromptError, match="diverged"):
        train(masked_lm, data, tmp_path / "run", seed=2, overwrite=True, lr=1e30, max_grad_norm=0.0, max_steps=30)
    assert contents(tmp_path / "run") == before
    train(masked_lm, data, tmp_path / "run", resume=True)
    assert seed_of(tmp_path / "run") == 1


def test_a_file_that_is_edited_meanwhile_stays_and_the_training_is_not_lost(run, masked_lm, data, monkeypatch):
    real = fit_module.save_checkpoint

    def edited(*arguments):
        real(*arguments)
        (run / "README.md").write_text("my notes")

    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "save_checkpoint", edited)
        with pytest.raises(LatePromptError, match=r"'README\.md', which was changed after the run wrote it"):
            train(masked_lm, data, run, seed=2, overwrite=True)
    assert (run / "README.md").read_text() == "my notes"
    assert seed_of(run) == 1
    assert not (run / STAGING).exists()
    (run / "README.md").rename(run / "notes.md")
    train(masked_lm, data, run, seed=2, resume=True)
    assert (run / "notes.md").read_text() == "my notes"
    assert seed_of(run) == 2


def test_a_run_that_never_had_a_state_is_in_nobodys_way(tmp_path, masked_lm, data, monkeypatch):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lateprompt.predictors.base.fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(masked_lm, data, tmp_path / "run")
    train(masked_lm, data, tmp_path / "run")
    with pytest.raises(LatePromptError, match="diverged"):
        train(masked_lm, data, tmp_path / "other", lr=1e30, max_grad_norm=0.0, max_steps=30, eval_every=30)
    assert not (tmp_path / "other").exists()


def test_a_full_disk(run, masked_lm, data, capsys):
    """The old run stays, one line names the folder, and nothing temporary is left."""
    from lateprompt.cli.app import main

    before, limits = contents(run), resource.getrlimit(resource.RLIMIT_FSIZE)
    given = ["train", "--model", masked_lm, "--train", data["train"], "--task", "sst2", "--max-steps", "2", "--states"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        assert main([*given, "off", "--output", str(run), "--overwrite", "--quiet"]) == 2
        assert main([*given, "off", "--output", str(run.parent / "new"), "--quiet"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err.strip().splitlines()
    first, second = (line for line in said if not line.startswith("lateprompt: warning"))  # two steps learn little
    assert f"{run!s}/" in first
    assert str(run.parent / "new") in second
    for line in (first, second):
        assert "File too large; free some space, or choose another place" in line
        assert ".tmp" not in line
        assert STAGING not in line
    assert contents(run) == before
    assert not (run.parent / "new").exists()


# -- kills ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from lateprompt.run_folder.folder import RunFolder
left = int(sys.argv[2])
def counted(real):
    def call(*arguments, **more):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*arguments, **more)
    return call
for name in ("replace", "unlink", "rmdir", "mkdir", "chmod"):
    setattr(Path, name, counted(getattr(Path, name)))
run = RunFolder(sys.argv[1])
new = sys.argv[3]
with run.locked():
    run.settle(locked=True)
    run.replace(lambda place: [(place / f.name).write_bytes(f.read_bytes()) for f in Path(new).iterdir()])
print("done")
"""


@pytest.fixture(scope="module")
def newer(tmp_path_factory, masked_lm, data):
    """The files of another run, without a manifest."""
    folder = tmp_path_factory.mktemp("runs") / "newer"
    train(masked_lm, data, folder, seed=2)
    (folder / MANIFEST).unlink()
    (folder / "history.jsonl").unlink()  # the old run has a file that the new one lacks
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_a_kill_between_any_two_steps_leaves_one_run(legacy, whole, newer, tmp_path):
    """Old or new, whole; a reader sees one of them, and the next writer works on."""
    old, new = contents(whole), contents(newer)
    seen = set()
    for step in range(60):
        run = Path(shutil.copytree(whole, tmp_path / f"run{step}"))
        (run / "checkpoint").mkdir()
        (run / "checkpoint" / "started.json").write_text("{}")
        if legacy:
            (run / MANIFEST).unlink()
        process = fork(KILLED, [str(run), str(step), str(newer)])
        if process == 0:
            break
        assert process == -signal.SIGKILL
        with reading(run):
            found = {name: (run / name).read_bytes() for name in KNOWN if (run / name).exists()}
        expected = new if seed_of(run) == 2 else old
        assert found == {name: content for name, content in expected.items() if name in KNOWN and name in found}
        assert set(found) >= set(KNOWN) - {"history.jsonl"}
        seen.add(seed_of(run))
        RunFolder(run).check(overwrite=True)
        again = RunFolder(run)
        with again.locked():
            again.settle(locked=True)
            again.replace(lambda place: shutil.copytree(newer, place, dirs_exist_ok=True) and None)
        left = {name for name in contents(run) if not name.startswith("checkpoint")}
        assert left - {"history.jsonl"} == {*new, MANIFEST}, step
    else:
        raise AssertionError("it never came to an end")
    assert seen == {1, 2}
    assert step > 12


def fork(code, arguments, **names):
    """Run code in a child of this process, which has everything imported; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.argv = ["-c", *arguments]
            exec(compile(code, "killed", "exec"), {"__name__": "__main__", **names})
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_folder_that_cannot_be_settled_is_not_read(run, newer, monkeypatch):
    interrupted = fork(KILLED, [str(run), "9", str(newer)])
    assert interrupted == -signal.SIGKILL
    assert RunFolder(run).is_pending

    def readonly(*arguments, **more):
        raise OSError(30, "Read-only file system", "x")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", readonly)
        with pytest.raises(LatePromptError, match="Read-only file system"):
            load_run(run)
    load_run(run)
    assert seed_of(run) == 2


def test_a_reader_does_not_mix_two_runs(run, newer):
    place = RunFolder(run)
    with pytest.raises(LatePromptError, match="was replaced while it was read"), reading(run), place.locked():
        place.replace(lambda staged: shutil.copytree(newer, staged, dirs_exist_ok=True) and None)


# -- two at once ---------------------------------------------------------------------------------------------------


def test_the_second_training_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path, masked_lm, data):
    output = tmp_path / "run"
    holder = os.fork()
    if holder == 0:
        with RunFolder(output).locked():
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        with pytest.raises(LatePromptError, match=f"another training is at work in {str(output)!r}"):
            train(masked_lm, data, output)
        with pytest.raises(LatePromptError, match="another training is at work"):
            train(masked_lm, data, output, overwrite=True)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert (output / LOCK).exists()
    train(masked_lm, data, output)
    assert sorted(contents(output)) == sorted([*KNOWN, MANIFEST])


def test_two_threads_at_once_lose_nothing(tmp_path, masked_lm, data):
    outcomes = []

    def work(seed):
        try:
            train(masked_lm, data, tmp_path / "run", seed=seed)
            outcomes.append(seed)
        except LatePromptError as error:
            outcomes.append(str(error))

    first = RunFolder(tmp_path / "run")
    with first.locked():
        thread = threading.Thread(target=work, args=(5,))
        thread.start()
        thread.join(60)
    assert "another training is at work" in outcomes[0]
    work(6)
    assert seed_of(tmp_path / "run") == 6


def test_a_lock_of_another_training_is_seen_before_the_model_is_loaded(run, masked_lm, data, monkeypatch):
    monkeypatch.setattr("lateprompt.runs.train.load_rows", None)
    with RunFolder(run).locked(), pytest.raises(LatePromptError, match="another training is at work"):
        train(masked_lm, data, run, overwrite=True)


def test_a_killed_training_leaves_the_old_run_and_goes_on(run, whole, masked_lm, data):
    before = contents(run)
    code = """
        import os, signal
        from lateprompt.training import fit
        real = fit.save_checkpoint
        def killed(folder, progress, *rest):
            real(folder, progress, *rest)
            if progress.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        fit.save_checkpoint = killed
        begin()
    """
    begin = lambda: train(masked_lm, data, run, seed=2, overwrite=True)  # noqa: E731
    assert fork(dedent(code), [], begin=begin) == -signal.SIGKILL
    assert before.items() <= contents(run).items()
    load_run(run)
    assert seed_of(run) == 1
    with pytest.raises(LatePromptError, match=r"other settings \(recipe\)"):
        train(masked_lm, data, run, seed=3, resume=True)
    _, measured = train(masked_lm, data, run, seed=2, resume=True)
    assert measured["steps"] == 3
    assert seed_of(run) == 2
    assert sorted(contents(run)) == sorted([*KNOWN, MANIFEST])
