"""Readouts against the whole model: same scores, at a fraction of the work."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from tiny_models import CONFIGS, DECODERS, ENCODERS, tiny_batch, tiny_model
from torch.nn import functional as F

from lateprompt import LatePromptConfig
from lateprompt.backbone.packed import can_pack
from lateprompt.readouts import Batch, HeadReadout, LMHead, MultiTokenReadout, WordReadout, pool_states, word_readout

WORDS = [7, 30, 55]
LORA = {"generator": "npg", "tuner": {"peft_type": "LORA", "target_modules": "all-linear", "r": 2}}
WITH_MLM = [name for name in ENCODERS if name != "gpt2"]


def tuned(name, auto, **config):
    model = get_peft_model(tiny_model(name, auto), LatePromptConfig(prompt_layer=2, bottleneck_dim=8, **config)).eval()
    return model, model.get_base_model(), model.base_model.layer


def right_padded(labels=(0, 2, 1)):
    raw = tiny_batch("", "right")
    read = raw["attention_mask"].sum(1) - 1
    return raw, Batch(raw["input_ids"], raw["attention_mask"], read, torch.tensor(labels))


@pytest.mark.parametrize("name", [*WITH_MLM, *DECODERS])
@torch.no_grad()
def test_word_scores_are_the_models_own_logits(name):
    causal = name in DECODERS
    model, base, layer = tuned(name, "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM")
    raw, batch = right_padded()
    logits = model(**raw).logits[torch.arange(3), batch.read]
    readout = WordReadout(base, layer, WORDS, "causal_lm" if causal else "masked_lm", "vocabulary")
    torch.testing.assert_close(readout.scores(batch), logits[:, WORDS], atol=1e-5, rtol=1e-5)
    expected = F.cross_entropy(logits, torch.tensor(WORDS)[batch.labels])
    torch.testing.assert_close(readout.loss(batch), expected, atol=1e-5, rtol=1e-5)
    over_labels = WordReadout(base, layer, WORDS, "masked_lm", "labels")
    expected = F.cross_entropy(logits[:, WORDS], batch.labels)
    torch.testing.assert_close(over_labels.loss(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "bert", "distilbert", "gpt2", "opt", "llama", "gemma2"])
@torch.no_grad()
def test_only_label_rows_of_the_lm_head_are_computed(name):
    _, base, layer = tuned(name, "AutoModelForCausalLM" if name in DECODERS else "AutoModelForMaskedLM")
    head = LMHead(base, layer, torch.tensor(WORDS))
    hidden = layer(**right_padded()[0]).last_hidden_state[:, :1]
    assert head.view(inputs_embeds=hidden).logits.shape == (3, 1, 3)
    assert base.get_output_embeddings().weight.shape[0] == CONFIGS[name]["vocab_size"]


def test_a_model_without_lm_head_is_refused():
    model = get_peft_model(tiny_model("bert"), LatePromptConfig(prompt_layer=2))
    with pytest.raises(ValueError, match=r"no LM head.*--readout head"):
        LMHead(model.get_base_model(), model.base_model.layer)


def test_words_that_begin_every_label():
    _, base, layer = tuned("gpt2", "AutoModelForCausalLM")
    with pytest.raises(ValueError, match=r"label words \[7\] are the beginning of every label's"):
        word_readout(base, layer, [[7, 9], [7], [7, 9, 4]], "causal_lm", "labels")
    scores = word_readout(base, layer, [[7, 9], [7], [8]], "causal_lm", "labels").scores(right_padded()[1])
    assert (scores < 0).all()


PHRASES = [[7, 9], [7, 30, 41], [55], [11, 9, 9, 20]]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "config", [{"generator": "mppg"}, {"generator": "fixed", "num_prompt_tokens": 7}, LORA], ids=str
)
def test_phrases_score_like_one_pass_per_label(name, config):
    model, base, layer = tuned(name, "AutoModelForCausalLM", **config)
    raw, batch = right_padded()
    readout = word_readout(base, layer, PHRASES, "causal_lm", "vocabulary")
    assert isinstance(readout, MultiTokenReadout)
    scores = readout.scores(batch)
    expected = torch.empty(3, len(PHRASES))
    for row in range(3):
        source = raw["input_ids"][row, : batch.read[row] + 1]
        for label, phrase in enumerate(PHRASES):
            ids = torch.cat([source, torch.tensor(phrase)])[None]
            seen = torch.ones_like(ids)
            seen[0, len(source) :] = 0
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), source_mask=seen).logits[0]
            log_p = logits[len(source) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(phrase)[:, None]).mean()
            expected[row, label] = log_p
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    loss = readout.loss(batch)
    wanted = -expected[torch.arange(3), batch.labels].mean()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
    trained = [p for p in model.parameters() if p.requires_grad]
    for own, other in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in ("gpt_neo", "opt")])
@torch.no_grad()
def test_all_labels_take_one_pass(name, monkeypatch):
    _, base, layer = tuned(name, "AutoModelForCausalLM")
    readout = MultiTokenReadout(base, layer, PHRASES, "vocabulary")
    monkeypatch.setattr(readout, "_one_by_one", None)
    assert can_pack(layer)
    assert readout.scores(right_padded()[1]).shape == (3, 4)


@torch.no_grad()
def test_phrases_without_a_late_prompt_take_a_pass_each():
    model, base, layer = tuned("gpt2", "AutoModelForCausalLM")
    readout = MultiTokenReadout(base, layer, PHRASES, "vocabulary")
    with model.disable_adapter():
        assert not can_pack(layer)
        assert readout.scores(right_padded()[1]).shape == (3, 4)


@torch.no_grad()
def test_tokens_that_all_labels_share_do_not_count():
    _, base, layer = tuned("gpt2", "AutoModelForCausalLM")
    readout = MultiTokenReadout(base, layer, [[5, 7], [5, 8]], "vocabulary")
    assert readout.counted.tolist() == [[0, 1], [0, 1]]


def test_one_token_phrases_take_the_one_pass_readout():
    _, base, layer = tuned("gpt2", "AutoModelForCausalLM")
    assert isinstance(word_readout(base, layer, [[7], [9]], "causal_lm", "labels"), WordReadout)
    with pytest.raises(ValueError, match="loss 'words' is unknown"):
        word_readout(base, layer, [[7], [9]], "causal_lm", "words")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_takes_a_head(name):
    _, base, layer = tuned(name, "AutoModel", head_labels=3)
    assert HeadReadout(base, layer, "default", "last").scores(right_padded()[1]).shape == (3, 3)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_head_reads_real_positions_only(pooling):
    _, base, layer = tuned("bert", "AutoModel", head_labels=3, head_pooling=pooling)
    raw, batch = right_padded()
    readout = HeadReadout(base, layer, "default", pooling)
    scores = readout.scores(batch)
    for row in range(3):
        n = int(raw["attention_mask"][row].sum())
        hidden = layer(input_ids=raw["input_ids"][row : row + 1, :n]).last_hidden_state[0]
        state = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[pooling]
        torch.testing.assert_close(scores[row], readout.head(state), atol=1e-5, rtol=1e-5)
    readout.loss(batch).backward()
    assert readout.head.weight.grad.abs().sum() > 0


def test_pooling_of_a_left_padded_row():
    hidden = torch.arange(6.0).view(1, 6, 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0]])
    assert [pool_states(hidden, mask, p).item() for p in ("cls", "mean", "last")] == [2.0, 3.0, 4.0]


@torch.no_grad()
def test_kept_states_give_the_same_scores():
    _, base, layer = tuned("roberta", "AutoModelForMaskedLM")
    _, batch = right_padded()
    readout = WordReadout(base, layer, WORDS, "masked_lm", "labels")
    states = layer.split_at(2).trunk(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    kept = Batch(batch.input_ids, batch.attention_mask, batch.read, batch.labels, trunk_states=states)
    torch.testing.assert_close(readout.scores(kept), readout.scores(batch), atol=1e-6, rtol=0)
