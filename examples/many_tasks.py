"""Many classifiers on one frozen model, from a CSV with a column text and a column of labels for each task.

    python examples/many_tasks.py rows.csv [MODEL]

MODEL is a hub id or a folder, such as roberta-base; without it, the small model that `make demo` installs.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from lateprompt import LatePromptClassifier
from lateprompt.data import Row, label_name, read_rows
from lateprompt.demo import installed_encoder


def train(name: str, rows: list[Row], model: str) -> list[str]:
    """Train one task on four rows in five, score it on the fifth, save runs/NAME, and return its labels."""
    labelled = [row for row in rows if label_name(row.source[name])]  # a blank cell: not labelled for this task
    held_out, seen = labelled[::5], [row for i, row in enumerate(labelled) if i % 5]
    # All tasks have one prompt layer, so the layers below it read each text once, for the first task that has it.
    classifier = LatePromptClassifier(model, prompt_layer="0.5", readout="head", head_pooling="mean", max_length=128)
    classifier.set_params(states="runs/states").fit([row.text for row in seen], [row.source[name] for row in seen])
    accuracy = classifier.score([row.text for row in held_out], [row.source[name] for row in held_out])
    seconds = classifier.metrics_["trunk_fill_seconds"]
    print(f"{name}: {seconds:.1f} s in the layers below the prompt; accuracy on held-out rows {accuracy:.3f}")
    classifier.save(f"runs/{name}", overwrite=True)
    return list(classifier.classifier_.task.labels)


def main(file: str, model: str) -> None:
    rows = read_rows(file, labelled=False)
    labels = {name: train(name, rows, model) for name in rows[0].source if name != "text"}

    # One model with all adapters. Each row of a batch names its own; the layers below the prompt run once for all.
    first, *others = labels
    together = PeftModel.from_pretrained(AutoModel.from_pretrained(model), f"runs/{first}", adapter_name=first).eval()
    for name in others:
        together.load_adapter(f"runs/{name}", adapter_name=name)
    names = list(labels) * 2
    texts = [row.text for row in rows[:2] for _ in labels]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # decoders often have none
    batch = tokenizer(texts, padding=True, padding_side="right", truncation=True, max_length=128, return_tensors="pt")
    with torch.inference_mode():
        states = together(**batch, adapter_names=names).last_hidden_state
        weights = batch["attention_mask"][..., None]
        means = (states * weights).sum(1) / weights.sum(1)
        for text, name, mean in zip(texts, names, means, strict=True):
            scores = together.base_model.layer.late_prompt_heads[name](mean)
            print(f"{text[:60]!r} {name}: {labels[name][scores.argmax()]}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else installed_encoder())
