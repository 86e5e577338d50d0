"""The core loads neither pandas nor matplotlib of its own accord, and works where they cannot be loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import make_rows, write_rows

STEPS = ["--prompt-layer", "2", "--bottleneck-dim", "8", "--steps", "2", "--batch-size", "8", "--folds", "0", "--json"]
BLOCKED = """
import sys
sys.modules.update(pandas=None, matplotlib=None)  # whoever imports them gets an ImportError
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_first_import_and_help_load_neither():
    code = """
import sys, lateprompt
from lateprompt.cli.app import main
for arguments in (["--help"], ["train", "--help"], ["report", "--help"]):
    try: main(arguments)
    except SystemExit: pass
print([name for name in ("pandas", "matplotlib") if name in sys.modules])
"""
    assert python(code).splitlines()[-1] == "[]"


def test_train_and_predict_work_without_them(masked_lm, tmp_path: Path):
    write_rows(tmp_path / "train.jsonl", make_rows(16))
    (tmp_path / "rows.csv").write_text("text\na gem .\ndull .\n")
    run = BLOCKED + "from lateprompt.cli.app import main; sys.exit(main())"
    train = ["train", "--model", masked_lm, "--task", "sst2", "--train", str(tmp_path / "train.jsonl"), *STEPS]
    python(run, *train, "--output", str(tmp_path / "run"))
    for data in ("train.jsonl", "rows.csv"):
        output = tmp_path / f"{data}.predictions"
        python(run, "predict", str(tmp_path / "run"), "--data", str(tmp_path / data), "--output", str(output))
        assert output.read_text().count("prediction")


def test_the_estimator_works_without_them(masked_lm):
    code = (
        BLOCKED
        + """
from lateprompt import LatePromptClassifier
classifier = LatePromptClassifier(model=sys.argv[1], prompt_layer=2, bottleneck_dim=8, steps=2)
print(classifier.fit(["a gem .", "dull ."] * 4, ["good", "bad"] * 4).predict(["a gem ."]))
"""
    )
    assert python(code, masked_lm).strip() in ("['good']", "['bad']")
