"""Encoding with real tokenizers: templates are never cut, texts never become special tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    bpe_tokenizer,
    gpt_tokenizer,
    llama_tokenizer,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from lateprompt.data import READOUTS, Row, Task, TaskEncoder, check_task, default_task, load_task

SINGLE = load_task("sst2")
PAIR = load_task("mrpc")
# The unigram model knows few whole words.
LETTERS = default_task(["a", "b"], pair=False, template="{text} {mask}", label_words=["g", "wa"])
MASKED = [wordpiece_tokenizer, bpe_tokenizer]
TYPED = "[MASK] <mask> </s> <s> [SEP] [CLS] <|endoftext|>"


def tokens(encoder: TaskEncoder, row: Row) -> str:
    return " ".join(encoder.tokenizer.convert_ids_to_tokens(encoder.encode([row])[0].input_ids.tolist()))


def test_mask_of_a_bert() -> None:
    encoder = TaskEncoder(wordpiece_tokenizer(), SINGLE, "masked_lm")
    (example,) = encoder.encode([Row(" The film was good\n", label="positive")])
    assert tokens(encoder, Row("The film was good")) == "[CLS] the film was good . it was [MASK] . [SEP]"
    assert example.input_ids.dtype == "int32"
    assert example.input_ids[example.read] == encoder.tokenizer.mask_token_id
    assert (example.label, example.token_type_ids) == (1, None)
    assert encoder.label_tokens == [[encoder.tokenizer.convert_tokens_to_ids(word)] for word in ("terrible", "great")]


def test_mask_of_a_roberta_is_what_the_whole_text_gives() -> None:
    tokenizer = bpe_tokenizer()
    encoder = TaskEncoder(tokenizer, PAIR, "masked_lm")
    (example,) = encoder.encode([Row("The film was good", "It was bad")])
    assert example.input_ids.tolist() == tokenizer("The film was good ?<mask> , It was bad")["input_ids"]
    assert example.label == -1
    assert encoder.label_tokens == [[tokenizer.convert_tokens_to_ids(word)] for word in ("ĠNo", "ĠYes")]


def test_mask_at_the_start() -> None:
    encoder = TaskEncoder(
        bpe_tokenizer(), default_task(["Yes", "No"], pair=False, template="{mask} : {text}"), "masked_lm"
    )
    assert tokens(encoder, Row("Was it good")) == "<s> <mask> Ġ: ĠWas Ġit Ġgood </s>"
    assert encoder.encode([Row("x")])[0].read == 1


def test_label_ends_at_the_last_source_token() -> None:
    encoder = TaskEncoder(gpt_tokenizer(), SINGLE, "causal_lm")
    (example,) = encoder.encode([Row("The film was good", label="negative")])
    assert tokens(encoder, Row("The film was good")) == "The Ġfilm Ġwas Ġgood ĠIt Ġwas"
    assert (example.read, example.label) == (5, 0)
    assert [gpt_tokenizer().decode(ids) for ids in encoder.label_tokens] == [" terrible", " great"]


def test_label_words_of_several_tokens() -> None:
    task = default_task(["goodness", "badly"], pair=False)
    assert all(len(ids) > 1 for ids in TaskEncoder(gpt_tokenizer(), task, "causal_lm").label_tokens)


def test_label_keeps_the_first_special_token_and_drops_the_last() -> None:
    encoder = TaskEncoder(llama_tokenizer(), SINGLE, "causal_lm")
    # The tokenizer puts the space itself: ours would be a token of its own.
    assert tokens(encoder, Row("The film")) == "<s> ▁The ▁film ▁It ▁was"
    assert [len(ids) for ids in encoder.label_tokens] == [1, 1]
    bert = TaskEncoder(wordpiece_tokenizer(), SINGLE, "causal_lm")
    assert (len(bert.prefix_ids), bert.suffix_ids) == (1, [])


def test_a_line_break_before_a_text_or_label_is_kept() -> None:
    task = default_task(["Yes", "No"], pair=False, decoder_template="Was it good ?\n{text}\n{label}")
    assert gpt_tokenizer().decode(
        TaskEncoder(gpt_tokenizer(), task, "causal_lm").encode([Row("It was")])[0].input_ids
    ) == ("Was it good ?\nIt was\n")


def test_a_template_may_name_special_tokens() -> None:
    task = default_task(["Yes", "No"], pair=False, decoder_template="<|endoftext|>{text} {label}")
    assert tokens(TaskEncoder(gpt_tokenizer(), task, "causal_lm"), Row("It")) == "<|endoftext|> It"
    task = default_task(["Yes", "No"], pair=False, template="{text} <mask> {mask}")
    with pytest.raises(ValueError, match=r"has the mask token in it; write it as \{mask\}"):
        TaskEncoder(bpe_tokenizer(), task, "masked_lm")


def test_head() -> None:
    encoder = TaskEncoder(wordpiece_tokenizer(), PAIR, "head")
    (example,) = encoder.encode([Row("It was good", "It was", label="equivalent")])
    assert tokens(encoder, Row("It was good", "It was")) == "[CLS] it was good [SEP] it was [SEP]"
    assert example.token_type_ids is not None
    assert example.token_type_ids.tolist() == wordpiece_tokenizer()("It was good", "It was")["token_type_ids"]
    assert example.token_type_ids.dtype == "int32"
    assert (example.read, example.label, encoder.label_tokens) == (-1, 1, [])
    assert TaskEncoder(bpe_tokenizer(), PAIR, "head").encode([Row("a", "b")])[0].token_type_ids is None
    assert TaskEncoder(wordpiece_tokenizer(), SINGLE, "head").encode([Row("a")])[0].token_type_ids is None
    assert tokens(TaskEncoder(gpt_tokenizer(), PAIR, "head"), Row("It", "was")) == "It <|endoftext|> Ġwas"


@pytest.mark.parametrize(
    ("make", "task", "readout"),
    [
        (wordpiece_tokenizer, SINGLE, "masked_lm"),
        (bpe_tokenizer, SINGLE, "masked_lm"),
        (gpt_tokenizer, SINGLE, "causal_lm"),
        (llama_tokenizer, SINGLE, "causal_lm"),
        (unigram_tokenizer, LETTERS, "masked_lm"),
        (unigram_tokenizer, LETTERS, "head"),
    ],
)
def test_special_tokens_typed_in_a_text_stay_text(
    make: Callable[[], PreTrainedTokenizerFast], task: Task, readout: str
) -> None:
    tokenizer = make()
    encoder = TaskEncoder(tokenizer, task, readout)
    assert set(tokenizer(TYPED)["input_ids"]) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}) or (
        make is gpt_tokenizer
    ), "the test's text has no special token"
    clean, typed = encoder.encode([Row("t"), Row(f"t {TYPED} t")])
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})
    found = [[token for token in example.input_ids.tolist() if token in special] for example in (clean, typed)]
    assert found[0] == found[1]
    assert len(typed.input_ids) > len(clean.input_ids)


@pytest.mark.parametrize("make", MASKED)
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(), min_size=2, max_size=2), st.integers(1, 30), st.sampled_from(["masked_lm", "causal_lm", "head"])
)
def test_truncation_never_cuts_the_template(
    make: Callable[[], PreTrainedTokenizerFast], texts: list[str], room: int, readout: str
) -> None:
    task = PAIR
    encoder = TaskEncoder(make(), task, readout)
    fixed = encoder.encode([Row("", "")])[0].input_ids.tolist()
    max_length = len(fixed) + 1 + room
    long = encoder.encode([Row("bad " * 40 + texts[0], texts[1])])[0].input_ids.tolist()
    (cut,) = TaskEncoder(make(), task, readout, max_length).encode([Row("bad " * 40 + texts[0], texts[1])])
    ids = cut.input_ids.tolist()
    assert len(ids) == min(max_length, len(long))
    remaining = iter(ids)
    assert all(token in remaining for token in fixed), "the template is no longer there in order"
    if readout == "masked_lm":
        assert ids.count(encoder.tokenizer.mask_token_id) == 1
        assert ids[cut.read] == encoder.tokenizer.mask_token_id
    if readout == "causal_lm":
        assert cut.read == len(ids) - 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40))
@settings(deadline=None)
def test_the_longer_text_is_cut_first(first: int, second: int, budget: int) -> None:
    encoder = TaskEncoder(wordpiece_tokenizer(), PAIR, "masked_lm", budget + 5)
    (example,) = encoder.encode([Row("good " * first, "bad " * second)])
    names = encoder.tokenizer.convert_ids_to_tokens(example.input_ids.tolist())
    while first + second > budget:
        first, second = (first - 1, second) if first > second else (first, second - 1)
    assert (names.count("good"), names.count("bad")) == (first, second)


def test_a_text_is_cut_at_its_end() -> None:
    encoder = TaskEncoder(wordpiece_tokenizer(), SINGLE, "masked_lm", 10)
    assert tokens(encoder, Row("The film was good bad")) == "[CLS] the film was . it was [MASK] . [SEP]"


def test_a_template_that_does_not_fit() -> None:
    TaskEncoder(wordpiece_tokenizer(), SINGLE, "masked_lm", 8)
    with pytest.raises(ValueError, match=r"max_length 7 is too short.*take 7 tokens.*give at least 8"):
        TaskEncoder(wordpiece_tokenizer(), SINGLE, "masked_lm", 7)


def test_no_warning_for_a_long_text(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fresh tokenizer, since each warns only once; its logger does not hand on what it logs.
    tokenizer = wordpiece_tokenizer.__wrapped__()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    row = Row("bad " * 100)
    TaskEncoder(tokenizer, SINGLE, "masked_lm").encode([row])
    assert "longer than" not in caplog.text
    tokenizer(row.text)
    assert "longer than" in caplog.text, "the text is not long enough to be warned of"


def test_a_label_word_of_several_tokens() -> None:
    task = default_task(["terrible!", "great"], pair=False)
    with pytest.raises(
        ValueError, match=r"^label word 'terrible!' is 2 tokens \('Ġterrible', '!'\) for tiny-bpe; choose"
    ):
        TaskEncoder(bpe_tokenizer(), task, "masked_lm")
    TaskEncoder(bpe_tokenizer(), task, "causal_lm")
    TaskEncoder(bpe_tokenizer(), task, "head")


def test_label_words_nobody_can_tell_apart() -> None:
    for words, message in (
        (["Yes", "yes"], r"'Yes' \(a\) and 'yes' \(b\) are the same tokens"),
        (["Yes", "€"], "'€' has tokens unknown to tiny-wordpiece"),
    ):
        task = default_task(["a", "b"], pair=False, label_words=words)
        for readout in ("masked_lm", "causal_lm"):
            with pytest.raises(ValueError, match=message):
                TaskEncoder(wordpiece_tokenizer(), task, readout)


def test_a_label_word_that_begins_every_other() -> None:
    task = default_task(["a", "b"], pair=False, label_words=["film film", "film"])
    with pytest.raises(ValueError, match=r"'film' \(b\) is how every label's words begin"):
        TaskEncoder(gpt_tokenizer(), task, "causal_lm")
    more = default_task(["a", "b", "c"], pair=False, label_words=["film film", "film", "good"])
    assert len(TaskEncoder(gpt_tokenizer(), more, "causal_lm").label_tokens) == 3


def test_no_mask_and_unknown_readout() -> None:
    with pytest.raises(ValueError, match=r"tiny-gpt has no mask token.*--readout head"):
        TaskEncoder(gpt_tokenizer(), SINGLE, "masked_lm")
    with pytest.raises(ValueError, match="readout 'cloze' is unknown; choose one of masked_lm, causal_lm, head"):
        TaskEncoder(gpt_tokenizer(), SINGLE, "cloze")


def test_bad_rows() -> None:
    encoder = TaskEncoder(wordpiece_tokenizer(), PAIR, "masked_lm")
    with pytest.raises(ValueError, match="row 2 has no text_pair"):
        encoder.encode([Row("a", "b"), Row("a")])
    with pytest.raises(ValueError, match=r"row 1 has label 'good'.*not_equivalent, equivalent"):
        encoder.encode([Row("a", "b", "good")])
    with pytest.raises(ValueError, match="row 1 gives no tokens"):
        TaskEncoder(gpt_tokenizer(), SINGLE, "head").encode([Row("")])
    assert encoder.encode([]) == []


def test_check_task() -> None:
    task = default_task(["a", "b", "c"], pair=False, label_words=["great", "terrible!", "great"])
    found = check_task(task, bpe_tokenizer(), "masked_lm")
    assert found[0] == {"label": "a", "word": "great", "pieces": ["Ġgreat"], "ok": True, "message": ""}
    assert [entry["ok"] for entry in found] == [True, False, False]
    assert "single token" in found[1]["message"]
    assert "same tokens" in found[2]["message"]
    assert [entry["ok"] for entry in check_task(task, bpe_tokenizer(), "causal_lm")] == [True, True, False]
    assert all(entry["ok"] for entry in check_task(task, bpe_tokenizer(), "head"))
    assert not any(entry["ok"] for entry in check_task(task, gpt_tokenizer(), "masked_lm"))
    with pytest.raises(ValueError, match="readout 'x'"):
        check_task(task, gpt_tokenizer(), "x")


@pytest.mark.parametrize("readout", READOUTS)
def test_the_tokenizer_is_left_as_it_was(readout: str) -> None:
    tokenizer = bpe_tokenizer()
    before = tokenizer("It was <mask> good")["input_ids"]
    TaskEncoder(tokenizer, SINGLE, readout).encode([Row("It")])
    assert tokenizer("It was <mask> good")["input_ids"] == before


def test_ten_thousand_rows_are_fast() -> None:
    encoder = TaskEncoder(bpe_tokenizer(), PAIR, "masked_lm", 64)
    start = time.perf_counter()
    assert len(encoder.encode([Row("The film was good " * 5, "It was bad")] * 10_000)) == 10_000
    assert time.perf_counter() - start < 20
