"""Readouts of read-only prompts: packed label words and written texts against whole passes, from kept states too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from tiny_models import DECODERS, LAYERS, tiny_batch, tiny_model

from lateprompt import LatePromptConfig
from lateprompt.backbone.packed import can_pack, packed_trunk
from lateprompt.data.batch import IGNORED
from lateprompt.readouts import Batch, MultiTokenReadout, TextReadout

PHRASES = [[7, 9], [7, 30, 41], [55], [11, 9, 9, 20, 31, 8, 5]]  # the last one is longer than a window
PACKS = [name for name in DECODERS if name not in ("gpt_neo", "opt")]
LORA = {"tuner": {"peft_type": "LORA", "target_modules": "all-linear", "r": 2, "init_lora_weights": False}}


def read_only(name, **changes):
    settings = {"prompt_layer": 2, "num_prompt_tokens": 3, "bottleneck_dim": 8, "prompt_dropout": 0.0}
    config = LatePromptConfig(read_only=True, **{**settings, "zero_init": False, **changes})
    return get_peft_model(tiny_model(name, "AutoModelForCausalLM"), config).eval()


def sources():
    raw = tiny_batch("", "right")
    read = raw["attention_mask"].sum(1) - 1
    return Batch(raw["input_ids"], raw["attention_mask"], read, torch.tensor([0, 2, 1]))


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def assert_same_gradients(model, one, other):
    found = [torch.autograd.grad(loss, trained(model), retain_graph=True) for loss in (one, other)]
    gradients = list(zip(*found, strict=True))
    assert any(a.abs().max() > 1e-6 for a, _ in gradients)
    for a, b in gradients:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def kept(layer, batch, p):
    """The batch with the states of its texts at every layer from p on."""
    frozen = layer.frozen.above(0)(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    return replace(batch, layer_states={i: frozen.hidden_states[i] for i in range(p, LAYERS)})


def with_keys(layer, batch):
    """The batch with the texts' keys and values in the place of all states but the lowest layer's."""
    states = batch.layer_states
    return replace(batch, layer_states={2: states[2]}, text_keys=layer.frozen.text_keys(states))


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
@pytest.mark.parametrize("name", DECODERS)
def test_words_of_several_tokens_score_as_in_one_pass_a_label(name, loss):
    model = read_only(name)
    readout, batch = MultiTokenReadout(model.get_base_model(), model.base_model.layer, PHRASES, loss), sources()
    assert can_pack(model.base_model.layer) == (name in PACKS)
    scores = readout.scores(batch)
    tokens = readout.tokens.expand(3, -1, -1)
    expected = readout._one_by_one(batch, tokens, readout.filled, readout.counted)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    if loss == "labels":
        wanted = torch.nn.functional.cross_entropy(expected, batch.labels)
    else:
        wanted = -expected[torch.arange(3), batch.labels].mean()
    torch.testing.assert_close(readout.loss(batch), wanted, atol=1e-5, rtol=1e-5)
    assert_same_gradients(model, readout.loss(batch), wanted)


@pytest.mark.parametrize("config", [{}, LORA, {"num_prompt_tokens": 1}], ids=str)
@pytest.mark.parametrize("name", PACKS)
def test_packed_words_from_kept_states(name, config):
    model = read_only(name, **config)
    layer = model.base_model.layer
    readout, batch = MultiTokenReadout(model.get_base_model(), layer, PHRASES, "vocabulary"), sources()
    expected = readout.scores(batch)
    tokens = readout.tokens.expand(3, -1, -1)[..., :-1]
    with torch.no_grad():
        states = packed_trunk(layer, 2, batch.input_ids, batch.attention_mask, batch.read, tokens)
    length = batch.input_ids.shape[1]
    words = states[:, length:].unflatten(1, tokens.shape[1:])
    for own in (
        replace(kept(layer, batch, 2), packed_states=words),
        replace(batch, layer_states={2: states[:, :length]}, packed_states=words),
        replace(batch, trunk_states=states[:, :length], packed_states=words),
        with_keys(layer, replace(kept(layer, batch, 2), packed_states=words)),
    ):
        torch.testing.assert_close(readout.scores(own), expected, atol=1e-5, rtol=1e-5)
        assert_same_gradients(model, readout.loss(own), readout.loss(batch))
    other = {i: (keys + 1, values + 1) for i, (keys, values) in own.text_keys.items()}
    assert (readout.scores(replace(own, text_keys=other)) - expected).abs().max() > 1e-3  # they are what is read
    with pytest.raises(ValueError, match="without those of the label words"):
        readout.scores(kept(layer, batch, 2))


def test_a_fresh_vector_scores_words_as_the_frozen_model_does():
    model = read_only("llama", num_prompt_tokens=1, zero_init=True)
    readout, batch = MultiTokenReadout(model.get_base_model(), model.base_model.layer, PHRASES, "labels"), sources()
    with torch.no_grad():
        scores = readout.scores(batch)
        with model.disable_adapter():
            torch.testing.assert_close(scores, readout.scores(batch), atol=1e-5, rtol=1e-5)


# -- written texts -----------------------------------------------------------------------------------------------------


def written():
    """Sources of four tokens and more with targets behind them, right padded."""
    raw = tiny_batch("", "right")
    ids, mask = raw["input_ids"], raw["attention_mask"]
    ends = torch.tensor([5, 4, 3])
    width = int((mask.sum(1) - ends).max())
    read = torch.minimum(ends[:, None] + torch.arange(width), mask.sum(1, keepdim=True) - 1)
    targets = torch.full((3, width), IGNORED)
    for row in range(3):
        n = int(mask[row].sum() - ends[row])
        targets[row, :n] = torch.cat([ids[row, ends[row] + 1 : ends[row] + n], torch.tensor([17])])
    return Batch(ids, mask, read, targets=targets)


@pytest.mark.parametrize("config", [{}, LORA], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_a_written_text_scores_as_in_a_whole_pass(name, config):
    model = read_only(name, **config)
    layer = model.base_model.layer
    readout, batch = TextReadout(model.get_base_model(), layer), written()
    source = (torch.arange(batch.input_ids.shape[1]) <= batch.read[:, :1]).long()
    whole = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, source_mask=source, use_cache=False
    ).logits
    at = whole.gather(1, batch.read[..., None].expand(-1, -1, whole.shape[-1]))
    losses = torch.nn.functional.cross_entropy(at.flatten(0, 1), batch.targets.flatten(), reduction="none")
    expected = -losses.view_as(batch.targets).sum(1)
    torch.testing.assert_close(readout.scores(batch)[:, 0], expected, atol=1e-4, rtol=1e-5)
    counted = (batch.targets != IGNORED).sum(1)
    wanted = -(expected / counted).mean()
    assert_same_gradients(model, readout.loss(batch), wanted)
    read = layer(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        source_mask=source,
        use_cache=False,
        read=batch.read,
    ).last_hidden_state
    real = batch.targets != IGNORED
    torch.testing.assert_close(readout._hidden(batch, source)[real], read[real], atol=1e-5, rtol=1e-5)
    own = kept(layer, batch, 2)
    torch.testing.assert_close(readout.scores(own), readout.scores(batch), atol=1e-4, rtol=1e-5)
    assert_same_gradients(model, readout.loss(own), wanted)
    own = with_keys(layer, own)
    torch.testing.assert_close(readout.scores(own), readout.scores(batch), atol=1e-4, rtol=1e-5)
    assert_same_gradients(model, readout.loss(own), wanted)


@torch.no_grad()
def test_what_is_written_sees_the_prompt_and_the_source_does_not():
    model = read_only("llama")
    readout, batch = TextReadout(model.get_base_model(), model.base_model.layer), written()
    first = readout.scores(batch)
    for parameter in trained(model):
        parameter.add_(0.5)
    assert (readout.scores(batch)[:, 0] - first[:, 0]).abs().min() > 1e-3
    source = (torch.arange(batch.input_ids.shape[1]) <= batch.read[:, :1]).long()
    arguments = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    got = model(**arguments, source_mask=source).logits
    with model.disable_adapter():
        frozen = model(**arguments).logits
    for row, end in enumerate(batch.read[:, 0].tolist()):
        assert torch.equal(got[row, :end], frozen[row, :end])
        assert (got[row, end] - frozen[row, end]).abs().max() > 1e-3
