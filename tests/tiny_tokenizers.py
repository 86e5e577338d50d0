"""Tiny real tokenizers, trained here on a few made-up sentences: no hub."""

from __future__ import annotations

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The film was great and the cast was great .",
    "The film was terrible . It was a terrible evening ?",
    "It was good , it was bad . Was it good ? It was bad .",
    "A long walk by the river : They are Yes , No , Maybe .",
    "They are positive . They are negative . Yes ? No , Maybe .",
    "great terrible good bad Yes No Maybe positive negative",
] * 8


def _wordpiece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, "[ ] / < > ! #"], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    settings = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": 16,
        "name_or_path": "tiny-wordpiece",
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def _byte_level(special: list[str], prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


@cache
def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Like BERT's: lower case, [CLS] text [SEP], token types."""
    return _wordpiece()


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Like RoBERTa's: bytes, <s> text </s>, a mask that takes the space before it, no token types."""
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_input_names=["input_ids", "attention_mask"],
        name_or_path="tiny-bpe",
    )


@cache
def gpt_tokenizer() -> PreTrainedTokenizerFast:
    """Like GPT-2's: bytes, no mask, nothing around the text, the end-of-text token as padding."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level([end]),
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_input_names=["input_ids", "attention_mask"],
        name_or_path="tiny-gpt",
    )


@cache
def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Like XLM-RoBERTa's: the special tokens are pieces of the vocabulary, and the tokenizer puts the first space."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, "< / s > m a s k"], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        name_or_path="tiny-unigram",
    )


@cache
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama's: <s> before the text, nothing after it, and a space put before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator((word for text in SENTENCES for word in text.split()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        name_or_path="tiny-llama",
    )
