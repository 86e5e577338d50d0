"""The generators: sizes of the paper, pooling as torch's own, and nothing but the readable positions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lateprompt.prompts import (
    GENERATORS,
    FixedPrompt,
    GeneratorSpec,
    PoolingGenerator,
    PromptGenerator,
    build_generator,
    check_generator,
    pooling_slots,
    read_state,
)

READING = ("npg", "mppg", "appg", "atpg", "rpg")
SPEC = GeneratorSpec(hidden_size=16, num_prompt_tokens=3, bottleneck_dim=8)


def states(batch=4, length=9, width=16, seed=0):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def spec(**changes):
    return GeneratorSpec(**{"hidden_size": 16, "num_prompt_tokens": 3, "bottleneck_dim": 8, **changes})


def trained(name, **changes):
    """A generator no parameter of which is at a start that hides it: rpg's W_up begins at zero."""
    generator = build_generator(name, spec(**changes))
    torch.manual_seed(11)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return generator


def left_and_right_padded():
    """Masks (4, 9): full, padded right, padded left, padded on both sides with a hole."""
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 5:] = 0
    mask[2, :4] = 0
    mask[3] = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])
    return mask


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("npg", 5, 791_680),
        ("mppg", 5, 263_296),
        ("appg", 5, 263_296),
        ("fixed", 5, 5 * 1024),
        ("fixed", 20, 20_480),
        ("rpg", 20, 285_312),
    ],
)
def test_number_of_parameters_in_the_paper(name, k, expected):
    generator = build_generator(name, GeneratorSpec(hidden_size=1024, num_prompt_tokens=k, bottleneck_dim=128))
    assert sum(p.numel() for p in generator.parameters()) == expected
    assert all(p.requires_grad for p in generator.parameters())
    assert not list(generator.buffers())


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("k", [1, 3, 12])
def test_shape_of_the_prompt(name, k):
    generator = build_generator(name, spec(num_prompt_tokens=k))
    for length in (1, 2, 9):
        for mask in (None, torch.ones(4, length, dtype=torch.long)):
            assert generator(states(length=length), mask).shape == (4, k, 16)


def test_without_a_mask_all_positions_are_read():
    for name in GENERATORS:
        for last in (False, True):
            generator = trained(name, reads_last=last)
            ones = torch.ones(4, 9, dtype=torch.long)
            assert torch.equal(generator(states(), None), generator(states(), ones))


# -- pooling -----------------------------------------------------------------------------------------------------------

ADAPTIVE = {"mppg": F.adaptive_max_pool1d, "appg": F.adaptive_avg_pool1d}


def by_hand(generator, hidden, mask, pool, skip_last=False):
    """One row at a time with torch's adaptive pooling over the row's readable positions."""
    prompts = []
    for row, marked in zip(hidden, mask.bool(), strict=True):
        readable = row[marked]
        if skip_last and len(readable) > 1:
            readable = readable[:-1]
        low = generator.down(readable).t()[None]
        pooled = pool(low, generator.num_prompt_tokens)[0].t()
        prompts.append(generator.up(torch.relu(pooled)))
    return torch.stack(prompts)


@pytest.mark.parametrize("name", list(ADAPTIVE))
@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("skip_last", [False, True])
def test_pooling_is_torchs_adaptive_pooling(name, k, skip_last):
    torch.manual_seed(k)
    generator = build_generator(name, spec(num_prompt_tokens=k, pool_last_source=not skip_last))
    for seed in range(12):
        random = torch.Generator().manual_seed(seed)
        length = int(torch.randint(1, 40, (1,), generator=random))
        mask = torch.rand(6, length, generator=random) < 0.6
        counts = torch.randint(1, length + 1, (6,), generator=random)
        mask[0] = True
        mask[1] = torch.arange(length) < counts[1]  # right padding
        mask[2] = torch.arange(length) >= length - counts[2]  # left padding
        mask[3] = torch.arange(length) == counts[3] - 1  # one position
        mask[4, length // 2] = True
        mask[5, 0] = True
        hidden = states(6, length, seed=seed)
        expected = by_hand(generator, hidden, mask, ADAPTIVE[name], skip_last)
        for kind in (torch.bool, torch.long, torch.float):
            torch.testing.assert_close(generator(hidden, mask.to(kind)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 20])
def test_slots_cover_the_documented_positions(k):
    for n in range(1, 25):
        positions, inside = pooling_slots(torch.ones(1, n), k)
        for i in range(k):
            covered = positions[0, i][inside[0, i]].tolist()
            assert covered == list(range(i * n // k, -(-(i + 1) * n // k)))


def test_skip_last_leaves_out_the_last_marked_position():
    mask = left_and_right_padded()
    positions, inside = pooling_slots(mask, 1, skip_last=True)
    for row in range(4):
        marked = mask[row].nonzero()[:, 0].tolist()
        assert positions[row, 0][inside[row, 0]].tolist() == marked[:-1]


def test_a_row_with_nothing_to_read_reads_its_first_position():
    hidden, mask = states(), torch.ones(4, 9, dtype=torch.long)
    mask[2] = 0
    alone = torch.zeros(4, 9, dtype=torch.long)
    alone[:, 0] = 1
    for name in GENERATORS:
        for last in (False, True):
            for pool_last in (False, True):
                generator = build_generator(name, spec(reads_last=last, pool_last_source=pool_last))
                assert torch.equal(generator(hidden, mask)[2], generator(hidden, alone)[2])
                assert generator(hidden, mask).isfinite().all()


# -- what is read ------------------------------------------------------------------------------------------------------


def test_read_state_first_and_last():
    hidden, mask = states(), left_and_right_padded()
    first, last = [0, 0, 4, 1], [8, 4, 8, 7]
    for kind in (torch.long, torch.bool, torch.float):
        assert torch.equal(read_state(hidden, mask.to(kind), last=False), hidden[torch.arange(4), first])
        assert torch.equal(read_state(hidden, mask.to(kind), last=True), hidden[torch.arange(4), last])
    assert torch.equal(read_state(hidden, None, last=False), hidden[:, 0])
    assert torch.equal(read_state(hidden, None, last=True), hidden[:, -1])


@pytest.mark.parametrize("last", [False, True])
def test_npg_is_the_formula(last):
    generator = build_generator("npg", spec(reads_last=last))
    hidden, mask = states(), left_and_right_padded()
    state = hidden[torch.arange(4), [8, 4, 8, 7] if last else [0, 0, 4, 1]]
    down, up = generator.down, generator.up
    expected = torch.relu(state @ down.weight.t() + down.bias) @ up.weight.t() + up.bias
    torch.testing.assert_close(generator(hidden, mask), expected.view(4, 3, 16))


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("value", [1e4, float("nan"), float("inf")])
def test_padding_never_leaks(name, last, value):
    generator = trained(name, reads_last=last)
    hidden, mask = states(), left_and_right_padded()
    changed = hidden.clone()
    changed[~mask.bool()] = value
    assert torch.equal(generator(hidden, mask), generator(changed, mask))


@pytest.mark.parametrize("name", READING)
def test_what_may_be_read_is_read(name):
    generator = trained(name, num_prompt_tokens=9)
    hidden, mask = states(), left_and_right_padded()
    changed = hidden.clone()
    changed[mask.bool()] += torch.randn(changed[mask.bool()].shape)
    difference = (generator(hidden, mask) - generator(changed, mask)).abs().amax((1, 2))
    assert (difference > 1e-3).all()


@pytest.mark.parametrize("name", list(GENERATORS))
@pytest.mark.parametrize("last", [False, True])
def test_a_row_does_not_depend_on_the_others_or_on_the_padding(name, last):
    generator = trained(name, reads_last=last, num_prompt_tokens=5)
    hidden, mask = states(), left_and_right_padded()
    batched = generator(hidden, mask)
    for row in range(4):
        marked = mask[row].bool()
        alone = generator(hidden[row, marked][None], torch.ones(1, int(marked.sum()), dtype=torch.long))
        torch.testing.assert_close(alone[0], batched[row], atol=1e-6, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(generator(hidden[order], mask[order]), batched[order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", list(GENERATORS))
def test_gradients_reach_every_parameter_and_only_readable_states(name):
    generator = trained(name)
    hidden, mask = states().requires_grad_(), left_and_right_padded()
    (generator(hidden, mask) * states(4, 3, seed=3)).sum().backward()
    for parameter in generator.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    if name in READING:
        assert (hidden.grad[~mask.bool()] == 0).all()
        assert (hidden.grad[mask.bool()] != 0).any()
    else:
        assert hidden.grad is None


@pytest.mark.parametrize("name", list(GENERATORS))
def test_numerical_gradient(name):
    generator = trained(name, hidden_size=4, bottleneck_dim=3).double()
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    parameters = list(generator.parameters())
    hidden = states(2, 4, 4).double()
    assert torch.autograd.gradcheck(lambda *_: generator(hidden, mask), parameters)


@pytest.mark.parametrize("last", [False, True])
def test_rpg_is_the_formula(last):
    generator = trained("rpg", reads_last=last)
    hidden, mask = states(), left_and_right_padded()
    state = hidden[torch.arange(4), [8, 4, 8, 7] if last else [0, 0, 4, 1]]
    state = state / (state.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    down, up = generator.down, generator.up
    low = torch.relu(state @ down.weight.t() + down.bias)
    for i in range(3):
        expected = generator.prompt[i] + (generator.gate[i] * low) @ up.weight.t() / 8**0.5
        torch.testing.assert_close(generator(hidden, mask)[:, i], expected)


def test_a_fresh_rpg_is_a_fixed_prompt():
    generator = build_generator("rpg", SPEC)
    assert torch.equal(generator(states()), generator.prompt.expand(4, -1, -1))
    (generator(states()) * states(4, 3, seed=3)).sum().backward()
    assert generator.up.weight.grad.abs().sum() > 0  # and can leave that start


# -- fixed prompt, dropout, table --------------------------------------------------------------------------------------


def test_fixed_prompt_is_the_same_for_all():
    generator = build_generator("fixed", spec(init_std=0.5, num_prompt_tokens=200))
    assert torch.equal(generator(states())[0], generator.prompt)
    assert torch.equal(generator(states(seed=1))[3], generator.prompt)
    assert abs(generator.prompt.std().item() - 0.5) < 0.05


def test_init_from_vocabulary():
    generator = FixedPrompt(SPEC)
    embeddings = torch.randn(50, 16)
    generator.init_from_vocabulary(embeddings)
    for row in generator.prompt:
        assert (embeddings == row).all(1).any()
    assert generator.prompt.requires_grad
    assert generator.prompt.is_leaf
    generator.prompt.data.zero_()
    assert embeddings.abs().min(1).values.max() > 0  # a copy, not a view


@pytest.mark.parametrize("name", list(GENERATORS))
def test_dropout_only_while_training(name):
    generator = build_generator(name, spec(dropout=0.5, num_prompt_tokens=20))
    generator.eval()
    assert torch.equal(generator(states()), generator(states()))
    generator.train()
    prompt = generator(states())
    share = (prompt == 0).float().mean().item()
    assert 0.35 < share < 0.65
    assert not torch.equal(prompt, generator(states()))
    kept = prompt != 0
    torch.testing.assert_close(prompt[kept], 2 * generator.eval()(states())[kept])


def test_unknown_generator():
    for call in (lambda: check_generator("nqg"), lambda: build_generator("nqg", SPEC)):
        with pytest.raises(ValueError, match="'nqg'") as error:
            call()
        assert all(name in str(error.value) for name in GENERATORS)


def test_half_written_generators_say_what_is_missing():
    with pytest.raises(TypeError, match="prompt_of"):
        PromptGenerator(SPEC)(states())
    with pytest.raises(TypeError, match="pool"):
        PoolingGenerator(SPEC)(states())
