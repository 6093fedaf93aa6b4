"""A tokenizer learned from captions: words as tokens, a bound on their number, and nothing that it cannot read."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from raystill.config.errors import UserError
from raystill.models.text import train_tokenizer

CAPTIONS = ["red heart", "grinning cat face", "red apple, flat style", "cat face"] * 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, 700, 8, tmp_path_factory.mktemp("text") / "tokenizer")


def words(tokenizer: CLIPTokenizer, caption: str) -> list[str]:
    return list(tokenizer.tokenize(caption))


def test_frequent_words_are_one_token_each(tokenizer: CLIPTokenizer) -> None:
    assert words(tokenizer, "red cat face") == ["red</w>", "cat</w>", "face</w>"]
    assert words(tokenizer, "Red CAT") == ["red</w>", "cat</w>"]


def test_any_text_can_be_read_and_is_written_back(tokenizer: CLIPTokenizer) -> None:
    unknown = tokenizer.convert_tokens_to_ids(tokenizer.unk_token)
    for caption in ("zebra", "größe", "日本", "🍕 slice"):
        ids = tokenizer(caption, add_special_tokens=False).input_ids
        assert unknown not in ids
        assert tokenizer.decode(ids).strip() == caption


def test_captions_are_framed_padded_and_cut(tokenizer: CLIPTokenizer) -> None:
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert start != end
    for caption, length in (("", 0), ("red heart", 2), ("cat " * 30, 6)):
        ids = tokenizer(caption, padding="max_length", truncation=True, max_length=8).input_ids
        assert len(ids) == 8
        assert (ids[0], ids[length + 1]) == (start, end)
        assert not {start, end} & set(ids[1 : length + 1])


@pytest.mark.parametrize("vocabulary", [514, 520, 600, 2600])
def test_the_vocabulary_is_bounded(vocabulary: int, tmp_path: Path) -> None:
    assert len(train_tokenizer(CAPTIONS, vocabulary, 8, tmp_path)) <= vocabulary


def test_merges_that_are_equally_frequent_have_an_order(tmp_path: Path) -> None:
    captions = ["blue car, cat face, green bag, bad bar"] * 3
    first, *others = (train_tokenizer(captions, 600, 8, tmp_path / str(i)).get_vocab() for i in range(8))
    assert all(other == first for other in others)


def test_it_is_the_same_after_reading_back_and_after_training_again(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(CAPTIONS, 700, 8, tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.get_vocab() == again.get_vocab() == read.get_vocab()
    assert read.model_max_length == 8
    assert read("grinning cat, zebra").input_ids == tokenizer("grinning cat, zebra").input_ids
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 514"):
        train_tokenizer(CAPTIONS, 513, 8, tmp_path)
