"""Parity with the authors' published implementation: logits, loss and every gradient within 1e-5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

from lateprompt.interop import authors_checkpoint as reference

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("*.safetensors"))


def read(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def base_model(name):
    if name.startswith("roberta"):
        config = RobertaConfig(
            vocab_size=120,
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=40,
            type_vocab_size=1,
            pad_token_id=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return RobertaForMaskedLM(config)
    config = GPT2Config(
        vocab_size=120, n_embd=32, n_layer=4, n_head=4, n_positions=40, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    return GPT2LMHeadModel(config)


def load(path):
    tensors, metadata = read(path)
    weights = {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
    model = reference.load(
        base_model(path.name),
        weights,
        generator=metadata["generator"],
        prompt_layer=int(metadata["prompt_layer"]),
        num_prompt_tokens=int(metadata["num_prompt_tokens"]),
        bottleneck_dim=8,
    )
    return model.eval(), tensors


def logits_and_loss(path, model, tensors):
    batch = {k: tensors[k] for k in ("input_ids", "attention_mask")}
    if path.name.startswith("roberta"):
        rows = torch.arange(len(tensors["labels"]))
        logits = model(**batch).logits[rows, tensors["mask_position"]]
        return logits, tensors["logits"], F.cross_entropy(logits, tensors["labels"])
    length = batch["input_ids"].shape[1]
    source = (torch.arange(length)[None] <= tensors["last_source_position"][:, None]).long()
    logits = model(**batch, source_mask=source).logits
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    mask = tensors["loss_mask"][:, 1:].float()
    loss = ((nll * mask).sum(1) / mask.sum(1)).mean()
    return logits, tensors["logits"][:, -length:], loss


def test_all_golden_files_are_here():
    assert len(FILES) == 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_logits_loss_and_gradients(path):
    model, tensors = load(path)
    logits, expected, loss = logits_and_loss(path, model, tensors)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, tensors["loss"][0], atol=1e-5, rtol=0)
    loss.backward()
    own = {"proj_down": "down", "proj_up": "up"}
    gradients = {k.removeprefix("grad/"): v for k, v in tensors.items() if k.startswith("grad/")}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(gradients) == len(parameters)
    for name, expected_gradient in gradients.items():
        if name == "prompt_embedding.weight":
            suffix = "prompt"
        else:
            part, kind = name.split(".")[-2:]
            suffix = f"{own[part]}.{kind}"
        (parameter,) = [p for n, p in parameters.items() if n.endswith(suffix)]
        torch.testing.assert_close(parameter.grad, expected_gradient, atol=1e-5, rtol=0)
