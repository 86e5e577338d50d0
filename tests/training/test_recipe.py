"""The default recipe: what is left out follows from rows and method, what is given holds."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from conftest import make_rows, write_rows

from lateprompt.cli.app import main
from lateprompt.experiments.compare.plan import MethodEntry, ModelEntry, Plan, TaskEntry
from lateprompt.methods import METHODS, NAMES, is_linear
from lateprompt.training.loop import make_schedule, plan_steps
from lateprompt.training.recipes import METHOD_RECIPES
from lateprompt.training.settings import RecipeSettings
from lateprompt.utils.errors import LatePromptError


@pytest.mark.parametrize(
    ("rows", "method", "steps", "rate", "eval_every"),
    [
        (60, "npg", 400, 5e-3, 40),
        (60, "fixed", 400, 5e-3, 40),
        (60, "lora", 200, 1e-3, 20),
        (5000, "lora", 1570, 3e-3, None),
        (60, "late-full", 200, 2e-4, 20),
        (60, "full", 200, 5e-5, 20),
        (60, "late-bitfit", 200, 5e-3, 20),
        (60, "npg+late-lora", 400, 5e-3, 40),
        (60, "npg+late-full", 400, 2e-4, 40),
        (60, "read-npg", 400, 2e-3, 40),
        (60, "read-npg+lora", 400, 3e-3, 40),
        (60, None, 400, 1e-3, 40),
        (1999, "mppg", 630, 5e-3, None),
        (2000, "npg", 630, 1e-3, None),
        (5000, "npg", 1570, 1e-3, None),
    ],
)
def test_defaults_follow_rows_and_method(rows, method, steps, rate, eval_every):
    recipe = RecipeSettings().resolved(rows, method)
    assert plan_steps(rows, recipe)[1] == steps
    assert (recipe.lr, recipe.eval_every) == (rate, eval_every)
    assert recipe.resolved(rows, method) == recipe


def test_every_method_has_a_recipe_of_its_own():
    alone = {method.removeprefix("late-").removeprefix("read-") for method in NAMES}
    assert {name for name in alone if not is_linear(name)} - {*METHOD_RECIPES} == set()
    assert METHODS["late-full".removeprefix("late-")].recipe.lr == 5e-5


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_the_rate_falls_as_the_schedule_says(schedule, middle, end):
    recipe = RecipeSettings(lr=1.0, schedule=schedule, warmup_ratio=0.0).resolved(10, "npg")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    made, rates = make_schedule(optimizer, recipe, 10), []
    for _ in range(10):
        optimizer.step()
        made.step()
        rates.append(made.get_last_lr()[0])
    assert (rates[4], rates[9]) == (pytest.approx(middle), pytest.approx(end, abs=1e-9))


def test_a_schedule_that_is_unknown_is_refused():
    with pytest.raises(LatePromptError, match="schedule 'lineal' is unknown"):
        RecipeSettings(schedule="lineal").check()


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
    assert asdict(spec.recipe) == {**asdict(RecipeSettings(recipe="paper", epochs=10, lr=1e-3, schedule="linear"))}
