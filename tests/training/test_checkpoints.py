"""Checkpoints and tokenizers as people have them: broken, half there, or not belonging together."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, DECODERS, ENCODERS, VOCABULARY, tiny_model
from tiny_tokenizers import bpe_tokenizer, wordpiece_tokenizer

from lateprompt.data import Row, default_task
from lateprompt.data.encoding import TaskEncoder
from lateprompt.data.vocabulary import check_vocabulary
from lateprompt.predictors.loading import load_base, load_config, load_tokenizer, resolve_readout
from lateprompt.utils.errors import LatePromptError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 90868376\n"
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


@pytest.fixture
def folder(masked_lm, tmp_path) -> Path:
    return Path(shutil.copytree(masked_lm, tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def auto_of(model) -> str:
    return resolve_readout(load_config(str(model)), "auto", str(model))


# -- the readout follows the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_auto_readout_is_what_loading_can_serve(family, tmp_path):
    words = "masked_lm" if family in ENCODERS else "causal_lm"
    head = "AutoModelForMaskedLM" if family in ENCODERS else "AutoModelForCausalLM"
    whole, bare = tiny_model(family, head), tiny_model(family, "AutoModel")
    whole.save_pretrained(tmp_path / "whole")
    bare.save_pretrained(tmp_path / "bare")
    assert auto_of(tmp_path / "whole") == words
    load_base(str(tmp_path / "whole"), words)
    assert auto_of(tmp_path / "bare") == "head"
    own = set(whole.state_dict()) - set(whole.all_tied_weights_keys)
    if all(key.startswith(f"{whole.base_model_prefix}.") for key in own):
        return  # wholly tied to the embeddings
    edit(tmp_path / "bare" / CONFIG, architectures=[type(whole).__name__])  # as all-mpnet-base-v2 says
    assert auto_of(tmp_path / "bare") == "head"
    with pytest.raises(LatePromptError, match=r"no LM head.*--readout head \(in Python: readout=\"head\"\)"):
        load_base(str(tmp_path / "bare"), words)
    edit(tmp_path / "whole" / CONFIG, architectures=[type(bare).__name__])
    assert auto_of(tmp_path / "whole") == words


def test_auto_readout_of_shards_and_of_names_from_tensorflow(tmp_path):
    model = tiny_model("bert", "AutoModelForMaskedLM")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / INDEX).exists()
    assert auto_of(tmp_path / "shards") == "masked_lm"
    model.save_pretrained(tmp_path / "old")
    tensors = load_file(tmp_path / "old" / WEIGHTS)
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in tensors.items()}  # fmt: skip
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "old" / WEIGHTS, {"format": "pt"})
    assert auto_of(tmp_path / "old") == "masked_lm"
    load_base(str(tmp_path / "old"), "masked_lm")


def test_auto_readout_of_half_a_head(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["lm_head.dense.weight"]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert auto_of(folder) == "head"


# -- files -------------------------------------------------------------------------------------------------------------


def nested(path: Path) -> None:
    path.write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def index(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}))


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["roberta.encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


BROKEN = {
    "pointer config": (lambda f: (f / CONFIG).write_text(LFS), "Git LFS pointer.*git lfs pull"),
    "list": (lambda f: (f / CONFIG).write_text("[1]"), "not an object"),
    "deep config": (lambda f: nested(f / CONFIG), "nested too deeply"),
    "pipe config": (lambda f: pipe(f / CONFIG), "pipe"),
    "folder config": (lambda f: into_folder(f / CONFIG), "is a folder"),
    "empty config": (lambda f: (f / CONFIG).write_text(""), "is broken"),
    "binary config": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "is broken"),
    "no config": (lambda f: (f / CONFIG).unlink(), "without a usable config.json"),
    "no type": (lambda f: (f / CONFIG).write_text("{}"), "cannot be loaded"),
    "layers": (lambda f: edit(f / CONFIG, num_hidden_layers=10**9), "num_hidden_layers '1000000000'.*no size"),
    "negative": (lambda f: edit(f / CONFIG, vocab_size=-1), "vocab_size '-1'"),
    "words for sizes": (lambda f: edit(f / CONFIG, hidden_size="wide"), "cannot be loaded|no size"),
    "heads": (lambda f: edit(f / CONFIG, num_attention_heads=5), "cannot be loaded"),
    "activation": (lambda f: edit(f / CONFIG, hidden_act="nope"), "cannot be loaded"),
    "other width": (lambda f: edit(f / CONFIG, hidden_size=64), "cannot be loaded"),
    "pointer weights": (lambda f: (f / WEIGHTS).write_text(LFS), "Git LFS pointer"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 5000), "truncated"),
    "cut at the end": (lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1), "truncated"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "truncated"),
    "no tensors": (lambda f: (f / WEIGHTS).write_text("no tensors at all"), "no safetensors file"),
    "pipe weights": (lambda f: pipe(f / WEIGHTS), "pipe"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "pickled": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "pickled weights only.*save_pretrained"),
    "missing shard": (lambda f: index(f, "gone.safetensors"), "'.*gone.safetensors' does not exist"),
    "shard elsewhere": (lambda f: index(f, "../part.safetensors"), "no file beside it"),
    "absolute shard": (lambda f: index(f, "/etc/passwd"), "no file beside it"),
    "index of numbers": (lambda f: index(f, 7), "no weight_map"),
    "nan": (not_finite, "not finite"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoints_are_one_line(kind, folder):
    break_it, message = BROKEN[kind]
    break_it(folder)
    with pytest.raises(LatePromptError, match=message) as error:
        load_base(str(folder), "masked_lm")
    assert "\n" not in str(error.value)


def test_whole_shards_load(folder):
    index(folder, "part.safetensors")
    assert torch.isfinite(load_base(str(folder), "masked_lm").get_input_embeddings().weight).all()


def test_a_file_is_no_model(folder):
    with pytest.raises(LatePromptError, match="is a file; give the folder"):
        load_config(str(folder / WEIGHTS))


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_without_tokenizer_files(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    with pytest.raises(LatePromptError, match=r"missing or empty|no tokenizer files") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


TOKENIZERS = {
    "deep": (lambda f: nested(f / "tokenizer.json"), "cannot be loaded"),
    "deep settings": (lambda f: nested(f / "tokenizer_config.json"), "cannot be loaded"),
    "pointer": (lambda f: (f / "tokenizer.json").write_text(LFS), "cannot be loaded|pointer"),
    "truncated": (lambda f: os.truncate(f / "tokenizer.json", 1000), "cannot be loaded"),
    "pipe": (lambda f: pipe(f / "tokenizer.json"), "pipe"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_broken_tokenizer_files(kind, folder):
    break_it, message = TOKENIZERS[kind]
    break_it(folder)
    with pytest.raises(LatePromptError, match=message) as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


def test_a_vocabulary_without_its_merges(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}))
    with pytest.raises(LatePromptError, match=r"merges.txt is missing"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    tokenizer = bpe_tokenizer()
    model = save_tiny(tmp_path, "roberta", "AutoModelForMaskedLM", tokenizer, vocab_size=VOCABULARY)
    with pytest.raises(LatePromptError, match=rf"ids up to {len(tokenizer) - 1} .* {VOCABULARY} rows"):
        load_tokenizer(model)


def test_a_tokenizer_of_another_model(tmp_path):
    tokenizer = wordpiece_tokenizer()
    model = save_tiny(tmp_path, "bert", "AutoModelForMaskedLM", tokenizer, vocab_size=30_522)
    with pytest.raises(LatePromptError, match=rf"has {len(tokenizer)} tokens, .* 30522 rows"):
        load_tokenizer(model)


class FakeTokenizer:
    """A vocabulary of some size, its special tokens last or first."""

    vocab_files_names = {"tokenizer_file": "tokenizer.json"}  # noqa: RUF012

    def __init__(self, size: int, special: dict[str, int], used: tuple[str, ...] = ()) -> None:
        self.words = {f"w{i}": i for i in range(size) if i not in special.values()} | special
        self.added_tokens_decoder = {i: type("Token", (), {"special": True}) for i in special.values()}
        self.all_special_ids = [special[name] for name in used]
        for name in used:
            setattr(self, f"{name}_token_id", special[name])

    def get_vocab(self) -> dict[str, int]:
        return self.words

    def __len__(self) -> int:
        return len(self.words)

    def convert_ids_to_tokens(self, index: int) -> str:
        return next(word for word, i in self.words.items() if i == index)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        (50_254, 50_432),  # GPT-NeoX
        (50_257, 51_200),  # phi-1
        (151_643, 152_064),  # Qwen2
        (32_011, 32_064),  # Phi-3
        (262_144, 262_208),  # Gemma 3
        (128_001, 128_100),  # DeBERTa-v3
        (50_280, 50_368),  # ModernBERT
        (259, 384),  # ByT5
        (12, 16),  # HyenaDNA
        (33, 33),  # ESM
        (7_924, 52_000),  # a BPE that ran out of merges
    ],
)
def test_padded_embeddings_are_fine(tokens, rows):
    tokenizer = FakeTokenizer(tokens, {"pad": 0}, ("pad",))
    check_vocabulary(tokenizer, type("Config", (), {"vocab_size": rows}), "m")
    assert tokenizer.embedding_rows == rows


def test_special_tokens_behind_the_embedding():
    config = type("Config", (), {"vocab_size": 100})
    check_vocabulary(FakeTokenizer(101, {"<image>": 100}), config, "m")  # Gemma 3 1B: not for texts
    with pytest.raises(LatePromptError, match=r"'pad' is 100.* 100 rows"):
        check_vocabulary(FakeTokenizer(101, {"pad": 100}, ("pad",)), config, "m")


def test_a_template_with_a_token_that_has_no_row(tmp_path):
    tokenizer = bpe_tokenizer().__class__.from_pretrained(_saved_with(tmp_path, "<image>"))
    model = save_tiny(tmp_path / "model", "roberta", "AutoModelForMaskedLM", tokenizer, vocab_size=len(tokenizer) - 1)
    loaded, task = load_tokenizer(model), default_task(["no", "yes"], pair=False)
    (example,) = TaskEncoder(loaded, task, "head", 32).encode([Row("See <image> here.", None, "no", {})])
    assert example.input_ids.max() < loaded.embedding_rows == len(loaded) - 1
    with pytest.raises(LatePromptError, match=r"template .*has the token '<image>'.*take it out"):
        TaskEncoder(loaded, default_task(["no", "yes"], pair=False, template="<image> {text} {mask}"), "masked_lm", 32)


def _saved_with(folder: Path, token: str) -> Path:
    bpe_tokenizer().save_pretrained(folder / "tokenizer")
    grown = bpe_tokenizer().__class__.from_pretrained(folder / "tokenizer")
    grown.add_special_tokens({"additional_special_tokens": [token]})
    grown.save_pretrained(folder / "grown")
    return folder / "grown"


def test_families_of_the_tables_are_the_same():
    assert set(ENCODERS) | set(DECODERS) == set(CONFIGS)
