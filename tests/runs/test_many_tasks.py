"""Many tasks in one run: each gets what a run of its own gives; gaps, lists of labels, folders and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lateprompt
from lateprompt import LatePromptError, MultiTask, train_tasks
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.cli.app import main
from lateprompt.data import Row
from lateprompt.data.label_columns import read_label_columns
from lateprompt.demo import installed_encoder
from lateprompt.predictors.kinds import load_run
from lateprompt.readouts.tasks import TasksReadout
from lateprompt.runs.many_tasks import TasksRun, load_task_rows
from lateprompt.runs.train import train_run
from lateprompt.state_cache.settings import StatesSettings
from lateprompt.training.data_settings import DataSettings
from lateprompt.training.settings import ModelSettings, RecipeSettings

COLUMNS = ["mood", "topic", "urgency"]
OFF = StatesSettings("off")
RECIPE = RecipeSettings(max_steps=6, batch_size=8, eval_every=3, lr=2e-3, seed=5)


def made(number: int, start: int = 0) -> list[dict[str, object]]:
    """Rows of three tasks; every third has no urgency."""
    rows = []
    for i in range(start, start + number):
        good, topic, soon = i % 2, i % 3, i // 2 % 2
        words = [("a dull", "a warm")[good], ("film", "soup", "car")[topic], ("someday", "today")[soon]]
        row: dict[str, object] = {"text": " ".join([*words, "here " * (i % 4)]).strip() + f" {i % 7}"}
        row |= {"mood": ("bad", "good")[good], "topic": ("film", "food", "travel")[topic]}
        row |= {"urgency": "" if i % 3 == 2 else ("low", "high")[soon]}
        row["tags"] = [name for name, there in (("film", topic == 0), ("now", soon == 1)) if there]
        rows.append(row)
    return rows


def written(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> DataSettings:
    folder = tmp_path_factory.mktemp("rows")
    names = {"train": (40, 0), "dev": (18, 50), "test": (16, 100)}
    paths = {name: written(folder / f"{name}.jsonl", made(n, start)) for name, (n, start) in names.items()}
    return DataSettings(paths["train"], dev=[paths["dev"]], test=[paths["test"]])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> StatesSettings:
    return StatesSettings(str(tmp_path_factory.mktemp("states")))


@pytest.fixture(scope="module")
def no_dropout(tmp_path_factory) -> str:
    """MiniLM without dropout."""
    folder, own = Path(installed_encoder()), tmp_path_factory.mktemp("minilm")
    for path in folder.iterdir():
        if path.name != "config.json":
            (own / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (own / "config.json").write_text(json.dumps(config))
    return str(own)


def settings(model: str, **more) -> ModelSettings:
    return ModelSettings(model, method="read-npg", readout="head", bottleneck_dim=16, device="cpu", **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


SAME = ("accuracy", "macro_f1", "mcc", "loss")


@pytest.mark.parametrize("column", ["mood", "urgency"])
def test_one_task_is_an_ordinary_run(files, store, tmp_path, column):
    """With dropout too: the same numbers are drawn. Rows without a label are no rows of the task."""
    model = settings(installed_encoder())
    _, many = train_tasks(model, files, [column], RECIPE, tmp_path / "many", store)
    if column == "urgency":
        paths = {}
        for name, part in (("train", files.train), ("dev", files.dev[0]), ("test", files.test[0])):
            rows = [json.loads(line) for line in Path(part).read_text().splitlines()]
            paths[name] = written(tmp_path / f"{name}.jsonl", [row for row in rows if row["urgency"]])
        files = DataSettings(paths["train"], dev=[paths["dev"]], test=[paths["test"]])
    _, alone = train_run(model, replace(files, label_column=column), RECIPE, tmp_path / "alone", states=store)
    assert difference(weights(tmp_path / "many" / column), weights(tmp_path / "alone")) < 1e-5
    own = many["tasks"][column]
    assert [own[name] for name in SAME] == pytest.approx([alone[name] for name in SAME], abs=1e-4)
    tests = [next(iter(found["test"].values())) for found in (own, alone)]
    assert tests[0] == pytest.approx(tests[1], abs=1e-4)
    assert own.keys() - alone.keys() == {"tasks_in_run"}
    assert [own[name] for name in ("train_rows", "dev_rows", "steps", "trainable_parameters")] == [
        alone[name] for name in ("train_rows", "dev_rows", "steps", "trainable_parameters")
    ]
    histories = [
        [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "many" / column, tmp_path / "alone")
    ]
    for one, other in zip(*histories, strict=True):
        assert one.keys() == other.keys()
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)


@pytest.mark.parametrize(
    "more", [{}, {"max_grad_norm": 1.5}, {"patience": 1, "eval_every": 1, "max_steps": 12}, {"grad_accumulation": 2}]
)
def test_tasks_do_not_influence_each_other(files, store, no_dropout, tmp_path, monkeypatch, more):
    """Gradients of each task are clipped alone: hard here, so that a common norm would show."""
    model, recipe = settings(no_dropout), replace(RECIPE, **{"max_grad_norm": 0.05, **more})
    columns = ["topic", "mood"]
    asked: list[str] = []
    losses = TasksReadout.losses
    monkeypatch.setattr(
        TasksReadout, "losses", lambda self, batch, tasks: (asked.extend(tasks), losses(self, batch, tasks))[1]
    )
    train_tasks(model, files, columns, recipe, tmp_path / "many", store)
    steps = []
    for column in columns:
        train_run(model, replace(files, label_column=column), recipe, tmp_path / column, states=store)
        assert difference(weights(tmp_path / "many" / column), weights(tmp_path / column)) < 1e-5
        lines = [
            (folder / "history.jsonl").read_text().splitlines()
            for folder in (tmp_path / "many" / column, tmp_path / column)
        ]
        assert len(lines[0]) == len(lines[1])
        steps.append(json.loads(lines[1][-1])["step"])
        if recipe.grad_accumulation == 1:
            assert asked.count(column) == steps[-1]
    if recipe.patience:
        assert steps[0] != steps[1]  # each stops by itself


def test_nothing_changes_without_a_store(files, store, no_dropout, tmp_path):
    model = settings(no_dropout)
    train_tasks(model, files, COLUMNS, RECIPE, tmp_path / "kept", store)
    train_tasks(model, files, COLUMNS, RECIPE, tmp_path / "off", OFF)
    for column in COLUMNS:
        assert difference(weights(tmp_path / "kept" / column), weights(tmp_path / "off" / column)) < 1e-5


def test_folders_answer_as_the_model_in_memory(files, store, tmp_path):
    tuned, measured = train_tasks(settings(installed_encoder()), files, COLUMNS, RECIPE, tmp_path / "out", store)
    texts = ["a warm soup today", "a dull car", "here"]
    folders = [tmp_path / "out" / column for column in COLUMNS]
    together = MultiTask.load(folders)
    for one, other in zip(tuned.classify(texts), together.classify(texts), strict=True):
        assert list(one) == COLUMNS
        for column in COLUMNS:
            assert one[column]["scores"] == pytest.approx(other[column]["scores"], abs=1e-6)
    for column, folder in zip(COLUMNS, folders, strict=True):
        alone = load_run(folder)
        found = alone.probabilities([Row(text) for text in texts])
        scores = [list(answer[column]["scores"].values()) for answer in tuned.classify(texts)]
        assert np.abs(found - np.array(scores)).max() < 1e-6
        assert json.loads((folder / "metrics.json").read_text()) == measured["tasks"][column]
        rows = read_label_columns(files.test[0], [column])
        own = [replace(row, label=label) for row, label in zip(rows.rows, rows.labels[column], strict=True) if label]
        assert alone.evaluate(own) == pytest.approx(measured["tasks"][column]["test"][files.test[0]], abs=1e-5)
    whole = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert whole == measured
    assert list(whole["tasks"]) == COLUMNS
    assert whole["seconds"] > whole["train_seconds"]
    assert measured["tasks"]["urgency"]["train_rows"] == sum(bool(row["urgency"]) for row in made(40))


def test_texts_are_computed_once(files, tmp_path, monkeypatch):
    """Neither training nor dev and test rows run the frozen model again when their states are in the store."""
    model, states = settings(installed_encoder()), StatesSettings(str(tmp_path / "states"))
    train_tasks(model, files, ["mood"], RECIPE, None, states)
    passes = []
    read = LateBackbone.read_tasks
    for name in ("_run_below", "_run_whole", "_run_above"):
        monkeypatch.setattr(
            f"lateprompt.backbone.read_only.text.{name}", lambda *a: pytest.fail("the frozen model runs")
        )
    monkeypatch.setattr(
        LateBackbone, "read_tasks", lambda self, names, *a: (passes.append(list(names)), read(self, names, *a))[1]
    )
    _, measured = train_tasks(model, files, COLUMNS, RECIPE, None, states)
    assert measured["trunk_fill_seconds"] == 0.0
    # Six steps, two evaluations of the dev rows and one for their temperature, and one of the test rows.
    assert len(passes) == 10
    assert all(len(names) == 3 for names in passes)


def test_a_batch_without_a_label_leaves_the_task_alone(tmp_path, no_dropout):
    rows = [{**row, "rare": ("a", "b")[i] if i < 2 else None} for i, row in enumerate(made(24))]
    data = DataSettings(written(tmp_path / "train.jsonl", rows))
    run = TasksRun(settings(no_dropout), load_task_rows(data, ["mood", "rare"], None, 5), RECIPE, OFF, data=data)
    run.build()
    asked = []
    losses = TasksReadout.losses

    def recorded(self, batch, tasks):
        asked.append(list(tasks))
        return losses(self, batch, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TasksReadout, "losses", recorded)
        run.train()
    assert ["mood"] in asked
    assert any("rare" in names for names in asked)
    assert run.metrics["rare"]["train_rows"] == 2
    assert all(np.isfinite(entry.get("train_loss", 0.0)) for entry in run.results["rare"].history)


def test_lists_of_labels_are_tasks_of_yes_and_no(files, store, tmp_path):
    tuned, measured = train_tasks(
        settings(installed_encoder()), files, ["mood"], RECIPE, tmp_path / "out", store, multi_label="tags"
    )
    assert list(measured["tasks"]) == ["mood", "film", "now"]
    assert tuned.tasks["now"].task.labels == ("no", "yes")
    assert measured["tasks"]["film"]["train_rows"] == 40
    facts = json.loads((tmp_path / "out" / "now" / "run.json").read_text())
    assert facts["data"]["multi_label"] == "tags"
    rows = load_task_rows(files, ["mood"], "tags", 5)
    assert rows.labels["train"]["now"] == ["yes" if "now" in row["tags"] else "no" for row in made(40)]
    # A text of labels says the same as a list.
    texts = [{**row, "tags": " | ".join(row["tags"])} for row in made(40)]
    again = DataSettings(written(tmp_path / "texts.jsonl", texts), dev=files.dev, test=files.test)
    assert load_task_rows(again, ["mood"], "tags", 5).labels["train"] == rows.labels["train"]
    # Training on them is training on a column of yes and no.
    column = [{"text": row["text"], "label": "yes" if "now" in row["tags"] else "no"} for row in made(40)]
    single = DataSettings(written(tmp_path / "single.jsonl", column))
    model = settings(installed_encoder())
    train_tasks(model, replace(files, dev=[], test=[]), [], RECIPE, tmp_path / "tags", store, multi_label="tags")
    whole = train_tasks(model, single, ["label"], RECIPE, tmp_path / "column", store)[1]
    assert whole["tasks"]["label"]["train_rows"] == 40


def test_rows_drawn_for_dev(files, store):
    drawn = replace(files, dev=[], test=[], dev_rows=10)
    rows = load_task_rows(drawn, COLUMNS, None, 5)
    assert (len(rows.rows.train), len(rows.rows.dev)) == (30, 10)
    texts = {row["text"]: row for row in made(40)}
    for name, own in (("train", rows.rows.train), ("dev", rows.rows.dev)):
        assert rows.labels[name]["topic"] == [texts[row.text]["topic"] for row in own]
    few = load_task_rows(replace(drawn, dev_rows=None, shots=12), COLUMNS, None, 5)
    assert (len(few.rows.train), len(few.rows.dev)) == (12, 28)


def test_a_run_is_replaced_only_when_asked(files, store, tmp_path):
    out, model = tmp_path / "out", settings(installed_encoder())
    train_tasks(model, files, ["mood", "topic"], RECIPE, out, store)
    before = weights(out / "mood")
    with pytest.raises(LatePromptError, match="not empty"):
        train_tasks(model, files, ["mood", "topic"], RECIPE, out, store)
    train_tasks(model, files, ["mood", "topic"], replace(RECIPE, seed=6), out, store, overwrite=True)
    assert difference(before, weights(out / "mood")) > 1e-3
    (out / "mood" / "notes.txt").write_text("mine")
    with pytest.raises(LatePromptError, match=r"has 'notes\.txt'"):
        train_tasks(model, files, ["mood", "topic"], RECIPE, out, store, overwrite=True)
    (out / "mood" / "notes.txt").unlink()
    (out / "mine").mkdir()
    (out / "mine" / "rows.txt").write_text("mine")
    for more in ({}, {"multi_label": "tags"}):
        with pytest.raises(LatePromptError, match="'mine'"):
            train_tasks(model, files, ["mood", "topic"], RECIPE, out, store, overwrite=True, **more)
    assert (out / "mine" / "rows.txt").read_text() == "mine"
    assert not (out / ".lateprompt.lock").exists()


def test_the_runs_are_replaced_together(files, store, tmp_path, monkeypatch):
    """A write that fails at the last task leaves all runs as they were."""
    out, model = tmp_path / "out", settings(installed_encoder())
    train_tasks(model, files, ["mood", "topic"], RECIPE, out, store)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write = TasksRun.write_files

    def failing(self, place, task):
        write(self, place, task)
        if task == "topic":
            raise LatePromptError("No space left")

    monkeypatch.setattr(TasksRun, "write_files", failing)
    with pytest.raises(LatePromptError, match="No space left"):
        train_tasks(model, files, ["mood", "topic"], replace(RECIPE, seed=6), out, store, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_error_leaves_no_folder(files, store, tmp_path):
    with pytest.raises(LatePromptError, match="diverged"):
        train_tasks(settings(installed_encoder()), files, COLUMNS, replace(RECIPE, lr=1e30), tmp_path / "out", store)
    assert not (tmp_path / "out").exists()


WRONG = [
    ({"columns": "mood"}, "'mood' is one name"),
    ({"columns": []}, "columns is empty"),
    ({"columns": ["mood", "mood"]}, "'mood' twice"),
    ({"columns": ["mood", "topics"]}, "no column 'topics' (did you mean 'topic'?)"),
    ({"columns": ["mood", "text"]}, "column 'text' is chosen for"),
    ({"columns": ["tags"]}, "line 1: column 'tags': label"),
    ({"columns": ["film"], "multi_label": "tags"}, "'film'"),
    ({"model": {"method": "npg"}}, "method 'npg' cannot train many tasks at once; give a read-only prompt"),
    ({"model": {"method": "read-npg+lora"}}, "method 'read-npg+lora' cannot train many tasks at once"),
    ({"model": {"readout": "masked_lm"}}, "readout 'masked_lm' cannot train many tasks at once; give head"),
    ({"data": {"task": "sst2"}}, "task 'sst2' belongs to one task"),
    ({"data": {"label_column": "mood"}}, "label_column 'mood' belongs to one task"),
    ({"data": {"label_words": {"good": "yes"}}}, "label_words"),
    ({"data": {"dev": [], "dev_rows": 40}}, "dev_rows 40 leave none"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_cannot_be_is_one_clear_error(files, tmp_path, changes, message):
    model = replace(settings(installed_encoder()), **changes.get("model", {}))
    data = replace(files, **changes.get("data", {}))
    more = {"multi_label": changes["multi_label"]} if "multi_label" in changes else {}
    with pytest.raises(LatePromptError) as error:
        train_tasks(model, data, changes.get("columns", COLUMNS), RECIPE, tmp_path / "out", OFF, **more)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "metrics.json", "embedding", "checkpoint", " a"])
def test_names_that_cannot_be_folders(tmp_path, name):
    rows = [{"text": f"text {i}", name: ("a", "b")[i % 2]} for i in range(4)]
    with pytest.raises(LatePromptError, match="cannot be the name of a folder"):
        load_task_rows(DataSettings(written(tmp_path / "rows.jsonl", rows)), [name], None, 5)


def test_a_column_of_one_label(tmp_path):
    rows = [{"text": f"text {i}", "a": "x", "b": ("x", "y")[i % 2]} for i in range(4)]
    with pytest.raises(LatePromptError, match="all labels in column 'a' are 'x'"):
        load_task_rows(DataSettings(written(tmp_path / "rows.jsonl", rows)), ["b", "a"], None, 5)


def test_dev_rows_without_a_task(files, tmp_path):
    dev = written(tmp_path / "dev.jsonl", [{key: row[key] for key in ("text", "mood")} for row in made(6)])
    with pytest.raises(LatePromptError, match="no row has a label for task 'topic'"):
        load_task_rows(replace(files, dev=[dev]), COLUMNS, None, 5)
    rows = load_task_rows(replace(files, test=[dev]), COLUMNS, None, 5)
    assert rows.labels[dev]["topic"] == [None] * 6


def test_from_a_table(tmp_path):
    (tmp_path / "rows.csv").write_text("text, mood ,tags\na gem .,good,film|short\ndull .,,\n")
    found = read_label_columns(tmp_path / "rows.csv", ["mood"], "tags")
    assert found.labels == {"mood": ["good", None]}
    assert found.listed == [["film", "short"], []]
    with pytest.raises(LatePromptError, match="columns are text, mood, tags"):
        read_label_columns(tmp_path / "rows.csv", ["topic"])


def test_the_command(files, store, tmp_path, capsys):
    words = ["train", "--model", installed_encoder(), "--train", files.train, "--dev", *files.dev, "--states"]
    words += [str(store.states), "--max-steps", "2", "--batch-size", "8", "--output", str(tmp_path / "out")]
    many = ["--label-columns", "mood", "topic", "--method", "read-npg", "--readout", "head"]
    assert main([*words, *many, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["mood", "topic"]
    assert main([*words, *many, "--quiet", "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "mood" in out
    assert "2 tasks, 2 steps" in out
    assert main([*words, *many, "--resume"]) == 2
    assert main([*words, *many, "--method", "npg", "--overwrite"]) == 2
    found = capsys.readouterr().err.strip().splitlines()
    assert len(found) == 2
    assert "method 'npg'" in found[1]
    assert main(["evaluate", str(tmp_path / "out" / "topic"), "--data", files.test[0]]) == 0


def test_the_name_is_public():
    assert lateprompt.train_tasks is train_tasks


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_other_models_and_pairs(kind, request, tmp_path):
    """A decoder's head reads the last token; a model with an LM head gives it up for trained ones."""
    model = ModelSettings(request.getfixturevalue(kind), method="read-npg", prompt_layer=2, bottleneck_dim=8)
    rows = [{**row, "text_pair": f"and {i % 5}"} for i, row in enumerate(made(24))]
    data = DataSettings(written(tmp_path / "rows.jsonl", rows))
    states = StatesSettings(str(tmp_path / "states"))
    tuned, _ = train_tasks(model, data, ["topic", "urgency"], RECIPE, tmp_path / "out", states)
    texts = [("a warm soup", "and 1"), ("a dull car", "and 2")]
    for name in ("topic", "urgency"):
        alone = load_run(tmp_path / "out" / name)
        found = alone.probabilities([Row(*text) for text in texts])
        scores = [list(answer[name]["scores"].values()) for answer in tuned.classify(texts)]
        np.testing.assert_allclose(found, scores, atol=1e-6)
    train_run(
        replace(model, readout="head"), replace(data, label_column="topic"), RECIPE, tmp_path / "alone", states=states
    )
    train_tasks(model, data, ["topic"], RECIPE, tmp_path / "one", states)
    assert difference(weights(tmp_path / "alone"), weights(tmp_path / "one" / "topic")) < 1e-5


def test_class_weights_and_temperatures_are_those_of_runs_of_their_own(files, no_dropout, tmp_path):
    recipe = replace(RECIPE, class_weight="balanced")
    model = settings(no_dropout)
    data = replace(files, test=[])
    tuned, measured = train_tasks(model, data, ["mood", "topic"], recipe, None, OFF)
    own = replace(data, label_column="topic")
    alone, metrics = train_run(settings(no_dropout), own, recipe, None, states=OFF)
    assert measured["tasks"]["topic"]["calibration"] == pytest.approx(metrics["calibration"], rel=1e-3)
    assert metrics["calibration"]["rows"] == 18
    rows = [Row(str(row["text"])) for row in made(6, 300)]
    together = [[*answer["topic"]["scores"].values()] for answer in tuned.classify(rows)]
    np.testing.assert_allclose(together, alone.probabilities(rows), rtol=2e-3)
    unweighted, _ = train_run(settings(no_dropout), own, RECIPE, None, states=OFF)
    assert not np.allclose(together, unweighted.probabilities(rows), rtol=2e-3)
    with pytest.raises(LatePromptError, match="one task's labels; give balanced"):
        train_tasks(model, data, ["mood"], replace(RECIPE, class_weight={"good": 2}), None, OFF)
