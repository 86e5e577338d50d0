"""Memory and speed of `lateprompt predict` over many short rows, on a tiny random model made here.

.venv/bin/python benchmarks/predict_stream.py [ROWS] [--suffix .jsonl] [--model FOLDER --prompt-layer P]

Rows have 10 words (tokens). The command runs in a process of its own, whose resident memory is looked at twice a
second, together with the number of rows that are in the output: after row 10,000 it may grow by a fifth at most.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lateprompt.data.task import default_task
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.training.settings import ModelSettings

WORDS = ["the", "a", "film", "long", "walk", "it", "was", "by", "river", "great", "good", "bad", "dull", "warm", "wise"]
WARM = 10_000
"""Rows after which memory should not grow any more."""


def main() -> int:
    """Make model and rows, predict, and print a table; the exit code is 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--suffix", default=".jsonl")
    parser.add_argument("--model")
    parser.add_argument("--prompt-layer", default="1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lateprompt-predict-") as name:
        folder = Path(name)
        model = args.model or tiny_model(folder / "model")
        settings = ModelSettings(model, prompt_layer=args.prompt_layer, readout="head", max_length=32)
        run = folder / "run"
        run.mkdir()
        TextClassifier.build(settings, default_task(["no", "yes"], pair=False), seed=0).save(run)
        data = make_rows(folder / "rows.jsonl", args.rows)
        return measure(run, data, folder / f"out{args.suffix}", args.rows)


def tiny_model(folder: Path) -> str:
    """A BERT of two layers of width 32, with a tokenizer that knows the words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator([" ".join(WORDS)] * 9, trainers.WordPieceTrainer(special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(fast), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return str(folder)


def make_rows(path: Path, number: int) -> Path:
    """Rows of ten words, the same at each call."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            file.write(json.dumps({"id": i, "text": " ".join(chance.choices(WORDS, k=10))}) + "\n")
    return path


def measure(run: Path, data: Path, output: Path, number: int) -> int:
    """Run the command and follow it."""
    command = [sys.executable, "-m", "lateprompt", "predict", str(run), "--data", str(data), "--output", str(output)]
    seen: list[tuple[int, int, float]] = []
    rows = at = 0
    started = time.perf_counter()
    process = subprocess.Popen(command)
    while process.poll() is None:
        time.sleep(0.5)
        resident = _resident(process.pid)
        if output.suffix == ".jsonl" and output.exists():
            with output.open("rb") as file:
                file.seek(at)
                part = file.read()
            rows, at = rows + part.count(b"\n"), at + len(part)
        if resident:
            seen.append((rows, resident, time.perf_counter() - started))
    if process.returncode:
        return process.returncode
    if output.suffix != ".jsonl":  # how far it is cannot be seen in the file: by time
        seen = [(round(number * t / seen[-1][2]), memory, t) for _, memory, t in seen]
    warm = next(((r, memory, t) for r, memory, t in seen if r >= WARM), seen[0])
    most = max(memory for r, memory, _ in seen if r >= warm[0])
    for share in (0, 0.1, 0.25, 0.5, 0.75, 0.999):
        found = next(((r, memory, t) for r, memory, t in seen if r >= max(WARM, share * number)), seen[-1])
        print(f"{found[0]:>9,} rows  {found[1] / 1e6:6.0f} MB  {found[2]:6.0f} s")
    speed = (seen[-1][0] - warm[0]) / max(seen[-1][2] - warm[2], 1e-9)
    print(f"most after row {warm[0]:,}: {most / 1e6:.0f} MB, {most / warm[1]:.3f} x; {speed:,.0f} rows/s")
    return int(most > 1.2 * warm[1])


def _resident(process: int) -> int:
    """Bytes of memory of a process; 0 when it has gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
