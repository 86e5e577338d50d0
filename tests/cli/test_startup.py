"""What `import lateprompt` and the help texts import, and that PEFT knows our methods whoever is imported first."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lateprompt
from lateprompt.predictors.loading import DTYPES
from lateprompt.utils import names

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "sklearn", "datasets", "pandas", "pydantic")
OURS = ["BITFIT", "HOULSBY_ADAPTER", "LATE_PROMPT"]


def run(code: str, *paths: Path) -> str:
    """What a fresh Python prints."""
    path = os.pathsep.join([*map(str, paths), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = (
        f"import sys, lateprompt; print([m for m in sys.modules if m.partition('.')[0] in {(*HEAVY, 'numpy', 'rich')}])"
    )
    assert run(code) == "[]"


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], ("numpy", "rich", "jsonargparse")),
        (["--version"], ("numpy", "rich", "jsonargparse")),
        (["trian"], ("numpy", "rich", "jsonargparse")),
        (["train", "--help"], ()),
        (["train", "--learning-rate", "1"], ()),
        (["predict", "--help"], ()),
        (["compare", "--help"], ()),
        (["states", "--help"], ()),
        (["analyze", "--help"], ()),
        (["analyze", "layers", "--help"], ()),
        (["tasks"], ()),
    ],
)
def test_what_a_quick_command_imports(arguments, more):
    code = f"""
import contextlib, io, sys
from lateprompt.cli.app import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main({arguments!r})
print([m for m in sys.modules if m.partition('.')[0] in {HEAVY + more}])
"""
    assert run(code) == "[]"


ORDERS = [
    "import lateprompt",
    "import peft, lateprompt",
    "from lateprompt.peft_method.tail_tuner import make_config",  # imports PEFT while it is half done itself
    "import importlib, lateprompt, peft; importlib.reload(peft); importlib.reload(lateprompt)",
]
REGISTERED = f"""
import json, os, sys, torch, transformers
def found():
    from peft import PeftConfig, PeftModel
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
    hooks = [f for f in sys.meta_path if type(f).__module__ == 'lateprompt.peft_method.registry']
    loaders = [sys.modules['peft'].__loader__, sys.modules['peft'].__spec__.loader]
    return [[n for n in {OURS} if n in table] for table in (configs, tuners)] + [
        len(hooks), *(type(loader).__name__ for loader in loaders)]
for order in {ORDERS}:
    assert not [m for m in ('peft', 'lateprompt') if m in sys.modules]
    child = os.fork()  # so that torch and transformers are imported once
    if not child:
        exec(order)
        print(json.dumps(found()), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_peft_knows_our_methods_in_any_order():
    lines = [json.loads(line) for line in run(REGISTERED).splitlines()]
    assert lines == [[OURS, OURS, 0, "SourceFileLoader", "SourceFileLoader"]] * len(ORDERS)


FAKE = """
import os, threading, time
time.sleep(0.05)
if os.environ.get("BREAK_PEFT"):
    raise ImportError("peft is broken")
VALUE = 1
"""


@pytest.fixture
def fake(tmp_path):
    """A folder with a PEFT and modules that would register with it, none of which takes any time."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text(FAKE)
    (tmp_path / "peft" / "data.txt").write_text("data")
    (tmp_path / "registers.py").write_text("import peft\nassert peft.VALUE == 1\nprint('registered', flush=True)\n")
    return tmp_path


HOOKED = "import sys, os, lateprompt.peft_method.registry as r; r._REGISTERING = ('registers',)\n"


def test_the_hook_runs_once_in_many_threads(fake):
    code = """
import threading
def work():
    import peft
    assert peft.VALUE == 1
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print([f for f in sys.meta_path if isinstance(f, r._Hook)])
"""
    assert run(HOOKED + code, fake).splitlines() == ["registered", "[]"]


def test_a_peft_that_cannot_be_imported_can_be_later(fake):
    code = """
os.environ["BREAK_PEFT"] = "1"
try:
    import peft
except ImportError as error:
    print(error)
del os.environ["BREAK_PEFT"]
import peft
print(peft.VALUE, 'peft' in sys.modules)
"""
    assert run(HOOKED + code, fake).splitlines() == ["peft is broken", "registered", "1 True"]


def test_a_forked_process_has_the_hook_too(fake):
    code = """
import multiprocessing
def work():
    import peft
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start(); process.join()
    print(process.exitcode, 'peft' in sys.modules)
"""
    assert run(HOOKED + code, fake).splitlines() == ["registered", "0 False"]


def test_others_do_not_see_the_hook(fake):
    code = """
import importlib.util, importlib.resources
spec = importlib.util.find_spec("peft")
print(spec.loader.get_filename("peft").endswith("__init__.py"), spec.loader.is_package("peft"), 'peft' in sys.modules)
print(importlib.resources.files("peft").joinpath("data.txt").read_text())
"""
    assert run(HOOKED + code, fake).splitlines() == ["True True False", "registered", "data"]


def test_what_fails_while_registering_is_shown(fake):
    (fake / "registers.py").write_text("import no_such_module\n")
    code = """
try:
    import peft
except ImportError as error:
    print(error)
"""
    assert run(HOOKED + code, fake) == "No module named 'no_such_module'"


@pytest.mark.parametrize("name", lateprompt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(lateprompt, name) is not None
    assert name in dir(lateprompt)
    exec(f"from lateprompt import {name}", {})


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = lateprompt.no_such_name
    assert not hasattr(lateprompt, "_private")
    with pytest.raises(ImportError):
        exec("from lateprompt import no_such_name", {})
    assert lateprompt.backbone.split is importlib.import_module(
        "lateprompt.backbone.split"
    )  # as it was before names were lazy


def test_names_of_settings_are_those_of_the_modules_that_do_the_work():
    from lateprompt.data import READOUTS
    from lateprompt.peft_method.config import POOLINGS
    from lateprompt.readouts import LOSSES
    from lateprompt.runs.train import DataSettings
    from lateprompt.state_cache.fill import StatesSettings

    assert tuple(DTYPES) == names.DTYPES
    assert (POOLINGS, LOSSES, READOUTS) == (names.POOLINGS, names.LOSSES, names.READOUTS)
    assert DataSettings("rows.csv").train == "rows.csv"
    assert StatesSettings().states == "on"
