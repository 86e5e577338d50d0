"""The command line as such: help, suggestions, exit codes, interruptions, warnings, what is a fault of the library."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_rows, write_rows
from safetensors.torch import load_file

from lateprompt.cli import app as cli
from lateprompt.cli.app import COMMANDS, main
from lateprompt.cli.interruption import terminable
from lateprompt.experiments.compare import runner
from lateprompt.utils.console import print_table
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.suggestions import OPTIONS, closest_option, did_you_mean


def said(capsys, arguments) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def command(monkeypatch):
    """Let `lateprompt demo` do something else."""

    def put(work):
        monkeypatch.setattr(cli, "demo", lambda: work())

    return put


# -- help ------------------------------------------------------------


def test_without_a_command_it_prints_the_help(capsys):
    code, out, err = said(capsys, [])
    assert (code, out) == (2, "")
    assert all(name in err for name in COMMANDS)
    assert said(capsys, ["--help"]) == (0, err, "")


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(flag, capsys):
    code, out, err = said(capsys, [flag])
    assert (code, err) == (0, "")
    libraries = r"torch \S+, transformers \S+, peft \S+, safetensors \S+"
    assert re.fullmatch(rf"lateprompt \S+ \({libraries}, python \S+, .*\)\n", out)


def test_python_m_lateprompt_is_the_same():
    done = subprocess.run([sys.executable, "-m", "lateprompt", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'train'?" in done.stderr


def test_the_help_of_train_is_in_groups(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = said(capsys, ["train", "--help"])
    assert code == 0
    titles = re.findall(r"^(\S[^:\n]*):$", out, re.M)
    assert titles == [
        "required",
        "data",
        "method",
        "search",
        "training",
        "cached states",
        "output",
        "other options",
        "examples",
    ]
    assert out.startswith("usage: lateprompt train --model MODEL --train FILE --output PATH [options]\n")
    groups = dict(zip(titles, re.split(r"^\S[^:\n]*:$", out, flags=re.M)[1:], strict=True))
    assert re.findall(r"^  (--\S+)", groups["required"], re.M) == ["--model", "--train", "--output"]
    for group, option in [("data", "--dev"), ("method", "--set"), ("training", "--lr"), ("training", "--device")]:
        assert re.search(rf"^  {option} ", groups[group], re.M)
    assert "(default: 32)" in groups["training"]
    assert groups["examples"].count("  lateprompt train --model") == 3
    options = re.findall(r"^  (?:-h, )?(--[a-z-]+)", out, re.M)
    assert len(options) == len(set(options))  # each in one group
    assert "Optional[" not in out
    assert "type:" not in out


@pytest.mark.parametrize("name", [*COMMANDS, "--help"])
def test_every_help_fits_the_screen_and_has_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = said(capsys, [name, "--help"] if name in COMMANDS else [name])
    assert max(map(len, out.splitlines())) <= 80
    assert "examples:\n  lateprompt " in out
    assert not re.search(r"--[a-z]+_", out)


def test_the_examples_of_the_help_can_be_parsed():
    from lateprompt.cli.arguments import dashes_to_underscores

    for name, command in COMMANDS.items():
        for line in command.examples:
            words = line.replace("\\\n", " ").split()
            assert words[:2] == ["lateprompt", name]
            cli.build_parser(name).parse_args([dashes_to_underscores(word) for word in words[2:]])


# -- near misses ------------------------------------------------------------

TRAIN = ["train", "--model", "m", "--train", "t", "--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "no command 'trian' (did you mean 'train'?)"),
        (["evalute"], "did you mean 'evaluate'?"),
        (["Predict"], "did you mean 'predict'?"),
        (["frobnicate"], "no command 'frobnicate'; lateprompt --help shows all"),
        (["--verson"], "did you mean '--version'?"),
        (["--quiet", "train"], "options stand behind a command"),
        (["train", "--promptlayer", "3"], "no option '--promptlayer' (did you mean '--prompt-layer'?)"),
        ([*TRAIN, "--learning-rate", "1"], "did you mean '--lr'?"),
        ([*TRAIN, "--learning_rate=1"], "did you mean '--lr'?"),
        ([*TRAIN, "--batchsize", "1"], "did you mean '--batch-size'?"),
        ([*TRAIN, "--num-train-epochs", "1"], "did you mean '--epochs'?"),
        ([*TRAIN, "--generator", "npg"], "did you mean '--method'?"),
        ([*TRAIN, "--frobnicate"], "no option '--frobnicate'; lateprompt train --help lists them"),
        ([*TRAIN, "extra"], "there is no place for 'extra'"),
        (["predict", "run", "--data", "x", "--ouput", "y"], "did you mean '--output'?"),
        (["evaluate", "run", "--batch-sise", "3"], "did you mean '--batch-size'?"),
        (["compare", "--output", "x", "--num-workers", "2"], "did you mean '--workers'?"),
        (["states", "fil"], "action 'fil' is unknown (did you mean 'fill'?); choose one of fill, list, verify, prune"),
        (["tasks", "chek"], "did you mean 'check'?"),
        (["train"], "--model, --train, --output are needed"),
        (["predict"], "RUN, --data are needed"),
        ([*TRAIN, "--lr", "fast"], "--lr 'fast' is no value for it; give a number"),
        ([*TRAIN, "--epochs", "1.5"], "--epochs '1.5' is no value for it; give a whole number"),
        ([*TRAIN, "--prompt-dropout", "x"], "--prompt-dropout 'x' is no value for it; give a number"),
        ([*TRAIN, "--lr"], "--lr needs a value"),
        ([*TRAIN, "--readout", "hed"], "readout 'hed' is unknown (did you mean 'head'?)"),
        ([*TRAIN, "--dtype", "bf16"], "dtype 'bf16' is unknown"),
        ([*TRAIN, "--dtype", "flaot32"], "did you mean 'float32'?"),
        ([*TRAIN, "--head-pooling", "maen"], "did you mean 'mean'?"),
        ([*TRAIN, "--loss", "label"], "did you mean 'labels'?"),
        ([*TRAIN, "--precision", "BF16"], "did you mean 'bf16'?"),
        ([*TRAIN, "--method", "nppg"], "did you mean 'npg'?"),
        ([*TRAIN, "--method", "lora", "--set", "lora-alfa=3"], "did you mean 'lora_alpha'?"),
        ([*TRAIN, "--states-dtype", "int88"], "did you mean 'int8'?"),
        (["train", "--model", "m", "--train", __file__, "--output", "o", "--task", "sts2"], "did you mean 'sst2'?"),
    ],
)
def test_a_near_miss_gets_a_suggestion(arguments, expected, capsys):
    code, out, err = said(capsys, arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("lateprompt: ")
    assert expected in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"model: m\nlearning_rate: 1\n", "did you mean '--lr'?"),
        (b"lr: fast\n", "--lr 'fast' is no value"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deep"),
        (b"caf\xe9: \xff", "not UTF-8"),
        (b"a: b: c", "config"),
        (None, "does not exist"),
    ],
)
def test_a_config_file_that_cannot_be(content, expected, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    code, _, err = said(capsys, ["train", "--config", str(path)])
    assert code == 2
    assert len(err.splitlines()) == 1
    assert expected in err


def test_suggestions():
    assert did_you_mean("lorra", ["lora", "npg"]) == " (did you mean 'lora'?)"
    assert did_you_mean("acc", ["mcc", "accuracy_f1_mean", "accuracy"]) == " (did you mean 'accuracy'?)"
    assert did_you_mean("zzz", ["lora", "npg"]) == ""
    assert did_you_mean(3, ["lora"]) == ""
    assert closest_option("Prompt-Layer", ["prompt_layer"]) == "prompt_layer"
    assert closest_option("learning-rate", ["epochs"]) is None  # another command's


def test_options_that_others_call_differently_exist():
    known = {action.dest for name in ("train", "predict", "compare") for action in cli.build_parser(name)._actions}
    assert set(OPTIONS.values()) <= known
    assert not set(OPTIONS) & known


# -- how a command ends ------------------------------------------------------------


def broken():
    return {}["our own mistake"]


def wrong():
    raise LatePromptError("lr -1 is no\nlearning rate")


def test_a_fault_of_the_library_keeps_its_traceback(command, capsys):
    command(broken)
    code, out, err = said(capsys, ["demo"])
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0].startswith("Traceback")
    assert "in broken" in err
    assert lines[-2] == "KeyError: 'our own mistake'"
    assert "report it" in lines[-1]
    assert "torch 2" in lines[-1]


@pytest.mark.parametrize("error", [ValueError("ours"), TypeError("ours"), RuntimeError("ours"), AssertionError("ours")])
def test_only_what_a_user_can_mend_is_one_line(error, command, capsys):
    def fail():
        raise error

    command(fail)
    code, _, err = said(capsys, ["demo"])
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize("arguments", [["demo", "--debug"], ["--debug", "demo"]])
def test_debug_shows_where_an_error_comes_from(arguments, command, capsys):
    command(wrong)
    code, _, err = said(capsys, arguments)
    assert code == 2
    assert "Traceback" in err
    assert "in wrong" in err
    assert err.splitlines()[-1] == "lateprompt: lr -1 is no learning rate"
    assert said(capsys, ["demo"]) == (2, "", "lateprompt: lr -1 is no learning rate\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(28, "No space left on device", "/x/weights"),
            "No space left on device: '/x/weights'; free some space",
        ),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied: '/x'; choose another place or mend"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "No such file or directory: '/x'; check how"),
        (OSError("the hub says\nno"), "lateprompt: the hub says\n"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, expected, command, capsys):
    def fail():
        raise error

    command(fail)
    code, _, err = said(capsys, ["demo"])
    assert code == 2
    assert len(err.splitlines()) == 1
    assert expected in err


def test_a_command_has_its_own_exit_code(command, capsys):
    command(lambda: 3)
    assert said(capsys, ["demo"]) == (3, "", "")


# -- interruptions ------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number, code, command, capsys):
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(30)
        finally:
            cleaned.append(signal.getsignal(signal.SIGTERM))

    command(work)
    assert said(capsys, ["demo"]) == (code, "", "lateprompt: interrupted\n")
    if number == signal.SIGTERM:
        assert cleaned == [signal.SIG_DFL]  # a second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_handlers_of_others_stay(command, capsys):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        command(lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert said(capsys, ["demo"])[0] == 0
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_signals_are_left_alone():
    seen = []

    def work():
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_can_be_resumed(number, code, masked_lm, data, tmp_path, capsys, monkeypatch):
    from lateprompt.training import fit

    output = tmp_path / "run"
    arguments = [
        *("train", "--model", masked_lm, "--train", data["train"], "--dev", data["dev"], "--output", str(output)),
        *("--task", "sst2", "--prompt-layer", "2", "--bottleneck-dim", "8", "--max-steps", "6", "--eval-every", "2"),
        "--quiet",
    ]
    save = fit.save_checkpoint

    def save_and_end(*given, **named):
        save(*given, **named)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "save_checkpoint", save_and_end)
        got, _, err = said(capsys, arguments)
    assert got == code
    assert err.splitlines()[-1] == "lateprompt: interrupted; it goes on with the same command and --resume"
    assert not (output / "metrics.json").exists()
    assert said(capsys, [*arguments, "--resume"])[0] == 0
    whole = tmp_path / "whole"
    assert said(capsys, [*arguments, "--output", str(whole)])[0] == 0
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (output, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def plan_files(tmp_path, model) -> list[str]:
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    write_rows(tmp_path / "data" / "sst2" / "train.jsonl", make_rows(40))
    write_rows(tmp_path / "data" / "sst2" / "dev.jsonl", make_rows(20, 100))
    return [
        *("compare", "--model", model, "--methods", "npg", "head", "--tasks", "sst2", "--data", str(tmp_path / "data")),
        *("--shots", "8", "--seeds", "1", "--workers", "2", "--output", str(tmp_path / "results"), "--quiet"),
    ]


@pytest.mark.parametrize("ends", ["with the parent", "by the same signal"])
def test_an_interrupted_comparison_ends_its_workers_and_fails_no_run(ends, headless, tmp_path, capsys, monkeypatch):
    own = "os.kill(os.getpid(), signal.SIGTERM)" if ends == "by the same signal" else "time.sleep(60)"
    started = tmp_path / "started"
    started.mkdir()
    code = (
        f"import os, signal, sys, time; sys.stdin.readline(); open({str(started)!r} + f'/{{os.getpid()}}', 'w'); {own}"
    )
    monkeypatch.setattr(runner, "WORKER", code)

    def end():
        while len(list(started.iterdir())) < 2:
            time.sleep(0.02)
        time.sleep(0.3)  # a failure would be written by now
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = plan_files(tmp_path, headless)
    threading.Thread(target=end, daemon=True).start()
    got, _, err = said(capsys, arguments)
    assert got == 143
    assert err.splitlines()[-1] == "lateprompt: interrupted; it goes on with the same command"
    for name in started.iterdir():
        assert not Path(f"/proc/{name.name}/cmdline").exists() or not Path(f"/proc/{name.name}/cmdline").read_bytes()
    assert not list((tmp_path / "results").rglob("result.json"))


# -- warnings ------------------------------------------------------------


def warn_as(module: str, text: str) -> None:
    space = {"__name__": module, "warnings": warnings}
    exec("def warn(text):\n    warnings.warn(text, stacklevel=2)", space)
    space["warn"](text)


def test_our_warnings_are_one_line_each_once(command, capsys, recwarn):
    def work():
        for _ in range(2):
            warn_as("lateprompt.state_cache.fill", "states do not fit,\nso they are left out")
            warn_as("lateprompt.state_cache.store", "another one")
        warn_as("some.library", "not ours")

    command(work)
    code, _, err = said(capsys, ["demo"])
    assert code == 0
    assert err.splitlines()[:2] == [
        "lateprompt: warning: states do not fit, so they are left out",
        "lateprompt: warning: another one",
    ]
    assert "not ours" in [str(warning.message) for warning in recwarn]  # as in any Python program
    with pytest.warns(UserWarning, match="as a library"):  # and ours, where nobody runs a command
        warn_as("lateprompt.state_cache.fill", "as a library")


# -- tables ------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["methods"], ["tasks"]])
def test_tables_on_a_narrow_screen_keep_words_whole(arguments, capsys, monkeypatch):
    wide = said(capsys, arguments)[1]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, _ = said(capsys, arguments)
    out = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert code == 0
    assert "…" not in out.replace("…,", "")
    assert max(map(len, out.splitlines())) <= 80
    assert set(re.findall(r"\w+=\S+|[\w-]+", wide)) - set(re.findall(r"\w+=\S+|[\w-]+", out)) <= {"method"}


def test_a_table_in_a_file_is_as_wide_as_it_has_to_be(capsys):
    print_table(("name", "text"), [("a" * 100, "b c " * 60)])
    out = capsys.readouterr().out
    assert ("b c " * 60).strip() in out
    print_table(("name", "text"), [])
    assert "name" in capsys.readouterr().out


def test_json_of_methods_is_as_it_was(capsys):
    assert json.loads(said(capsys, ["methods", "--json"])[1])["npg"] == {"late": True}
