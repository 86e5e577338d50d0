"""The default recipe: what is left out follows from rows and method, what is given holds."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.experiments.compare.plan import MethodEntry, ModelEntry, Plan, TaskEntry
from lateprompt.training.loop import plan_steps
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.errors import LatePromptError


@pytest.mark.parametrize(
    ("rows", "method", "steps", "rate", "eval_every"),
    [
        (60, "npg", 400, 5e-3, 40),
        (60, "fixed", 400, 5e-3, 40),
        (60, "lora", 400, 1e-3, 40),
        (60, "npg+late-lora", 400, 1e-3, 40),
        (60, None, 400, 1e-3, 40),
        (999, "mppg", 400, 5e-3, 40),
        (1000, "npg", 400, 1e-3, 40),
        (5000, "npg", 1570, 1e-3, None),
    ],
)
def test_defaults_follow_rows_and_method(rows, method, steps, rate, eval_every):
    recipe = RecipeSettings().resolved(rows, method)
    assert plan_steps(rows, recipe)[1] == steps
    assert (recipe.lr, recipe.eval_every) == (rate, eval_every)
    assert recipe.resolved(rows, method) == recipe


def test_what_is_given_holds():
    assert plan_steps(60, RecipeSettings(epochs=3).resolved(60, "npg"))[1] == 6
    assert plan_steps(60, RecipeSettings(max_steps=7).resolved(60, "npg"))[1] == 7
    assert RecipeSettings(lr=1e-4).resolved(60, "npg").lr == 1e-4
    assert RecipeSettings(eval_every=3).resolved(60, "npg").eval_every == 3


def test_the_paper_s_recipe_is_the_authors():
    recipe = RecipeSettings(recipe="paper").resolved(60, "npg")
    assert (plan_steps(60, recipe)[1], recipe.lr, recipe.epochs, recipe.eval_every) == (20, 1e-3, 10, None)
    with pytest.raises(LatePromptError, match="recipe 'papers' is unknown"):
        RecipeSettings(recipe="papers").check()


def test_a_run_says_what_it_chose_and_resumes(headless, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", make_rows(20))
    command = ["train", "--model", headless, "--train", train, "--output", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 0
    recipe = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]
    assert (recipe["recipe"], recipe["max_steps"], recipe["lr"]) == ("auto", 400, 5e-3)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 400
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume", "--recipe", "paper"]) == 2


def test_comparisons_keep_one_recipe_for_all_methods(tmp_path):
    plan = Plan([ModelEntry("m", "m")], [MethodEntry("npg", "npg")], [TaskEntry("t", "a", "b")])
    spec = plan.run(plan.models[0], plan.methods[0], plan.tasks[0], 60, 42, test=False)
    assert asdict(spec.recipe) == {**asdict(RecipeSettings(recipe="paper", epochs=10, lr=1e-3))}
