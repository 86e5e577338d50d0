"""Text-to-text tuning: rows with targets, the loss on targets alone, written answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_tokenizers
import torch
from conftest import save_tiny, write_rows
from tiny_models import DECODERS, tiny_model

from lateprompt import LatePromptClassifier
from lateprompt.cli.app import main
from lateprompt.data import Row, TargetEncoder, Task, TextTask, few_shot, load_task, plain_text_task, read_rows
from lateprompt.data.batches import Batches
from lateprompt.predictors.kinds import load_run
from lateprompt.predictors.loading import load_tokenizer
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.readouts import IGNORED
from lateprompt.state_cache.batches import CachedBatches
from lateprompt.state_cache.fill import StatesSettings
from lateprompt.training.distributed import Processes
from lateprompt.training.evaluate import evaluate
from lateprompt.training.metrics import is_better, primary_metric, text_metrics
from lateprompt.training.settings import ModelSettings

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
METHODS = (
    "npg",
    "mppg",
    "fixed",
    "late-lora",
    "npg+late-lora",
    "prompt-tuning",
    "p-tuning-v2",
    "late-p-tuning-v2",
    "s-idpg",
)


def pairs(number, start=0):
    words = ("red", "green", "blue", "white")
    return [
        {"text": f"say {words[i % 4]} {i % 7}", "target": f"{words[i % 4]} it is", "number": i}
        for i in range(start, start + number)
    ]


def rows(number, start=0):
    return [Row(row["text"], None, None, row, row["target"]) for row in pairs(number, start)]


@pytest.fixture(scope="module")
def chat_lm(tmp_path_factory) -> str:
    tokenizer = tiny_tokenizers.gpt_tokenizer().__class__.from_pretrained(
        _saved(tmp_path_factory.mktemp("tokenizer"), tiny_tokenizers.gpt_tokenizer())
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return save_tiny(tmp_path_factory.mktemp("chat"), "llama", "AutoModelForCausalLM", tokenizer)


def _saved(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    sizes = {"train": (48, 0), "dev": (12, 100), "test": (8, 200)}
    return {name: write_rows(folder / f"{name}.jsonl", pairs(n, start)) for name, (n, start) in sizes.items()}


def task_file(folder, text):
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def writer(model, seed=0, task=None, **settings):
    settings = {"method": "npg", "prompt_layer": 2, "bottleneck_dim": 8, "max_length": 48, **settings}
    settings.setdefault("max_target_length", 12)
    return TextWriter.build(ModelSettings(model=model, **settings), task or plain_text_task(pair=False), seed=seed)


# -- tasks and rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "name: own\ntemplate: '{text} => {target}'\n",
        "name: own\ndecoder_template: '{text} => {target}'\n",
        "name: own\ncolumns: {text: question, target: answer}\n",
        "name: own\nmetrics: [rouge_l, exact_match]\n",
        "name: own\nchat: off\n",
        "name: own\nsystem: Be brief.\n",
    ],
)
def test_a_file_without_labels_is_a_text_task(text, tmp_path):
    task = load_task(task_file(tmp_path, text))
    assert isinstance(task, TextTask)
    assert task.labels == ()
    again = task_file(tmp_path, json.dumps(task.to_dict()))  # JSON is YAML
    assert load_task(again) == task


def test_a_file_with_labels_is_none(tmp_path):
    assert isinstance(load_task(task_file(tmp_path, "name: own\nlabels: {a: good, b: bad}\n")), Task)
    with pytest.raises(ValueError, match=r"'labels' is missing.*target"):
        load_task(task_file(tmp_path, "name: own\ntemplate: '{text} {mask}'\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("template: '{text} {target} .'", "goes on after"),
        ("template: '{target}'", "0 times {text}"),
        ("template: '{text} {mask} {target}'", "unknown placeholder {mask}"),
        ("metrics: [accuracy]\nchat: on", "'accuracy'"),
        ("columns: {target: a, label: b}", "'label'"),
        ("chat: maybe", "'maybe'"),
        ("system: 3", "system 3"),
        ("system: x\nchat: off", "'x'"),
        ("chat: on\ntempalte: x", "'tempalte'"),
    ],
)
def test_text_tasks_that_cannot_be(text, message, tmp_path):
    with pytest.raises(ValueError, match=r".") as error:
        load_task(task_file(tmp_path, f"name: own\n{text}\n"))
    assert message in str(error.value)


def test_rows_with_targets(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", pairs(3))
    assert [row.target for row in read_rows(path)] == ["red it is", "green it is", "blue it is"]
    renamed = write_rows(tmp_path / "renamed.jsonl", [{"q": "a", "text": "b", "target": "c", "a": "d"}])
    task = TextTask("own", columns={"text": "q", "target": "a"})
    assert read_rows(renamed, task=task)[0].target == "c"  # our own names come first
    own = write_rows(tmp_path / "own.jsonl", [{"q": "a", "a": "d"}])
    assert read_rows(own, task=task)[0].target == "d"
    table = tmp_path / "own.csv"
    table.write_text("q,a\nx,y\n", encoding="utf-8")
    assert read_rows(table, task=task)[0].text == "x"


def test_rows_without_targets(tmp_path):
    task = plain_text_task(pair=False)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "target": "b"}, {"text": "c"}])
    with pytest.raises(ValueError, match="line 2: 'target' is missing"):
        read_rows(path, task=task)
    assert [row.target for row in read_rows(path, task=task, labelled=False)] == ["b", None]
    path = write_rows(tmp_path / "numbers.jsonl", [{"text": "a", "target": 3}])
    with pytest.raises(ValueError, match="line 1: 'target' is int '3', not a string"):
        read_rows(path, task=task)
    table = tmp_path / "rows.csv"
    table.write_text("text,answer\nx,y\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column 'target'"):
        read_rows(table, task=task)


def test_a_column_named_target_beside_labels_is_nothing(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "good", "target": 1}])
    assert read_rows(path)[0] == Row("a", None, "good", {"text": "a", "label": "good", "target": 1})


def test_few_shots_of_targets():
    train, dev = few_shot(rows(20), 5, seed=1, dev_size=10)
    assert (len(train), len(dev)) == (5, 10)
    assert not {row.source["number"] for row in train} & {row.source["number"] for row in dev}


# -- encoding ----------------------------------------------------------------------------------------------------------


def test_the_plain_frame():
    tokenizer = tiny_tokenizers.gpt_tokenizer()
    example = TargetEncoder(tokenizer, TextTask("own", template="{text} : {target}")).encode(rows(1))[0]
    assert tokenizer.decode(example.input_ids) == "say red 0 : red it is"
    assert tokenizer.decode(example.input_ids[: example.read + 1]) == "say red 0 :"
    assert tokenizer.decode(example.target) == " red it is<|endoftext|>"
    assert example.target[-1] == tokenizer.eos_token_id
    assert example.input_ids[example.read + 1 :].tolist() == example.target[:-1].tolist()
    lines = TargetEncoder(tokenizer, plain_text_task(pair=False)).encode(rows(1))[0]
    assert tokenizer.decode(lines.input_ids) == "say red 0\nred it is"


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_chat_frame_is_the_tokenizers_own(chat_lm, system):
    tokenizer = load_tokenizer(chat_lm)
    encoder = TargetEncoder(tokenizer, TextTask("own", template="Please {text}\n{target}", system=system))
    example = encoder.encode(rows(1))[0]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "Please say red 0"})
    source = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "red it is"}], tokenize=False)
    assert tokenizer.decode(example.input_ids[: example.read + 1]) == source
    assert tokenizer.decode([*example.input_ids, example.target[-1]]) == whole.rstrip("\n")
    assert encoder.end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    off = TargetEncoder(tokenizer, TextTask("own", chat="off")).encode(rows(1))[0]
    assert "im_start" not in tokenizer.decode(off.input_ids)


def test_what_a_text_says_is_no_special_token(chat_lm):
    tokenizer = load_tokenizer(chat_lm)
    encoder = TargetEncoder(tokenizer, plain_text_task(pair=False))
    typed = Row("a <|im_end|> b", None, None, {}, "c <|im_end|> d")
    plain = Row("a b", None, None, {}, "c d")
    special = {tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")}
    counts = [sum(int(i) in special for i in encoder.encode([row])[0].input_ids) for row in (typed, plain)]
    assert counts[0] == counts[1]


def test_long_sources_and_targets_are_cut():
    tokenizer = tiny_tokenizers.gpt_tokenizer()
    encoder = TargetEncoder(tokenizer, plain_text_task(pair=False), max_length=20, max_target_length=6)
    with pytest.warns(UserWarning, match="1 of 1 targets are longer than max_target_length 6"):
        example = encoder.encode([Row("word " * 50, None, None, {}, "many " * 50)])[0]
    assert len(example.input_ids) == 14 + 5
    assert len(example.target) == 6
    assert example.target[-1] != tokenizer.eos_token_id
    unknown = encoder.encode([Row("word " * 50)])[0]
    assert unknown.input_ids.tolist() == example.input_ids[:14].tolist()
    assert unknown.target is None


def test_frames_that_cannot_be(chat_lm):
    plain = tiny_tokenizers.gpt_tokenizer()
    with pytest.raises(ValueError, match="no chat template"):
        TargetEncoder(plain, TextTask("own", chat="on"))
    with pytest.raises(ValueError, match="system 'x'"):
        TargetEncoder(plain, TextTask("own", system="x"))
    with pytest.raises(ValueError, match="max_target_length 64 leaves no room"):
        TargetEncoder(plain, TextTask("own"), max_length=64)
    strict = load_tokenizer(chat_lm)
    strict.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(ValueError, match="no system, please"):
        TargetEncoder(strict, TextTask("own", system="x"))
    strict.chat_template = "nothing of it"
    with pytest.raises(ValueError, match="does not repeat"):
        TargetEncoder(strict, TextTask("own"))


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_transformers_own(causal_lm):
    tuned = writer(causal_lm)
    tuned.model.eval()
    for row in rows(3):
        feed = tuned.batches([row])
        batch = feed.batch(np.arange(1))
        example = feed.examples[0]
        ids = torch.tensor([[*example.input_ids.tolist(), int(example.target[-1])]])
        labels = ids.clone()
        labels[:, : example.read + 1] = IGNORED
        theirs = tuned.model(input_ids=ids, labels=labels).loss
        assert tuned.readout.loss(batch).item() == pytest.approx(theirs.item(), abs=1e-5)


def test_padding_changes_nothing(causal_lm):
    tuned = writer(causal_lm)
    feed = tuned.batches([Row("say it", None, None, {}, "x"), Row("say a long thing", None, None, {}, "one two three")])
    with torch.no_grad():
        together = tuned.readout.scores(feed.batch(np.arange(2)))
        alone = torch.cat([tuned.readout.scores(feed.batch(np.array([i]))) for i in range(2)])
        loss = tuned.readout.loss(feed.batch(np.arange(2)))
    assert torch.allclose(together, alone, atol=1e-5)
    assert together[:, 1].tolist() == [len(example.target) for example in feed.examples]
    assert float(loss) == pytest.approx(float((-alone[:, 0] / alone[:, 1]).mean()), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_reads_the_target(method, chat_lm):
    """The first token's probability does not hang on the tokens after it."""
    tuned = writer(chat_lm, method=method, options={})
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    feed = tuned.batches([Row("say it", None, None, {}, answer) for answer in ("red", "red it is")])
    first = []
    for i in range(2):
        batch = feed.batch(np.array([i]))
        batch.targets[:, 1:] = IGNORED
        with torch.no_grad():
            first.append(float(tuned.readout.scores(batch)[0, 0]))
    assert first[0] == pytest.approx(first[1], abs=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_kept_states_give_the_same_loss(name, tmp_path, monkeypatch):
    tokenizer = tiny_tokenizers.gpt_tokenizer()
    folder = save_tiny(tmp_path / "model", name, "AutoModelForCausalLM", tokenizer)
    tuned = writer(folder, method="mppg")
    plain = tuned.batches(rows(9))
    (kept,), seconds = tuned.cached([(plain, np.arange(9))], StatesSettings(states=str(tmp_path / "states")))
    assert isinstance(kept, CachedBatches)
    assert seconds > 0
    order = np.array([4, 1, 7])
    losses = []
    for feed in (plain, kept):
        tuned.model.zero_grad()
        loss = tuned.readout.loss(feed.batch(order))
        loss.backward()
        gradients = [p.grad.clone() for p in tuned.model.parameters() if p.requires_grad]
        losses.append((float(loss.detach()), gradients))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    for one, other in zip(losses[0][1], losses[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_perplexity_counts_tokens(causal_lm):
    tuned = writer(causal_lm)
    feed = tuned.batches([Row("say it", None, None, {}, "x"), Row("say that", None, None, {}, "one two three")])
    values = evaluate(tuned.readout, feed, ("perplexity",), batch_size=2, device=tuned.device)
    with torch.no_grad():
        scores = tuned.readout.scores(feed.batch(np.arange(2)))
    assert values["perplexity"] == pytest.approx(math.exp(-float(scores[:, 0].sum() / scores[:, 1].sum())), rel=1e-5)


def test_rows_without_targets_cannot_be_scored(causal_lm):
    tuned = writer(causal_lm)
    with pytest.raises(ValueError, match="no targets to score"):
        tuned.evaluate([Row("a")])
    mixed = tuned.batches([Row("a", None, None, {}, "b"), Row("a")])
    with pytest.raises(ValueError, match="others have none"):
        mixed.batch(np.arange(2))


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_of_written_text():
    values = text_metrics(["perplexity", "exact_match", "rouge_l"], ["a b c d", "x y"], [" a b c d\n", "x z"])
    assert values == {"exact_match": 0.5, "rouge_l": pytest.approx(0.75)}
    assert primary_metric(("rouge_l", "perplexity")) == "perplexity"
    assert is_better("perplexity", 1.0, 2.0)
    assert not is_better("accuracy", 1.0, 2.0)
    assert is_better("accuracy", 1.0, None)
    with pytest.raises(ValueError, match="0 targets"):
        text_metrics(["exact_match"], [], [])


def test_rouge_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ValueError, match=r"lateprompt\[text\]"):
        text_metrics(["rouge_l"], ["a"], ["a"])


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_writing_in_a_batch_is_writing_alone(method, causal_lm):
    tuned = writer(causal_lm, method=method)
    asked = [Row("say it"), Row("say a long thing about the film"), Row("x"), Row("say so")]
    together = tuned.write(asked, max_new_tokens=6)
    assert together == [tuned.write([row], max_new_tokens=6)[0] for row in asked]
    assert together == tuned.write(rows_of(tuned, asked), batch_size=2, max_new_tokens=6)


def rows_of(tuned, asked):
    return tuned.encoder.encode([Row(row.text, None, None, {}, "not read") for row in asked])


class FirstOfTwo(Processes):
    """The first of two processes; what the second one would write is written here."""

    def __init__(self, tuned, feed):
        super().__init__(0, 2)
        self.tuned, self.feed = tuned, feed

    def gather(self, value):
        rows = Processes(1, 2).share(np.arange(len(self.feed)))
        return [value, (rows, TextWriter.write(self.tuned, [self.feed.examples[i] for i in rows]))]


def test_processes_share_the_writing(causal_lm, monkeypatch):
    tuned = writer(causal_lm, task=replace(plain_text_task(pair=False), metrics=("exact_match",)))
    answers = tuned.write(rows(5))
    targets = [answer if i in (0, 3) else answer + "!" for i, answer in enumerate(answers)]
    feed = tuned.batches([replace(row, target=target) for row, target in zip(rows(5), targets, strict=True)])
    assert tuned.measure_more(feed, batch_size=4) == {"exact_match": 0.4}
    asked = []
    whole = tuned.write
    monkeypatch.setattr(tuned, "write", lambda part, **given: asked.append(len(part)) or whole(part, **given))
    monkeypatch.setattr("lateprompt.predictors.text_generator.processes", lambda: FirstOfTwo(tuned, feed))
    assert tuned.measure_more(feed, batch_size=4) == {"exact_match": 0.4}
    assert asked == [3]


def test_writing_is_what_the_likeliest_tokens_say(causal_lm):
    """Greedy text scored as a target: each token is the likeliest after those before it."""
    tuned = writer(causal_lm, method="mppg")
    example = tuned.batches([Row("say it")]).examples[0]
    ids = torch.tensor([example.input_ids.tolist()])
    text = tuned.write([Row("say it")], max_new_tokens=5)[0]
    output = tuned.model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert text == tuned.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()
    target = output[0, ids.shape[1] :].tolist()
    batch = Batches(
        [type(example)(np.array([*example.input_ids, *target[:-1]]), None, example.read, -1, np.array(target))], 0
    )
    with torch.no_grad():
        whole = tuned.readout.layer(
            input_ids=batch.batch(np.arange(1)).input_ids,
            source_mask=torch.tensor([[1] * len(example.input_ids) + [0] * (len(target) - 1)]),
            use_cache=False,
        ).last_hidden_state
        likeliest = tuned.readout.head(whole)[0, example.read :].argmax(-1)
    assert likeliest.tolist() == target


def test_more_tokens_than_positions(causal_lm):
    tuned = writer(causal_lm)
    assert len(tuned.write([Row("say it")], max_new_tokens=50)) == 1
    with pytest.raises(ValueError, match=r"max_new_tokens 64 do not fit.*64 positions"):
        tuned.write([Row("say it")], max_new_tokens=64)


# -- the command line --------------------------------------------------------------------------------------------------


def train(model, files, output, *more):
    arguments = ["train", "--model", model, "--train", files["train"], "--prompt-layer", "2", "--bottleneck-dim", "8"]
    arguments += ["--max-length", "48", "--max-target-length", "12", "--max-steps", "30", "--batch-size", "8"]
    arguments += ["--eval-every", "10", "--lr", "2e-2", "--output", str(output), "--quiet"]
    return main([*arguments, *more])


def test_the_whole_way(chat_lm, files, tmp_path, capsys):
    task = task_file(tmp_path, "name: colours\ntemplate: '{text}\\n{target}'\nmetrics: [exact_match, rouge_l]\n")
    run = tmp_path / "run"
    assert train(chat_lm, files, run, "--task", task, "--dev", files["dev"], "--test", files["test"]) == 0
    measured = json.loads((run / "metrics.json").read_text())
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert measured["perplexity"] == min(entry["dev_perplexity"] for entry in history)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert 0 <= measured["exact_match"] <= measured["rouge_l"] + 1
    assert set(measured["test"][files["test"]]) == {"perplexity", "loss", "exact_match", "rouge_l"}
    assert "text-generation" in (run / "README.md").read_text()

    tuned = load_run(run)
    assert isinstance(tuned, TextWriter)
    again = tuned.evaluate(read_rows(files["dev"], task=tuned.task))
    assert again["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-4)
    assert again["exact_match"] == measured["exact_match"]

    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", files["dev"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-4)

    unlabelled = write_rows(tmp_path / "new.jsonl", [{"text": "say blue 3", "id": 7}, {"text": "say red 1", "id": 8}])
    predictions = tmp_path / "predictions.jsonl"
    assert main(["predict", str(run), "--data", unlabelled, "--output", str(predictions), "--beams", "2"]) == 0
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert [line["id"] for line in lines] == [7, 8]
    assert all(isinstance(line["prediction"], str) and "im_end" not in line["prediction"] for line in lines)


def test_rows_with_targets_need_no_task(causal_lm, files, tmp_path):
    assert train(causal_lm, files, tmp_path / "run", "--shots", "16") == 0
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["train_rows"] == 16
    assert measured["dev_rows"] == 32
    assert "exact_match" not in measured


def test_kept_states_and_none_end_alike(causal_lm, files, tmp_path):
    for states in ("off", str(tmp_path / "states")):
        assert train(causal_lm, files, tmp_path / states.replace("/", "_"), "--states", states) == 0
    ours, other = (load_run(tmp_path / s.replace("/", "_")) for s in ("off", str(tmp_path / "states")))
    named = dict(other.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert torch.allclose(parameter, named[name], atol=1e-5, rtol=1e-5), name


def test_states_fill_finds_what_training_reads(causal_lm, files, tmp_path, capsys):
    folder = str(tmp_path / "states")
    arguments = ["states", "fill", "--folder", folder, "--model", causal_lm, "--prompt-layer", "2"]
    arguments += ["--data", files["train"], "--max-length", "48", "--max-target-length", "12", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)[0]["rows"] == len({row["text"] for row in pairs(48)})
    assert train(causal_lm, files, tmp_path / "run", "--states", folder) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["trunk_fill_seconds"] == 0.0


def test_tasks_check_shows_the_chat(chat_lm, tmp_path, capsys):
    assert main(["tasks", "check", task_file(tmp_path, "name: own\nchat: on\n"), "--model", chat_lm]) == 0
    shown = capsys.readouterr().out
    assert "im_start" in shown
    assert "im_end" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--readout", "causal_lm"], "readout 'causal_lm' reads labels"),
        (["--max-target-length", "0"], "max_target_length 0"),
        (["--max-target-length", "48"], "max_target_length 48 leaves no room"),
        (["--label-words", '{"a": "b"}'], "targets, not labels"),
    ],
)
def test_settings_that_cannot_be(more, message, causal_lm, files, tmp_path, capsys):
    assert train(causal_lm, files, tmp_path / "run", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_write(masked_lm, files, tmp_path, capsys):
    assert train(masked_lm, files, tmp_path / "run") == 2
    assert "is an encoder and writes no text" in capsys.readouterr().err


def test_what_takes_labels_only(causal_lm, data, files, tmp_path, capsys):
    own = task_file(tmp_path, "name: own\nmetrics: [exact_match]\n")
    with pytest.raises(ValueError, match="texts for answers"):
        LatePromptClassifier(model=causal_lm, task=own).fit(["a", "b"], ["x", "y"])
    arguments = ["compare", "--model", causal_lm, "--data", str(tmp_path), "--tasks", own, "--methods", "npg"]
    assert main([*arguments, "--output", str(tmp_path / "results")]) == 2
    assert "texts for answers" in capsys.readouterr().err
    arguments = ["bench", "job", "--model", causal_lm, "--task", own, "--train", files["train"]]
    assert main([*arguments, "--dev", files["dev"]]) == 2
    assert "texts for answers" in capsys.readouterr().err
    run = tmp_path / "labels"
    arguments = ["train", "--model", causal_lm, "--train", data["train"], "--prompt-layer", "2", "--max-steps", "1"]
    assert main([*arguments, "--readout", "generate", "--output", str(run)]) == 2
    assert "the task has labels" in capsys.readouterr().err
    assert main([*arguments, "--output", str(run), "--quiet"]) == 0
    assert main(["predict", str(run), "--data", data["dev"], "--beams", "2"]) == 2
    assert "beams 2 is for runs that write text" in capsys.readouterr().err


def test_tiny_models_write_the_same_with_and_without_a_cache():
    """The prompt at the input keeps no cache; generate knows."""
    from peft import TaskType, get_peft_model

    from lateprompt import LatePromptConfig

    config = LatePromptConfig(
        task_type=TaskType.CAUSAL_LM,
        prompt_layer=2,
        generator="none",
        tuner={"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
        tuner_layers="all",
    )
    model = get_peft_model(tiny_model("llama", "AutoModelForCausalLM"), config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert written.shape == (1, 8)
    with pytest.raises(ValueError, match="keeps no KV cache"):
        model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=True)


INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def test_the_space_that_a_chat_template_puts_before_an_answer(chat_lm):
    """Llama 2's and Mistral's do: a target's tokens are those of the whole conversation."""
    tokenizer = load_tokenizer(chat_lm)
    tokenizer.chat_template = INST.replace("</s>", tokenizer.eos_token)
    encoder = TargetEncoder(tokenizer, plain_text_task(pair=False))
    (example,) = encoder.encode([Row("say red", None, None, {}, "red it is")])
    chat = [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red it is"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*example.input_ids, encoder.end] == expected
    task = TextTask("t", template="{text}{target}", system="be brief")
    with pytest.raises(ValueError, match="leaves out system 'be brief'"):
        TargetEncoder(tokenizer, task)
