"""Generation under a late prompt, against the same model without one.

    python benchmarks/generation.py MODEL [--batch 8] [--source 32] [--tokens 64] [--prompt-layer 20] [--repeats 5]

Greedy, with the KV cache, from random token ids; both take turns, and the median of their times is shown.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from lateprompt import LatePromptConfig
from lateprompt.peft_method.wrapping import wrap


@torch.no_grad()
def main() -> None:
    """Print tokens per second of both, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--source", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt-layer", default="0.67")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ids = torch.randint(100, int(plain.config.vocab_size) - 1, (args.batch, args.source))
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    late = wrap(base, LatePromptConfig(task_type="CAUSAL_LM", prompt_layer=args.prompt_layer)).eval()
    settings = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False, "pad_token_id": 0}
    times: dict[str, list[float]] = {"plain": [], "late prompt": []}
    for turn in range(args.repeats + 1):
        for name, model in (("plain", plain), ("late prompt", late)):
            started = time.perf_counter()
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
            if turn:
                times[name].append(time.perf_counter() - started)
    rates = {name: args.batch * args.tokens / statistics.median(found) for name, found in times.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} tokens/s")
    print(
        f"late prompt against plain: {rates['late prompt'] / rates['plain']:.2f} x ({torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main()
