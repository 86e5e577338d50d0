"""The store of trunk states: shared, exact, repaired after a crash, and never stale or wrong."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny_models import DECODERS, tiny_model

from lateprompt import LatePromptConfig, split_backbone
from lateprompt.state_cache import TrunkStates, fill_stores, list_stores, prune, row_store, verify_store
from lateprompt.state_cache import store as store_module
from lateprompt.state_cache.keys import row_key


def sequences(number=20, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(5, 120) for _ in range(rng.randrange(1, 14))] for _ in range(number)]


def expected(model, layer, ids):
    trunk, _ = split_backbone(model, layer)
    with torch.no_grad():
        return trunk(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).last_hidden_state[0]


def assert_right(store, model, layer, ids, **tolerance):
    rows = store.find(ids)
    assert (rows >= 0).all()
    states = store.get(rows)
    for i, sequence in enumerate(ids):
        torch.testing.assert_close(
            states[i, : len(sequence)].float(),
            expected(model, layer, sequence),
            **(tolerance or {"atol": 2e-5, "rtol": 1e-4}),
        )
        assert not states[i, len(sequence) :].any()


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "deberta-v2", "modernbert", *DECODERS[:5]])
def test_states_are_the_trunks(name, tmp_path):
    model = tiny_model(name)
    store = TrunkStates.open(tmp_path, model, 2)
    ids = sequences()
    rows = store.fill(ids)
    assert len(rows) == 20
    assert_right(store, model, 2, ids)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 0.0), ("bfloat16", 0.02), ("float16", 2e-3), ("int8", 0.03)])
def test_types_on_disk(dtype, error, tmp_path):
    model = tiny_model("bert")
    store = TrunkStates.open(tmp_path, model, 2, dtype=dtype)
    ids = sequences()
    states = store.get(store.fill(ids))
    exact = TrunkStates.open(tmp_path, model, 2, dtype="float32")
    reference = exact.get(exact.fill(ids))
    assert (states.float() - reference).abs().max() <= error * reference.abs().max()
    assert store.nbytes < {"float32": 1.5, "bfloat16": 0.8, "float16": 0.8, "int8": 0.6}[dtype] * exact.nbytes
    with pytest.raises(ValueError, match="states dtype 'int4' is unknown"):
        TrunkStates.open(tmp_path, model, 2, dtype="int4")


def test_rows_are_shared_and_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    model = tiny_model("bert")
    ids = sequences()
    computed = []
    real = store_module.run_trunk
    monkeypatch.setattr(
        store_module, "run_trunk", lambda split, ids, *rest: computed.extend(ids) or real(split, ids, *rest)
    )
    first = TrunkStates.open(tmp_path, model, 2).fill(ids[:12])
    assert len(computed) == len({tuple(i) for i in ids[:12]})
    computed.clear()
    again = TrunkStates.open(tmp_path, tiny_model("bert"), "0.5")
    rows = again.fill([*ids[8:], ids[0], ids[0]])
    assert sorted(map(tuple, computed)) == sorted({tuple(i) for i in ids[12:]} - {tuple(i) for i in ids[:12]})
    assert rows[-1] == rows[-2] == first[0]
    assert_right(again, model, 2, ids)


def test_no_padding_is_stored(tmp_path):
    store = TrunkStates.open(tmp_path, tiny_model("bert"), 2)
    ids = sequences()
    store.fill(ids)
    data = sum(path.stat().st_size for path in store.folder.glob("*.bin"))
    assert data == 4 * 32 * sum(len(i) for i in {tuple(i) for i in ids})


def test_token_types_are_part_of_the_address(tmp_path):
    model = tiny_model("bert")
    store = TrunkStates.open(tmp_path, model, 2)
    plain, typed = store.fill([[5, 6, 7]]), store.fill([[5, 6, 7]], [[0, 0, 1]])
    assert plain[0] != typed[0]
    assert (store.get(plain) - store.get(typed)).abs().max() > 1e-3
    assert row_key([5, 6, 7]) == row_key(np.array([5, 6, 7]), np.zeros(3))


def change_weight(model):
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 3] += 1e-3


def change_embedding(model):
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[9, 0] += 1e-3


@pytest.mark.parametrize("change", [change_weight, change_embedding, lambda m: m.to(torch.bfloat16)])
def test_a_changed_trunk_misses(change, tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    change(model)
    assert (TrunkStates.open(tmp_path, model, 2).find(ids) == -1).all()


def test_another_prompt_layer_tokenizer_or_template_misses(tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    assert (TrunkStates.open(tmp_path, model, 1).find(ids) == -1).all()
    assert (store.find([[*i, 4] for i in ids]) == -1).all()


def test_several_prompt_layers_in_one_pass(tmp_path, monkeypatch):
    model = tiny_model("gpt2")
    stores = [TrunkStates.open(tmp_path, model, layer) for layer in (1, 2, 3)]
    ids = sequences()
    passes = []
    real = store_module.run_trunk
    monkeypatch.setattr(store_module, "run_trunk", lambda *args: passes.append(1) or real(*args))
    fill_stores(stores, ids)
    assert len(passes) == 1
    for layer, store in zip((1, 2, 3), stores, strict=True):
        assert_right(store, model, layer, ids)


def test_the_store_of_a_peft_model(tmp_path):
    model = get_peft_model(tiny_model("roberta", "AutoModelForMaskedLM"), LatePromptConfig(prompt_layer=2)).eval()
    ids = sequences(3)
    store = TrunkStates.open(tmp_path, model, 2)
    states = store.get(store.fill(ids))
    i = 1
    batch = {"input_ids": torch.tensor([ids[i]]), "attention_mask": torch.ones(1, len(ids[i]), dtype=torch.long)}
    kept = model(**batch, trunk_states=states[i : i + 1, : len(ids[i])]).logits
    torch.testing.assert_close(kept, model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_filling_leaves_training_mode_as_it_was(tmp_path):
    model = tiny_model("bert").train()
    store = TrunkStates.open(tmp_path, model, 2)
    rows = store.fill(sequences())
    states = store.get(rows)
    again = TrunkStates.open(tmp_path / "again", model, 2)
    torch.testing.assert_close(again.get(again.fill(sequences())), states, atol=0, rtol=0)
    assert model.encoder.layer[0].training


def test_a_reader_sees_what_a_writer_adds(tmp_path):
    model = tiny_model("bert")
    writer, reader = (TrunkStates.open(tmp_path, model, 2) for _ in range(2))
    ids = sequences()
    writer.fill(ids[:10])
    assert (reader.find(ids[:10]) == -1).all()
    reader.refresh()
    assert_right(reader, model, 2, ids[:10])
    writer.fill(ids)
    reader.refresh()
    assert_right(reader, model, 2, ids)


def test_a_second_writer_waits_or_is_told(tmp_path):
    model = tiny_model("bert")
    first, second = (TrunkStates.open(tmp_path, model, 2) for _ in range(2))
    with first.writing(), pytest.raises(ValueError, match="another process is filling"):
        second.fill(sequences(), wait_seconds=0.1)
    second.fill(sequences(), wait_seconds=0.1)


def files(store, suffix):
    return sorted(store.folder.glob(f"segment-*{suffix}"))


def test_torn_ends_are_repaired_and_said(tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    store = TrunkStates.open(tmp_path, model, 2)
    (index,), (data,) = files(store, ".idx"), files(store, ".bin")
    os.truncate(index, index.stat().st_size - 17)
    with data.open("ab") as file:
        file.write(b"half a row")
    store = TrunkStates.open(tmp_path, model, 2)
    with pytest.warns(UserWarning, match="dropped .* bytes that an interrupted fill left"):
        store.fill(ids)
    assert_right(store, model, 2, ids)
    assert_right(TrunkStates.open(tmp_path, model, 2), model, 2, ids)


def test_row_numbers_survive_a_repair_and_a_prune(tmp_path, monkeypatch):
    """A number given out names the same row for ever, or an error: never another row."""
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(store_module, "BATCH_TOKENS", 16)
    model = tiny_model("bert")
    ids = sequences(40)
    store = TrunkStates.open(tmp_path, model, 2)
    rows = store.fill(ids)
    before = store.get(rows)
    for path in (files(store, ".idx")[0], files(store, ".bin")[0]):
        path.unlink()
    with files(store, ".bin")[-1].open("ab") as file:
        file.write(b"half a row")
    with pytest.warns(UserWarning, match="dropped"):
        store.fill(sequences(3, seed=9))
    readable = 0
    for i, row in enumerate(rows):
        try:
            states = store.get([row])
        except ValueError:
            continue
        readable += 1
        assert torch.equal(states[0], before[i, : states.shape[1]])
    assert 0 < readable < 40
    store.fill(ids)
    assert_right(store, model, 2, ids)


def test_a_truncated_segment_is_refilled(tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    os.truncate(files(store, ".bin")[0], files(store, ".bin")[0].stat().st_size // 2)
    store = TrunkStates.open(tmp_path, model, 2)
    with pytest.warns(UserWarning, match="dropped"):
        store.fill(ids)
    assert_right(store, model, 2, ids)


def test_bit_rot_is_an_error_when_read_and_mended_by_fill(tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    TrunkStates.open(tmp_path, model, 2).fill(ids)
    store = TrunkStates.open(tmp_path, model, 2)
    data = files(store, ".bin")[0]
    content = bytearray(data.read_bytes())
    content[100] ^= 4
    data.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        store.get(range(len(store)))
    fresh = TrunkStates.open(tmp_path, model, 2)
    fresh.fill(ids)
    assert_right(fresh, model, 2, ids)
    assert verify_store(store.folder).dropped == 1
    assert_right(TrunkStates.open(tmp_path, model, 2), model, 2, ids)


def test_a_rotten_index_is_noticed(tmp_path):
    model = tiny_model("bert")
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    index = files(store, ".idx")[0]
    content = bytearray(index.read_bytes())
    content[45] ^= 1
    index.write_bytes(content)
    store = TrunkStates.open(tmp_path, model, 2)
    assert (store.find(ids) == -1).sum() >= 1
    store.fill(ids)
    assert_right(store, model, 2, ids)


def test_a_full_disk_is_one_error_and_leaves_no_half_rows(tmp_path, monkeypatch):
    import errno

    from lateprompt.state_cache import segment as segments

    model = tiny_model("bert")
    ids = sequences()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids[:5])

    def full(path, data):
        with path.open("ab") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    real = segments._append
    monkeypatch.setattr(segments, "_append", full)
    with pytest.raises(ValueError, match="no room for trunk states"):
        store.fill(ids)
    monkeypatch.setattr(segments, "_append", real)
    assert_right(TrunkStates.open(tmp_path, model, 2), model, 2, ids[:5])
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    assert_right(store, model, 2, ids)


def test_list_verify_prune(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(store_module, "BATCH_TOKENS", 16)
    model = tiny_model("bert")
    ids = sequences(40)
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    assert len(files(store, ".bin")) > 3
    (listed,) = list_stores(tmp_path)
    assert listed["rows"] == len(store)
    assert listed["bytes"] == store.nbytes == sum(p.stat().st_size for p in store.folder.glob("segment-*"))
    verdict = verify_store(store.folder)
    assert (verdict.rows, verdict.dropped) == (len(store), 0)
    oldest = files(store, ".idx")[2]
    os.utime(oldest, (1, 1))
    before = store.nbytes
    freed = prune(tmp_path, before - 1)
    assert freed > 0
    assert not oldest.exists()
    store = TrunkStates.open(tmp_path, model, 2)
    store.fill(ids)
    assert_right(store, model, 2, ids)
    prune(tmp_path, 0)
    assert list_stores(tmp_path) == []
    with pytest.raises(ValueError, match="negative"):
        prune(tmp_path, -1)
    with pytest.raises(ValueError, match="does not exist"):
        list_stores(tmp_path / "none")


def test_what_is_held_stays_readable_and_what_is_pruned_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(row_store, "SEGMENT_BYTES", 4000)
    monkeypatch.setattr(store_module, "BATCH_TOKENS", 16)
    model = tiny_model("bert")
    ids = sequences(40)
    store, other = (TrunkStates.open(tmp_path, model, 2) for _ in range(2))
    rows = store.fill(ids)
    other.refresh()
    kept = store.hold(rows[:1])
    before = store.get(rows[:1])
    prune(tmp_path, 0, keep=kept)
    assert set(files(store, ".bin")) == kept
    assert torch.equal(store.get(rows[:1]), before)
    gone = len(other.missing(ids))
    assert 0 < gone < 40
    assert_right(other, model, 2, [ids[0]])
    other.fill(ids)
    assert_right(other, model, 2, ids)
    store.refresh()
    assert_right(store, model, 2, ids)


FILLER = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/state_cache"]
import torch; torch.set_num_threads(1)
from tiny_models import tiny_model
from test_store import sequences
from lateprompt.state_cache import TrunkStates, store
store.BATCH_TOKENS = 16
print("ready", flush=True)
TrunkStates.open(sys.argv[2], tiny_model("bert"), 2).fill(sequences(400, seed=3))
print("done", flush=True)
"""


def test_kill_at_random_moments(tmp_path):
    """20 kills of a filling process; each next start repairs and goes on, and the states come out the same."""
    model = tiny_model("bert")
    ids = sequences(400, seed=3)
    rng = random.Random(1)
    killed = 0
    for attempt in range(20):
        folder = tmp_path / str(attempt // 4)  # four kills upon the same store
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FILLER, str(Path(__file__).parents[1]), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if attempt % 4 == 3:
            store = TrunkStates.open(folder, model, 2)
            kept = [i for i, row in enumerate(store.find(ids)) if row >= 0]
            assert_right(store, model, 2, [ids[i] for i in kept[:10]])
            store.fill(ids)
            assert verify_store(store.folder).dropped == 0
            assert_right(store, model, 2, ids[:60])
    assert killed >= 10
