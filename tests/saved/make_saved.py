"""Make what an earlier release has saved, for `test_saved_by_earlier.py`: run it with that release's code.

    python tests/saved/make_saved.py FOLDER

Base models are tiny; their weights are drawn by numpy from a seed, so that they need not be committed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

BASES = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "headless": AutoModel}
TEXTS = ["the film was great", "a terrible long walk .", "It was good ? It was bad ."]


def write_weights(folder: Path, kind: str) -> str:
    """Save a base model beside the config and the tokenizer that are in its folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = BASES[kind].from_config(AutoConfig.for_model(**config)).eval()
    numbers = np.random.default_rng(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = numbers.normal(0.0, 0.3, tuple(parameter.shape)).astype(np.float32)
            norm = "norm" in name.lower() or ".ln_" in name
            parameter.copy_(torch.from_numpy(1 + 0.1 * drawn if norm and name.endswith("weight") else drawn))
    model.save_pretrained(folder)
    return str(folder)


def main(target: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1].resolve()))
    target.mkdir(parents=True, exist_ok=True)
    os.chdir(target)  # run files name the base model: no path of this machine goes into them
    target = Path()
    import tiny_tokenizers
    from lateprompt.run import DataSettings, load_run, train_run
    from lateprompt.tasks import Row
    from peft import get_peft_model
    from tiny_models import tiny_model

    from lateprompt import AdapterConfig, LatePromptClassifier, LatePromptConfig
    from lateprompt.training.settings import ModelSettings, RecipeSettings

    shapes = {
        "masked": ("roberta", "AutoModelForMaskedLM", tiny_tokenizers.bpe_tokenizer()),
        "causal": ("gpt2", "AutoModelForCausalLM", tiny_tokenizers.gpt_tokenizer()),
        "headless": ("bert", "AutoModel", tiny_tokenizers.wordpiece_tokenizer()),
    }
    bases = {}
    for kind, (name, auto, tokenizer) in shapes.items():
        folder = target / "bases" / kind
        special = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        tiny_model(name, auto, **special).config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        bases[kind] = write_weights(folder, kind)

    rows = [{"text": text, "label": "positive" if i % 2 else "negative"} for i, text in enumerate(TEXTS * 4)]
    data = target / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    targets = target / "targets.jsonl"
    lines = [{"text": row["text"], "target": f"They are {row['label']} ."} for row in rows]
    targets.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = RecipeSettings(steps=3, batch_size=4, clip=0.5, warmup=0.1, early_stop=3, eval_every=1)
    runs = {
        "words": ("masked", {"method": "npg", "readout": "mask"}, "sst2"),
        "late-lora": ("masked", {"method": "appg+late-lora", "options": {"r": 2}}, "sst2"),
        "decoder": ("causal", {"method": "mppg", "readout": "label"}, "sst2"),
        "head": ("headless", {"method": "rpg", "readout": "head"}, "sst2"),
        "bitfit": ("headless", {"method": "bitfit"}, "sst2"),
        "prompt-tuning": ("masked", {"method": "prompt-tuning", "options": {"tokens": 2}}, "sst2"),
        "writer": ("causal", {"method": "npg", "max_target_length": 16}, None),
    }
    expected: dict[str, object] = {}
    for name, (kind, settings, task) in runs.items():
        late = {} if name in ("bitfit", "prompt-tuning") else {"prompt_layer": 2, "bottleneck_dim": 4}
        model = ModelSettings(bases[kind], device="cpu", **late, **settings)
        file = str(targets if task is None else data)
        train_run(model, DataSettings(file, dev=[file], task=task), recipe, target / name)
        tuned = load_run(target / name, device="cpu")
        if task is None:
            expected[name] = tuned.write([Row(text) for text in TEXTS], max_new_tokens=4)
        else:
            expected[name] = tuned.probabilities([Row(text) for text in TEXTS]).tolist()

    fitted = LatePromptClassifier(model=bases["headless"], prompt_layer=2, bottleneck_dim=4, steps=3, batch_size=4)
    fitted.fit([row["text"] for row in rows], [row["label"] for row in rows]).save(target / "estimator")
    expected["estimator"] = fitted.predict_proba(TEXTS).tolist()

    ids = torch.tensor([[0, 9, 11, 5, 2], [0, 7, 6, 2, 1]])
    for name, config in {
        "peft-late": LatePromptConfig(prompt_layer=1, num_prompt_tokens=2, generator="atpg", bottleneck_dim=4),
        "peft-adapter": AdapterConfig(bottleneck_dim=4),
    }.items():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForMaskedLM.from_pretrained(bases["masked"]), config).eval()
        with torch.no_grad():
            for _, parameter in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad):
                parameter.add_(torch.from_numpy(np.random.default_rng(5).normal(0, 0.1, parameter.shape)).float())
            model.save_pretrained(target / name)
            expected[name] = model(input_ids=ids).logits[:, 1, :8].tolist()
    (target / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    for file in (data, targets, *(target / "bases").glob("*/model.safetensors")):
        file.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
