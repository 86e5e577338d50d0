"""Settings by the names that they had before: taken wherever a setting is given, never written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from conftest import make_rows, write_rows
from sklearn.base import clone

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import build_parser, main
from lateprompt.data import check_task, default_task
from lateprompt.experiments.compare.plan import MethodEntry, ModelEntry, Plan, TaskEntry
from lateprompt.experiments.compare.plan_file import load_plan
from lateprompt.experiments.end_to_end import JobSettings
from lateprompt.predictors.loading import load_base
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.aliases import FIELDS, VALUES, earlier_settings, todays_settings
from lateprompt.utils.errors import LatePromptError

EARLIER = {"clip": 0.5, "early_stop": 3, "steps": 7, "warmup": 0.1}
TODAY = {"max_grad_norm": 0.5, "patience": 3, "max_steps": 7, "warmup_ratio": 0.1}


def test_there_and_back():
    assert {FIELDS[name]: value for name, value in EARLIER.items()} == TODAY
    assert todays_settings(EARLIER) == todays_settings(TODAY) == TODAY
    assert earlier_settings(TODAY) == EARLIER
    assert {name: earlier_settings({"readout": today})["readout"] for name, today in VALUES["readout"].items()} == {
        name: name for name in ("mask", "label", "text")
    }


@pytest.mark.parametrize("kind", [RecipeSettings, LatePromptClassifier])
def test_constructors(kind):
    made = kind(**EARLIER)
    assert {name: getattr(made, name) for name in EARLIER} == EARLIER
    assert {name: getattr(made, name) for name in TODAY} == TODAY
    assert set(vars(made)) == set(vars(kind(**TODAY)))
    for name, value in EARLIER.items():
        with pytest.raises(LatePromptError, match=f"'{name}' and '{FIELDS[name]}' are two names of one setting"):
            kind(**{name: value, FIELDS[name]: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_norm'"):
        kind(max_norm=1.0)


def test_settings_are_written_by_today_s_names():
    recipe = RecipeSettings(**EARLIER)
    assert recipe == RecipeSettings(**TODAY)
    assert asdict(recipe) == asdict(RecipeSettings(**TODAY))
    assert replace(recipe, max_steps=8).steps == 8
    recipe.clip = 2.0
    assert recipe.max_grad_norm == 2.0
    assert JobSettings(steps=3).max_steps == 3


@pytest.mark.parametrize(("earlier", "today"), VALUES["readout"].items())
def test_readouts(earlier, today, masked_lm, causal_lm):
    assert ModelSettings("roberta-base", readout=earlier).readout == today
    if today != "generate":
        assert ModelSettings("roberta-base", readout=earlier).check() is None
    model = masked_lm if earlier == "mask" else causal_lm
    assert type(load_base(model, earlier)) is type(load_base(model, today))


def test_estimator_parameters():
    estimator = LatePromptClassifier(**EARLIER).set_params(clip=0.25, steps=9)
    parameters = estimator.get_params()
    assert not set(parameters) & set(EARLIER)
    assert parameters == clone(estimator).get_params()
    assert (parameters["max_grad_norm"], parameters["max_steps"]) == (0.25, 9)
    with pytest.raises(LatePromptError, match="two names"):
        estimator.set_params(clip=1.0, max_grad_norm=1.0)
    state = {**estimator.__getstate__(), "early_stop": 5}
    del state["patience"]
    again = LatePromptClassifier.__new__(LatePromptClassifier)
    again.__setstate__(state)
    assert again.patience == 5
    assert "early_stop" not in vars(again)


def test_command_line(tmp_path, capsys):
    parser = build_parser("train")
    needed = ["--model", "m", "--train", "t", "--output", "o"]
    flags = [word for name, value in EARLIER.items() for word in (f"--{name}", str(value))]
    parsed = parser.parse_args([*needed, *flags])
    assert {name: parsed[name] for name in TODAY} == TODAY
    assert not set(vars(parsed)) & set(EARLIER)
    assert build_parser("train").parse_args([*needed, "--clip=2"]).max_grad_norm == 2
    (tmp_path / "c.yaml").write_text("clip: 0.5\nearly_stop: 3\nsteps: 7\nwarmup: 0.1\nreadout: mask\n")
    config = ["--config", str(tmp_path / "c.yaml")]
    parsed = build_parser("train").parse_args([*needed, *config, "--max_steps", "8"])
    assert {name: parsed[name] for name in TODAY} == {**TODAY, "max_steps": 8}
    assert "also --early-stop" in " ".join(parser.format_help().split())
    assert build_parser("bench").parse_args(["job", "--steps", "3"]).job.max_steps == 3
    assert build_parser("compare").parse_args(["--steps", "3", "--output", "o"]).max_steps == 3
    capsys.readouterr()
    assert raised(["train", *needed, "--clip", "1", "--max-grad-norm", "1"]) == 2
    assert capsys.readouterr().err == (
        "lateprompt: --clip and --max-grad-norm are two names of one option; give --max-grad-norm alone\n"
    )
    (tmp_path / "c.yaml").write_text("clip: 0.5\nmax_grad_norm: 0.5\n")
    assert raised(["train", *needed, *config]) == 2
    assert "'clip' and 'max_grad_norm' are two names of one setting" in capsys.readouterr().err
    assert raised(["predict", "run", "--data", "d", "--clip", "1"]) == 2
    assert "there is no option '--clip'" in capsys.readouterr().err


def raised(arguments) -> int:
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code)


def test_plans(headless, tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    for name in ("train", "dev"):
        write_rows(folder / f"{name}.jsonl", make_rows(8))
    given = {"models": [headless], "methods": ["head"], "tasks": ["sst2"], "data": str(tmp_path), "recipe": EARLIER}
    plan = load_plan(None, {**given, "settings": {"readout": "head"}})
    assert plan.recipe == TODAY
    grid = {"default": {"recipe.clip": [0.5, 1.0], "settings.readout": ["mask", "head"]}}
    found = load_plan(None, {**given, "search": {"grid": grid}})
    assert list(found.search.grid["default"]) == ["recipe.max_grad_norm", "settings.readout"]
    for change in (
        {"recipe": {**EARLIER, "patience": 3}},
        {"search": {"grid": {"default": {"recipe.clip": [1], "recipe.max_grad_norm": [1]}}}},
    ):
        with pytest.raises(LatePromptError, match="two names"):
            load_plan(None, {**given, **change})


def test_a_comparison_finds_its_earlier_results(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    rows = str(tmp_path / "rows.jsonl")
    plan = Plan(
        [ModelEntry("hub/id", "m")],
        [MethodEntry("npg", "npg")],
        [TaskEntry("sst2", rows, rows)],
        settings={"readout": "mask"},
    )
    spec = plan.run(plan.models[0], plan.methods[0], plan.tasks[0], 60, 42, test=False)
    assert spec.settings.readout == "masked_lm"
    assert spec.key == "c38fd5dee08ccd94"  # as commit f34005e had it


def test_tasks_are_checked_by_earlier_names(masked_lm):
    from lateprompt.predictors.loading import load_tokenizer

    task, tokenizer = default_task(["good", "bad"], pair=False), load_tokenizer(masked_lm)
    assert check_task(task, tokenizer, "mask") == check_task(task, tokenizer, "masked_lm")
    assert json.dumps(check_task(task, tokenizer, "label")) == json.dumps(check_task(task, tokenizer, "causal_lm"))
