"""Atomic writes: links, FIFOs, devices, permissions, full disks; and what may be an output."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest
import torch

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import check_output, write_atomically, write_json, write_lines, write_tensors, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("there/real.txt")
    (tmp_path / "further").symlink_to(tmp_path / "link.txt")
    write_text(tmp_path / "further", "new")
    assert (tmp_path / "there" / "real.txt").read_text() == "new"
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "further").is_symlink()
    (tmp_path / "dangling").symlink_to("later/made.txt")
    write_text(tmp_path / "dangling", "first")
    assert (tmp_path / "later" / "made.txt").read_text() == "first"
    assert names(tmp_path / "there") == ["real.txt"]


def test_new_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "text", "x")
    write_tensors(tmp_path / "tensors", {"a": torch.zeros(1)})
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "text", "tensors")}
    assert len(modes) == 1


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "secret.json"
    path.write_text("{}")
    path.chmod(mode)
    write_json(path, {"a": 1})
    assert stat.S_IMODE(path.stat().st_mode) == mode
    previous = os.umask(0o027)
    try:
        write_json(tmp_path / "new.json", {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == 0o640


def test_a_fifo_is_written_to(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    assert check_output(fifo) == fifo
    write_lines(fifo, [{"a": 1}, {"b": 2}])
    reader.join(10)
    assert read == ['{"a": 1}\n{"b": 2}\n']
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert names(tmp_path) == ["fifo"]


def test_devices_stay_devices():
    write_text(check_output("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_is_one_line():
    with pytest.raises(LatePromptError, match=r"^'/dev/full' cannot be written: No space left on device"):
        write_text(check_output("/dev/full"), "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_standard_output_keeps_what_is_before_and_after(tmp_path):
    """Also where it is a file that is appended to."""
    names_of_it = [name for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1") if os.path.exists(name)]
    if not names_of_it:
        pytest.skip("standard output has no name here")
    log = tmp_path / "log"
    log.write_text("before\n")
    code = (
        "from pathlib import Path; from lateprompt.utils.files import check_output, write_text; print('first')\n"
        f"for name in {names_of_it}: write_text(check_output(name), name + '\\n'); print('next')"
    )
    inode = log.stat().st_ino
    with log.open("a") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert log.read_text() == "before\nfirst\n" + "".join(f"{name}\nnext\n" for name in names_of_it)
    assert log.stat().st_ino == inode
    assert names(tmp_path) == ["log"]


def test_a_folder_is_refused_before_anything_is_made(tmp_path):
    def never(path):
        raise AssertionError("the work must not begin")

    with pytest.raises(LatePromptError, match=f"output {str(tmp_path)!r} is a folder; give a file"):
        write_atomically(tmp_path, never)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_path_and_leaves_nothing(tmp_path, number):
    def full(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number), str(temporary))

    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(LatePromptError, match=f"^{str(path)!r} cannot be written: ") as caught:
        write_atomically(path, full)
    assert ".tmp" not in str(caught.value)
    assert (names(tmp_path), path.read_text()) == (["report.html"], "old")


def test_a_limit_on_files_stops_tensors_too(tmp_path):
    """What safetensors raises is no OSError."""
    path = tmp_path / "adapter.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(LatePromptError, match=f"^{str(path)!r} cannot be written: File too large"):
            write_tensors(path, {"a": torch.zeros(9000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_other_errors_name_the_path_too(tmp_path):
    def denied(temporary):
        raise PermissionError(errno.EACCES, "Permission denied", str(temporary))

    with pytest.raises(PermissionError) as caught:
        write_atomically(tmp_path / "a.txt", denied)
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_long_names(tmp_path):
    path = tmp_path / ("é" * 120 + ".json")
    write_json(path, {})
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("path", ["", "  ", "\t", "a\0b"])
def test_no_name_is_refused(path):
    with pytest.raises(LatePromptError, match="is no name; give a path"):
        check_output(path)


def test_what_may_not_be_an_output(tmp_path):
    rows, link, run = tmp_path / "rows.jsonl", tmp_path / "link.jsonl", tmp_path / "run"
    rows.write_text("{}")
    link.symlink_to(rows)
    hard = tmp_path / "hard.jsonl"
    os.link(rows, hard)
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "predictions.jsonl").write_text("{}")
    for output, message in [
        (tmp_path, "is a folder; give a file"),
        (f"{tmp_path}/new/", "is a folder; give a file"),
        (rows, "is the same file as an input"),
        (link, "is the same file as an input"),
        (hard, "is the same file as an input"),
        (tmp_path / "run" / ".." / "rows.jsonl", "is the same file as an input"),
        (run / "run.json", f"is a file of {str(run)!r}, which is read"),
        (rows / "out.jsonl", f"{str(rows)!r} is a file, not a folder"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
    ]:
        with pytest.raises(LatePromptError) as caught:
            check_output(output, inputs=[rows, run, "org/set", "gone.jsonl"])
        assert message in str(caught.value)
        assert str(output) in str(caught.value)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(LatePromptError, match="symbolic links"):
        check_output(loop)
    for fine in (tmp_path / "a" / "b" / "new.jsonl", run / "predictions.jsonl", "new.jsonl"):
        check_output(fine, inputs=[rows, run, tmp_path])
    assert not (tmp_path / "a").exists()


def test_a_place_without_permission(tmp_path, monkeypatch):
    """Root may write everywhere, so what the system says is made up."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(LatePromptError, match="is write-protected"):
        check_output(tmp_path / "new" / "out.jsonl")
    with pytest.raises(LatePromptError, match=r"file' is write-protected"):
        check_output(tmp_path / "file")
