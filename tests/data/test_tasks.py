"""Tasks: the ten of the paper, YAML files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lateprompt.data import Task, default_task, load_task, task_names

TEN = {
    "sst2": ("negative", "positive"),
    "mr": ("negative", "positive"),
    "mpqa": ("negative", "positive"),
    "subj": ("subjective", "objective"),
    "trec": ("description", "entity", "abbreviation", "human", "location", "number"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}
PAIRS = {"mnli", "mrpc", "qqp", "qnli", "rte"}
GOOD: dict[str, Any] = {
    "name": "toy",
    "template": "{text} . It was {mask} .",
    "decoder_template": "{text} It was {label} .",
    "labels": {"bad": "terrible", "good": "great"},
}


def test_the_ten_tasks_are_there() -> None:
    assert task_names() == sorted(TEN)


@pytest.mark.parametrize("name", TEN)
def test_a_task_of_the_paper(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.labels == TEN[name]
    assert task.is_pair == (name in PAIRS)
    assert task.head_template == ("{text} {sep} {text_pair}" if name in PAIRS else "{text}")
    assert task.metrics == (("accuracy", "f1", "accuracy_f1_mean") if name in {"mrpc", "qqp"} else ("accuracy",))
    # Integer classes count in label order.
    assert [task.label_map[str(index)] for index in range(len(task.labels))] == list(task.labels)
    assert Task.from_dict(task.to_dict(), "again") == task


def test_templates_and_words_of_the_paper() -> None:
    assert load_task("qqp").template == "{text} {mask} , {text_pair}"
    assert load_task("rte").template == "{text} ? {mask} , {text_pair}"
    assert load_task("sst2").label_words == ("terrible", "great")
    assert load_task("mnli").label_words == ("Yes", "Maybe", "No")
    assert load_task("mrpc").label_words == ("No", "Yes")
    assert load_task("trec").template == "{mask} : {text}"
    assert load_task("trec").label_words[2] == "Expression"
    assert load_task("qnli").decoder_template == "{text} {text_pair} They are {label} ."


def test_sorted_keys_do_not_change_the_order_of_labels() -> None:
    task = load_task("subj")
    assert Task.from_dict(yaml.safe_load(yaml.safe_dump(task.to_dict(), sort_keys=True)), "yaml") == task


def test_labels_as_a_list_are_their_own_words() -> None:
    task = Task.from_dict(GOOD | {"labels": ["bad", "good"]}, "toy")
    assert task.label_words == ("bad", "good")
    assert task.metrics == ("accuracy",)
    assert task.head_template == "{text}"


def test_integers_in_label_map_become_strings() -> None:
    assert Task.from_dict(GOOD | {"label_map": {0: "bad"}}, "toy").label_map == {"0": "bad"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tempalte": "x"}, ["unknown key 'tempalte'", "'x'"]),
        ({"name": " "}, ["name ' '"]),
        ({"name": 3}, ["name 3"]),
        ({"template": "{text} was good"}, ["template", "{text} was good", "{mask}", "exactly one"]),
        ({"template": "{text} {mask} {mask}"}, ["2 times {mask}"]),
        ({"template": "{mask}"}, ["0 times {text}"]),
        ({"template": "{text} {mask} {lable}"}, ["unknown placeholder {lable}", "{text_pair}"]),
        ({"template": "{text} {label} {mask}"}, ["unknown placeholder {label}"]),
        ({"template": "{text {mask}"}, ["stray brace"]),
        ({"template": "{text} {mask} {text_pair} {text_pair}"}, ["{text_pair} more than once"]),
        ({"template": None}, ["template None is no string"]),
        ({"decoder_template": "{text}"}, ["decoder_template", "{label}"]),
        ({"decoder_template": "{label} {text}"}, ["after {label}"]),
        ({"head_template": "{text_pair}"}, ["head_template", "{text}"]),
        ({"labels": {}}, ["labels []", "at least two"]),
        ({"labels": ["one"]}, ["labels ['one']", "at least two"]),
        ({"labels": "bad"}, ["labels 'bad' is no list"]),
        ({"labels": ["bad", "bad"]}, ["labels has 'bad' twice"]),
        ({"labels": {"a": "x", "b": True}}, ["label_words has True", "quote it"]),
        ({"labels": {"a": "x", "b": " y"}}, ["label_words has ' y'"]),
        ({"labels": ["a", "b"], "label_words": ["x"]}, ["label_words ['x'] are 1 words for 2 labels"]),
        ({"label_words": ["x", "y"]}, ["leave label_words out"]),
        ({"metrics": "accuracy"}, ["metrics 'accuracy' is no list"]),
        ({"columns": {"sentence": "text"}}, ["columns 'sentence'"]),
        ({"columns": []}, []),
        ({"columns": ["text"]}, ["columns ['text'] is no mapping"]),
        ({"label_map": {"0": "awful"}}, ["label_map '0': 'awful' is no label", "bad, good"]),
        ({"label_map": {"1.0": "bad", 1: "good"}}, ["label_map has '1' twice"]),
        ({"label_map": {"": "bad"}}, ["label_map ''"]),
        ({"labels": ["a", None]}, ["labels has None"]),
        ({"labels": {1: "x", "1.0": "y"}}, ["labels has '1' twice"]),
    ],
)
def test_a_bad_task_is_refused_in_one_line(change: dict[str, Any], words: list[str]) -> None:
    if not words:
        Task.from_dict(GOOD | change, "toy.yaml")
        return
    with pytest.raises(ValueError, match=r"^toy\.yaml: ") as error:
        Task.from_dict(GOOD | change, "toy.yaml")
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_templates_are_plain_where_left_out() -> None:
    task = Task.from_dict({"name": "toy", "labels": ["a", "b"], "head_template": "{text} {sep} {text_pair}"}, "toy")
    assert task.is_pair
    assert "{mask}" in task.template
    assert "{text_pair}" in task.template
    assert task.decoder_template.endswith("They are {label} .")


@pytest.mark.parametrize("key", ["name", "labels"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"toy: key '{key}' is missing"):
        Task.from_dict({name: value for name, value in GOOD.items() if name != key}, "toy")


def test_no_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="toy: a task is a mapping"):
        Task.from_dict(["sst2"], "toy")


def test_a_task_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(GOOD, sort_keys=False))
    assert load_task(str(path)) == Task.from_dict(GOOD, "toy")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["a task is a mapping"]),
        (b"name: {text} x", ["line 1", "YAML"]),
        (b"name: a\nlabels:\n  yes: a\n  yes: b\n", ["line 4", "'yes' occurs twice"]),
        (b"name: \xff", ["UTF-8"]),
        (b"!!python/object/apply:os.getcwd []", ["YAML"]),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "toy.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"toy\.yaml") as error:
        load_task(str(path))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_task_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"task 'sst3' is unknown.*mnli, mpqa"):
        load_task("sst3")


def test_a_default_task() -> None:
    single = default_task(["spam", "ham"], pair=False)
    assert (single.name, single.labels, single.label_words) == ("custom", ("spam", "ham"), ("spam", "ham"))
    assert not single.is_pair
    assert single.head_template == "{text}"
    assert default_task(["a", "b"], pair=True).is_pair
    own = default_task(["a", "b"], pair=False, template="{mask} : {text}", label_words=["x", "y"], name="own")
    assert (own.template, own.label_words, own.name) == ("{mask} : {text}", ("x", "y"), "own")
    with pytest.raises(ValueError, match="labels has 'a' twice"):
        default_task(["a", "a"], pair=False)
    with pytest.raises(ValueError, match=r"template '' has 0 times \{text\}"):
        default_task(["a", "b"], pair=False, template="")
