"""What the analyses measure, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny_models import CONFIGS, DECODERS, LAYERS, WIDTH, tiny_batch, tiny_model

from lateprompt import LatePromptConfig
from lateprompt.analysis.influence import other_rows, output_change, permutation_influence, removal_influence
from lateprompt.analysis.information import frozen_states, prompted_states, usable_information
from lateprompt.analysis.instances import nearest_rows, principal_plane, variance_by_class
from lateprompt.analysis.prompts import own_scores, prompt_gradients, prompts_of, scores_with, scores_without
from lateprompt.data import Example
from lateprompt.data.batches import Batches
from lateprompt.readouts import HeadReadout
from lateprompt.utils.errors import LatePromptError

LABELS = (0, 1, 1)


def rows_of(name: str) -> Batches:
    batch = tiny_batch(name, "right")
    lengths = batch["attention_mask"].sum(1).tolist()
    pairs = zip(batch["input_ids"], lengths, LABELS, strict=True)
    return Batches([Example(ids[:length].numpy(), None, length - 1, label) for ids, length, label in pairs], 1)


def readout_of(name: str = "bert", *, pooling: str = "mean", **settings) -> HeadReadout:
    sizes = {"prompt_layer": 2, "num_prompt_tokens": 3, "bottleneck_dim": 8, "head_labels": 2, "zero_init": False}
    torch.manual_seed(3)
    config = LatePromptConfig(head_pooling=pooling, **{**sizes, **settings})
    model = get_peft_model(tiny_model(name), config).eval()
    layer = model.base_model.layer
    with torch.no_grad():
        layer.late_prompt_heads["default"].weight.normal_()
    return HeadReadout(model.get_base_model(), layer, "default", pooling)


KINDS = {
    "ordinary": {},
    "from the anchor": {"prompt_start": "anchor"},
    "read-only, from the mean": {"read_only": True, "prompt_start": "mean"},
    "read-only, from the anchor": {"read_only": True, "prompt_start": "anchor"},
}


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("settings", KINDS.values(), ids=list(KINDS))
def test_a_rows_own_prompt_changes_nothing_and_anothers_does(settings, pooling):
    readout, rows = readout_of(pooling=pooling, **settings), rows_of("bert")
    prompts, own = prompts_of(readout, rows), own_scores(readout, rows)
    assert prompts.shape == (3, 3, WIDTH)
    assert np.abs(scores_with(readout, rows, prompts) - own).max() < 1e-5
    moved, scores = permutation_influence(readout, rows, seed=1)
    assert moved.log_odds > 1e-3
    # Each row by itself, beside the row whose prompt it gets.
    others = other_rows(3, seed=1)
    for row, other in enumerate(others):
        alone = Batches([rows.examples[row]], 1)
        assert np.abs(scores_with(readout, alone, prompts[[other]]) - scores[row]).max() < 1e-5


@pytest.mark.parametrize("start", ["mean", "anchor"])
def test_a_prompt_holds_what_it_starts_from(start):
    readout = readout_of(pooling="last", read_only=True, prompt_start=start, num_prompt_tokens=1, zero_init=True)
    states = frozen_states(readout, rows_of("bert"))
    assert np.allclose(prompts_of(readout, rows_of("bert"))[:, 0], states[start][2], atol=1e-5)


def test_prompts_that_are_the_same_for_all_rows_can_be_permuted():
    readout = readout_of(generator="fixed")
    moved, _ = permutation_influence(readout, rows_of("bert"))
    assert moved.log_odds < 1e-6
    assert moved.flipped == 0.0


def test_removing_a_prompt_leaves_the_frozen_model_and_its_head():
    readout, rows = readout_of(), rows_of("bert")
    own = own_scores(readout, rows)
    plain = tiny_model("bert")
    batch = rows.batch(np.arange(3))
    with torch.no_grad():
        hidden = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        mask = batch.attention_mask[..., None].float()
        want = readout.head((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert np.abs(scores_without(readout, rows) - want).max() < 1e-5
    assert np.abs(own - want).max() > 1e-2
    assert np.array_equal(own_scores(readout, rows), own)  # the prompt is there again


def cut_off(readout: HeadReadout) -> None:
    """Let no position above the prompt layer receive anything from another one."""
    for layer in readout.layer.base_layer.encoder.layer[2:]:
        with torch.no_grad():
            for parameter in layer.attention.output.dense.parameters():
                parameter.zero_()


def test_a_prompt_that_nobody_attends_to_has_no_influence_and_no_gradient():
    readout, rows = readout_of(), rows_of("bert")
    assert prompt_gradients(readout, rows).norms.min() > 1e-4
    cut_off(readout)
    moved, _ = removal_influence(readout, rows)
    assert moved.log_odds < 1e-6
    assert prompt_gradients(readout, rows).norms.max() < 1e-7


def test_a_read_only_prompt_that_is_its_start_has_no_influence():
    moved, _ = removal_influence(readout_of(read_only=True, prompt_start="mean", num_prompt_tokens=1, zero_init=True),
                                 rows_of("bert"))  # fmt: skip
    assert moved.kl_bits < 1e-9


@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_gradient_is_that_of_each_rows_own_loss(batch_size):
    readout, rows = readout_of(generator="fixed"), rows_of("bert")
    found = prompt_gradients(readout, rows, batch_size=batch_size)
    parameter = next(readout.layer.late_prompt_generators["default"].parameters())
    for row in range(3):
        (gradient,) = torch.autograd.grad(readout.loss(rows.batch(np.array([row]))), parameter)
        assert found.norms[row] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert (found.state_norms > 0).all()


def test_without_a_prompt_there_is_nothing_to_measure():
    readout = readout_of(generator="none")
    with pytest.raises(LatePromptError, match="no late prompt"):
        prompts_of(readout, rows_of("bert"))


# -- states of all layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CONFIGS))
def test_states_of_all_layers_are_the_models_own(name):
    pooling = "last" if name in DECODERS else "mean"
    readout, rows = readout_of(name, pooling=pooling), rows_of(name)
    found = frozen_states(readout, rows, batch_size=2)
    batch = rows.batch(np.arange(3))
    with torch.no_grad():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        output = tiny_model(name)(**inputs, output_hidden_states=True)
    assert sorted(found["mean"]) == list(range(LAYERS + 1))
    mask = batch.attention_mask[..., None].float()
    for layer in (0, 2, LAYERS):
        want = output.hidden_states[layer] if layer < LAYERS else output.last_hidden_state
        assert np.allclose(found["mean"][layer], ((want * mask).sum(1) / mask.sum(1)).numpy(), atol=1e-4)
    anchor = batch.attention_mask.sum(1) - 1 if name in DECODERS else torch.zeros(3, dtype=torch.long)
    assert np.allclose(found["anchor"][LAYERS], output.last_hidden_state[torch.arange(3), anchor].numpy(), atol=1e-4)
    above = prompted_states(readout, rows)
    assert sorted(above["anchor"]) == list(range(3, LAYERS + 1))
    changed = np.abs(above["mean"][LAYERS] - found["mean"][LAYERS]).max()
    assert changed > 1e-4


def test_without_its_influence_a_prompt_leaves_the_frozen_states():
    readout, rows = readout_of(), rows_of("bert")
    cut_off(readout)
    above, frozen = prompted_states(readout, rows), frozen_states(readout, rows)
    for layer in above["mean"]:
        assert np.allclose(above["mean"][layer], frozen["mean"][layer], atol=1e-5)


# -- usable information ----------------------------------------------------------------------------------------------


def test_a_feature_that_is_the_label_holds_its_bit_and_noise_holds_none():
    random = np.random.default_rng(0)
    labels = np.arange(800) % 2
    told = np.column_stack([labels * 2.0 - 1, random.normal(size=800)])
    found = usable_information(told[:400], labels[:400], told[400:], labels[400:])
    assert found.label_entropy == pytest.approx(1.0)
    assert 0.95 < found.bits <= 1.0
    assert found.accuracy == 1.0
    noise = random.normal(size=(800, 8))
    found = usable_information(noise[:400], labels[:400], noise[400:], labels[400:])
    assert abs(found.bits) < max(0.02, 3 * found.standard_error)
    low, high = found.interval
    assert 0.0 <= low <= high <= found.label_entropy
    assert found.bits == pytest.approx(found.label_entropy - found.conditional_entropy)


def test_four_labels_of_which_a_feature_tells_half():
    labels = np.arange(1600) % 4
    half = (labels // 2)[:, None].astype(float)
    found = usable_information(half[:800], labels[:800], half[800:], labels[800:])
    assert found.bits == pytest.approx(1.0, abs=0.05)
    assert found.conditional_entropy == pytest.approx(1.0, abs=0.05)


def test_labels_without_training_rows_cost_finitely_many_bits():
    labels = np.array([0, 1] * 20)
    found = usable_information(labels[:, None] * 1.0, labels, np.ones((3, 1)), np.array([1, 2, 2]))
    assert np.isfinite(found.bits)
    assert found.accuracy == pytest.approx(1 / 3)


def test_features_need_a_label_each():
    with pytest.raises(LatePromptError, match="a label for each row"):
        usable_information(np.ones((3, 1)), np.array([0, 1]), np.ones((1, 1)), np.array([0]))


# -- instances and changes -------------------------------------------------------------------------------------------


def test_variance_of_classes_and_of_noise():
    random = np.random.default_rng(1)
    labels = np.arange(300) % 3
    noise = random.normal(size=(300, 4, 2))
    found = variance_by_class(noise, labels)
    assert found.between + found.within == pytest.approx(found.total)
    assert abs(found.adjusted_class_share) < 0.03
    assert found.neighbours == pytest.approx(found.neighbours_by_chance, abs=0.1)
    apart = variance_by_class(noise + 20.0 * labels[:, None, None], labels)
    assert apart.class_share > 0.99
    assert apart.neighbours > 0.95
    same = variance_by_class(np.full((6, 2), 0.1), labels[:6])
    assert (same.total, same.instance_share, same.class_share) == (0.0, 0.0, 0.0)


def test_nearest_rows_leave_out_the_row_itself():
    vectors = np.array([[1.0, 0], [0.9, 0.1], [-1, 0], [-1, 0.2]])
    nearest, similar = nearest_rows(vectors, vectors, 1, same=True)
    assert nearest[:, 0].tolist() == [1, 0, 3, 2]
    assert (similar <= 1).all()
    places, shares = principal_plane(vectors)
    assert places.shape == (4, 2)
    assert shares[0] > 0.95


@pytest.mark.parametrize("number", [2, 3, 10])
def test_no_row_gets_its_own_prompt(number):
    others = other_rows(number, seed=4)
    assert sorted(others) == list(range(number))
    assert (others != np.arange(number)).all()
    with pytest.raises(LatePromptError, match="two or more"):
        other_rows(1, seed=0)


def test_change_of_scores_of_other_rows_is_refused():
    with pytest.raises(LatePromptError, match="same rows"):
        output_change(np.zeros((2, 2)), np.zeros((3, 2)))
