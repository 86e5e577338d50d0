"""Random numbers of one's own: the user's generators stay as they are, and nobody's draws disturb a run."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import joblib
import numpy as np
import pytest
import torch
import yaml
from conftest import make_rows
from sklearn.model_selection import GridSearchCV
from torch import nn
from torch.nn import functional as F

from lateprompt import LatePromptClassifier
from lateprompt.backbone.kernels.cpu_mode import CpuKernels
from lateprompt.data import Row, default_task
from lateprompt.experiments.bench import BenchSettings, run_bench
from lateprompt.experiments.compare import load_plan
from lateprompt.experiments.compare.worker import run_one
from lateprompt.experiments.end_to_end import JobSettings, run_job
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.loading import load_base
from lateprompt.training.loop import fit, trainable_parameters
from lateprompt.training.settings import ModelSettings, RecipeSettings
from lateprompt.utils.randomness import OwnNumbers, RunNumbers, seeded

ROWS = make_rows(32)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]
METHODS = ["npg", "fixed", "late-lora", "p-tuning-v2", "adapter", "s-idpg", "full"]


def small(model, **settings):
    return LatePromptClassifier(
        **{
            "model": model,
            "prompt_layer": 2,
            "bottleneck_dim": 8,
            "max_steps": 3,
            "batch_size": 8,
            "lr": 1e-2,
            **settings,
        }
    )


@contextmanager
def step(numbers, quick):
    """A step's turn as a training run takes it, with the dropout of its forward passes."""
    with numbers.step(shared=not quick), CpuKernels() if quick else nullcontext():
        yield


@pytest.fixture
def unchanged():
    """The generators that the whole process shares are where they were."""
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]


class Noise:
    """Another thread that draws, and sets seeds, all the time."""

    def __enter__(self):
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.draw)
        self.thread.start()

    def draw(self):
        turn = 0
        while not self.ended.wait(0.0002):
            turn += 1
            torch.manual_seed(turn)
            torch.rand(turn % 7 + 1)
            np.random.rand(3)
            random.random()

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


def numbers_of(estimator):
    return estimator.predict_proba(TEXTS)


# -- drawing with a generator of one's own ---------------------------------------------------------------------------

DRAWS = {
    "linear": lambda: nn.Linear(5, 3).weight,
    "embedding": lambda: nn.Embedding(4, 3).weight,
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(9)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5, dtype=torch.float64),
    "randint": lambda: torch.randint(9, (5,)),
    "randint from": lambda: torch.randint(3, 9, (5,)),
    "randperm": lambda: torch.randperm(9),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "normal": lambda: torch.normal(torch.zeros(5), 1.0),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 4),
    "dropout": lambda: F.dropout(torch.ones(20)),
    "exponential": lambda: torch.empty(5).exponential_(),
    "rnn": lambda: nn.LSTM(3, 3, 2).weight_hh_l0,
}
LIKE = {
    "rand_like": lambda: torch.rand_like(torch.ones(9)),
    "randn_like": lambda: torch.randn_like(torch.ones(9)),
    "randint_like": lambda: torch.randint_like(torch.ones(9), 2, 9),
    "native_dropout": lambda: torch.native_dropout(torch.ones(20), 0.5, True)[0],
    "dropout2d": lambda: F.dropout2d(torch.ones(1, 9, 2, 2)),
    "alpha_dropout": lambda: F.alpha_dropout(torch.ones(9), 0.5, True),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_those_of_the_seed(name, unchanged):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = DRAWS[name]()
    with seeded(7):
        assert torch.equal(DRAWS[name](), expected)


@pytest.mark.parametrize("name", LIKE)
def test_what_takes_no_generator_gets_one(name, unchanged):
    drawn = []
    for seed in (7, 7, 8):
        with seeded(seed):
            drawn.append(torch.cat([LIKE[name]().flatten(), LIKE[name]().flatten()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    half = len(drawn[0]) // 2
    assert not torch.equal(drawn[0][:half], drawn[0][half:])


def test_nothing_is_drawn_on_the_meta_device(unchanged):
    with seeded(7):
        nn.Linear(3, 3, device="meta")
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)


def test_dropped_gradients_flow_through_native_dropout():
    values = torch.ones(50, requires_grad=True)
    with OwnNumbers(torch.Generator().manual_seed(1)):
        out = torch.native_dropout(values, 0.2, True)[0]
    out.sum().backward()
    assert torch.equal(values.grad, out.detach())
    assert set(out.tolist()) == {0.0, 1.25}


STEPS = {
    **DRAWS,
    **LIKE,
    "in place": lambda: F.dropout(torch.ones(20), 0.5, inplace=True),
    "grouped": lambda: F.scaled_dot_product_attention(
        torch.ones(1, 4, 3, 8), torch.ones(1, 2, 3, 8), torch.arange(48.0).view(1, 2, 3, 8), None, 0.5, enable_gqa=True
    ),
    "trained mask": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1, 2, 3, 8)] * 2, torch.arange(48.0).view(1, 2, 3, 8), torch.zeros(3, 3, requires_grad=True), 0.5
    ),
    "causal": lambda: F.scaled_dot_product_attention(
        *[torch.ones(1, 2, 3, 8)] * 2, torch.arange(48.0).view(1, 2, 3, 8), None, 0.5, True
    ),
    "attention": lambda: F.multi_head_attention_forward(
        *[torch.arange(12.0).view(3, 1, 4)] * 3,
        4,
        2,
        torch.ones(12, 4),
        None,
        None,
        None,
        False,
        0.5,
        torch.eye(4),
        None,
    )[0],
}


@pytest.mark.parametrize("name", STEPS)
def test_within_a_step_all_draws_are_the_runs(name, unchanged):
    drawn = []
    for seed in (7, 7, 8):
        with step(RunNumbers(seed, torch.device("cpu")), quick=True):
            drawn.append(torch.cat([STEPS[name]().detach().flatten() for _ in range(4)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_grouped_attention_is_torchs():
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with CpuKernels():
        found = torch.stack(
            [F.scaled_dot_product_attention(query, key, value, None, 0.1, enable_gqa=True) for _ in range(600)]
        )
    torch.testing.assert_close(found.mean(0), expected, atol=0.15, rtol=0.1)


def test_steps_with_shared_generators_go_on_where_the_last_ended(unchanged):
    numbers = RunNumbers(3, torch.device("cpu"))
    parts = []
    for _ in range(2):
        with numbers.step(shared=True):
            parts.append(torch.rand(4))
        torch.rand(0)
    with RunNumbers(3, torch.device("cpu")).step(shared=True):
        assert torch.equal(torch.rand(8), torch.cat(parts))


def test_a_step_that_fails_gives_the_shared_generators_back(unchanged):
    def fail():
        with RunNumbers(3, torch.device("cpu")).step(shared=True):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


@pytest.mark.parametrize("quick", [True, False])
def test_numbers_go_on_from_a_saved_state(quick):
    numbers, other = RunNumbers(3, torch.device("cpu")), RunNumbers(4, torch.device("cpu"))
    with step(numbers, quick):
        torch.rand(5)
    other.restore(numbers.state())
    drawn = []
    for run in (numbers, other):
        with step(run, quick):
            drawn.append(torch.rand(5))
    assert torch.equal(*drawn)


def test_processes_that_train_together_drop_out_differently():
    drawn = []
    for rank in (0, 1):
        with step(RunNumbers(3, torch.device("cpu"), rank), quick=True):
            drawn.append(torch.rand(5))
    assert not torch.equal(*drawn)


# -- whatever the package does, the user's generators stay as they are -----------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_fit_and_predict_change_no_generator(method, headless, unchanged):
    estimator = small(headless, method=method, random_state=3).fit(TEXTS, LABELS)
    estimator.predict_proba(TEXTS)


@pytest.mark.parametrize("random_state", [None, 5])
def test_a_fit_without_kept_states_changes_no_generator(random_state, masked_lm, unchanged):
    small(masked_lm, task="sst2", states="off", random_state=random_state).fit(TEXTS, LABELS)


def test_load_save_and_copies_change_no_generator(headless, tmp_path, unchanged):
    estimator = small(headless).fit(TEXTS, LABELS)
    estimator.save(tmp_path / "run")
    LatePromptClassifier.load(tmp_path / "run").predict(TEXTS)
    load_base(headless, "head")


def test_comparisons_and_benchmarks_change_no_generator(masked_lm, headless, data, tmp_path, unchanged):
    files = {"task": "sst2", "train": data["train"], "test": data["test"]}
    plan = {"model": {"model": headless}, "tasks": [files], "methods": ["npg"], "seeds": [1], "shots": [16]}
    plan |= {"recipe": {"max_steps": 2, "batch_size": 8}, "settings": {"prompt_layer": 2}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    run_one(load_plan(tmp_path / "plan.yaml", {}).runs()[0], tmp_path)
    run_job(
        JobSettings(model=masked_lm, train=data["train"], task="sst2", max_steps=2, prompt_layer=2, eval_every=1),
        quiet=True,
    )
    methods = ["prompt-tuning-20", "npg-states", "lora"]
    run_bench(BenchSettings(model=masked_lm, batch=2, length=8, repeats=1, memory=False, methods=methods))


def test_a_diverged_fit_changes_no_generator(headless, unchanged):
    with pytest.raises(ValueError, match="diverged"):
        small(headless, lr=1e30, max_grad_norm=0.0, max_steps=8).fit(TEXTS, LABELS)


# -- same seed, same result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["npg", "late-lora", "lora"])
def test_other_threads_draws_change_nothing(method, headless):
    alone = numbers_of(small(headless, method=method, states="off").fit(TEXTS, LABELS))
    with Noise():
        crowded = numbers_of(small(headless, method=method, states="off").fit(TEXTS, LABELS))
    np.testing.assert_array_equal(alone, crowded)


@pytest.mark.parametrize("states", ["on", "off"])
def test_fits_in_threads_are_those_one_after_the_other(states, headless, tmp_path):
    settings = [{"random_state": seed, "method": method} for seed in (1, 2) for method in ("npg", "late-lora")]
    place = str(tmp_path / "states") if states == "on" else "off"

    def run(changes):
        return numbers_of(small(headless, states=place, **changes).fit(TEXTS, LABELS))

    expected = [run(changes) for changes in settings]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, settings))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(expected[0], expected[2])


def test_a_grid_search_in_threads_is_the_sequential_one(headless):
    grid = {"method": ["npg", "fixed"], "lr": [1e-3, 1e-2]}
    scores = []
    for jobs in (1, 2, 2):
        with joblib.parallel_backend("threading", n_jobs=jobs):
            search = GridSearchCV(small(headless), grid, cv=2, n_jobs=jobs, scoring="neg_log_loss")
            search.fit(np.array(TEXTS), LABELS)
        scores.append([*search.cv_results_["split0_test_score"], *search.cv_results_["split1_test_score"]])
    assert scores[0] == scores[1] == scores[2]
    assert np.isfinite(scores[0]).all()


def test_loading_in_another_dtype_meanwhile_changes_nothing(headless):
    """transformers sets torch's default dtype, for all threads, while it loads."""
    alone = numbers_of(small(headless).fit(TEXTS, LABELS))
    ended = threading.Event()

    def load():
        while not ended.is_set():
            load_base(headless, "head", dtype="bfloat16")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        crowded = numbers_of(small(headless).fit(TEXTS, LABELS))
    finally:
        ended.set()
        thread.join()
    np.testing.assert_array_equal(alone, crowded)


def test_gradient_checkpointing_and_rivals_draw_from_the_seed_too(headless, unchanged):
    task = default_task(["negative", "positive"], pair=False)
    rows = [Row(text, None, label, {}) for text, label in zip(TEXTS, LABELS, strict=True)]
    recipe = RecipeSettings(max_steps=3, batch_size=8)
    found = []
    for _ in range(2):
        tuned = TextClassifier.build(ModelSettings(headless, prompt_layer=2), task, seed=1)
        tuned.model.get_base_model().gradient_checkpointing_enable()
        tuned.readout.layer.train()
        fit(tuned.model, tuned.readout, tuned.batches(rows), None, recipe, metrics=["accuracy"], device=tuned.device)
        found.append({name: p.detach().clone() for name, p in trainable_parameters(tuned.model).items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
