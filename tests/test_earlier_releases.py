"""What earlier releases have saved is still read, and what they were imported by is still importable."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM

SAVED = Path(__file__).parent / "saved"
sys.path.insert(0, str(SAVED))
from make_saved import BASES, TEXTS, write_weights  # noqa: E402

EXPECTED = json.loads((SAVED / "runs" / "expected.json").read_text(encoding="utf-8"))
RUNS = [name for name in EXPECTED if not name.startswith("peft-")]
OLD_NAMES = dict(line.split(":") for line in (SAVED / "old_names.txt").read_text(encoding="utf-8").splitlines())
"""Modules of an earlier release and their public names, without internals that are gone (HTML and SVG by hand, …)."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The saved folders, and beside them the base models with their weights."""
    folder = tmp_path_factory.mktemp("saved") / "runs"
    shutil.copytree(SAVED / "runs", folder)
    for kind in BASES:
        write_weights(folder / "bases" / kind, kind)
    return folder


@pytest.mark.parametrize("name", [name for name in RUNS if name != "estimator"])
def test_a_run_folder_gives_the_predictions_of_its_time(saved, name, monkeypatch):
    from lateprompt.data import Row
    from lateprompt.predictors.kinds import load_run

    monkeypatch.chdir(saved)  # its run file names the base model relative to here
    tuned = load_run(name, device="cpu")
    rows = [Row(text) for text in TEXTS]
    if name == "writer":
        assert tuned.write(rows, max_new_tokens=4) == EXPECTED[name]
    else:
        np.testing.assert_allclose(tuned.probabilities(rows), EXPECTED[name], atol=1e-5)


def test_an_estimator_folder_gives_the_predictions_of_its_time(saved, monkeypatch):
    from lateprompt import LatePromptClassifier

    monkeypatch.chdir(saved)
    fitted = LatePromptClassifier.load("estimator", device="cpu")
    np.testing.assert_allclose(fitted.predict_proba(TEXTS), EXPECTED["estimator"], atol=1e-5)
    assert fitted.max_steps == fitted.steps == 3  # under its name of that time too


@pytest.mark.parametrize("name", ["peft-late", "peft-adapter"])
def test_a_peft_adapter_gives_the_logits_of_its_time(saved, name):
    import lateprompt  # noqa: F401 (PEFT knows our methods then)

    base = AutoModelForMaskedLM.from_pretrained(saved / "bases" / "masked")
    model = PeftModel.from_pretrained(base, saved / name).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[0, 9, 11, 5, 2], [0, 7, 6, 2, 1]])).logits[:, 1, :8]
    np.testing.assert_allclose(logits, EXPECTED[name], atol=1e-5)


@pytest.mark.parametrize("module", OLD_NAMES)
def test_an_old_module_is_still_importable_with_its_names(module):
    found = importlib.import_module(module)
    missing = [name for name in OLD_NAMES[module].split() if not hasattr(found, name)]
    assert not missing


def test_an_old_name_is_todays_module_itself():
    import lateprompt.reference
    import lateprompt.states.store

    import lateprompt.interop.authors_checkpoint
    import lateprompt.state_cache.store

    assert lateprompt.reference is lateprompt.interop.authors_checkpoint
    assert lateprompt.states.store is lateprompt.state_cache.store
    with pytest.raises(ModuleNotFoundError, match=r"lateprompt\.states\.nothing"):
        importlib.import_module("lateprompt.states.nothing")
