"""Files that users give: every reader says the same of what is no file, may not be read, or is a pointer."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import read_json, read_tensors
from lateprompt.utils.inputs import check_file, read_text
from lateprompt.utils.yaml_files import read_yaml

READERS = {
    "check": lambda path: check_file(path, "paper"),
    "text": lambda path: read_text(path, "paper", limit=100),
    "json": lambda path: read_json(path, "paper"),
    "tensors": lambda path: read_tensors(path, "paper"),
    "yaml": lambda path: read_yaml(path, "paper"),
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


MAKERS = {
    "nothing": (lambda path: None, "does not exist"),
    "dangling link": (lambda path: path.symlink_to("gone"), "does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder; give a file"),
    "pipe": (os.mkfifo, "is a pipe"),
    "socket": (_socket, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be read: Too many levels"),
    "old pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_file(kind, reader):
    make, message = MAKERS[kind]
    with tempfile.TemporaryDirectory(prefix="lateprompt-") as folder:  # pytest's own is too long for a socket
        path = Path(folder) / "x"
        make(path)
        with pytest.raises(LatePromptError, match=message) as error:
            READERS[reader](path)
    assert str(error.value).startswith("paper '")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_cannot_be(name, reader):
    with pytest.raises(LatePromptError, match="cannot be read"):
        READERS[reader](Path(name))


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read(reader):
    with tempfile.TemporaryDirectory(prefix="lateprompt-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "x"
        path.write_text("{}")
        path.chmod(0)
        if os.geteuid() != 0:
            _refused(reader, path)
            return
        os.seteuid(65534)
        try:
            _refused(reader, path)
        finally:
            os.seteuid(0)


def _refused(reader, path):
    with pytest.raises(LatePromptError, match="cannot be read: Permission denied"):
        READERS[reader](path)
