"""A CLIP tokenizer learned from captions, for pipelines that are trained from scratch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from raystill.config.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, length: int, directory: Path) -> Any:
    """Learn byte-pair merges from captions and write a CLIPTokenizer of at most `vocabulary` tokens, `length` per
    caption; UserError where that is too few for the bytes that any text is made of.

    Frequent words become one token each, which a small text encoder learns far faster than letters.
    """
    from transformers import CLIPTokenizer  # which takes seconds to import

    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    if vocabulary < len(tokens) + 2:
        raise UserError(f"a vocabulary of {vocabulary} cannot hold every byte; expected at least {len(tokens) + 2}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        min_frequency=2,
        special_tokens=tokens,  # ties are broken by numbers, which letters at words' ends else get in no fixed order
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokens += [a + b for a, b in merges]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[(a, b) for a, b in merges], model_max_length=length)
    tokenizer.save_pretrained(directory)
    return CLIPTokenizer.from_pretrained(directory, local_files_only=True)
