"""Tokenizers: from files of each form, pairs, truncation, what does not fit."""

import json

import numpy as np
import pytest

from rdrop_jax.data import subwords, tokenizer_files
from rdrop_jax.errors import InputError

TEXTS = [
    "The cat sat on the mat.",
    "Does the Cat's hat fit? It doesn't.",
    "Naïve cafés serve 3.50 € tea, \t don't they?",
    "mats, hats and cats: sat!",
]


@pytest.fixture(scope="module")
def wordpiece():
    return subwords.train_wordpiece(TEXTS * 3, 120)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A folder with vocab.json and merges.txt, as RoBERTa has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))
    return folder


def tokens(tokenizer, row, encoded):
    ids = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]]
    return [tokenizer.id_to_token(int(i)) for i in ids]


def test_learning_is_a_function_of_the_texts(wordpiece):
    assert subwords.train_wordpiece(TEXTS * 3, 120).to_str() == wordpiece.to_str()
    ids = [wordpiece.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    assert ids == [0, 1, 2, 3]
    assert wordpiece.get_vocab_size() <= 120


def test_pairs_have_types_and_ends(wordpiece):
    encoded = subwords.encode(wordpiece, TEXTS[:2], TEXTS[2:], 128)
    found = tokens(wordpiece, 0, encoded)
    assert found[0] == "[CLS]"
    assert found[-1] == "[SEP]"
    assert found.count("[SEP]") == 2
    types = encoded.types[: encoded.starts[1]]
    first = found.index("[SEP]") + 1
    np.testing.assert_array_equal(types, np.arange(len(found)) >= first)


def test_the_longer_text_is_cut_first(wordpiece):
    short, long = "cat", " ".join(["mat"] * 50)
    for first, second in ((short, long), (long, short)):
        encoded = subwords.encode(wordpiece, [first], [second], 12)
        found = tokens(wordpiece, 0, encoded)
        assert len(found) == 12
        assert found.count("mat") == 12 - 3 - found.count("cat")
        assert "cat" in found
    encoded = subwords.encode(wordpiece, [long], None, 10)
    assert tokens(wordpiece, 0, encoded) == ["[CLS]", *["mat"] * 8, "[SEP]"]


def test_batches_are_padded_and_masked(wordpiece):
    encoded = subwords.encode(wordpiece, TEXTS, None, 128)
    longest = int(encoded.lengths.max())
    batch = encoded.batch(np.array([2, 0]), longest + 3, pad_id=0)
    assert batch["tokens"].shape == batch["types"].shape == (2, longest + 3)
    np.testing.assert_array_equal(batch["length"], encoded.lengths[[2, 0]])
    for row, length in zip(batch["tokens"], batch["length"], strict=True):
        assert (row[:length] != 0).all()
        assert (row[length:] == 0).all()


def test_tokenizer_json_goes_before_vocabulary_files(wordpiece, tmp_path):
    subwords.save(wordpiece, tmp_path / tokenizer_files.NAME)
    by_id = sorted(wordpiece.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in by_id))
    from_json = tokenizer_files.load(tmp_path)
    (tmp_path / tokenizer_files.NAME).unlink()
    from_vocab = tokenizer_files.load(tmp_path)
    for loaded in (from_json, from_vocab):
        a, b = (subwords.encode(t, TEXTS, TEXTS, 64) for t in (wordpiece, loaded))
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.types, b.types)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = subwords.encode(tokenizer_files.load(tmp_path), ["The cat"], None, 64)
    lower = subwords.encode(from_vocab, ["The cat"], None, 64)
    assert not np.array_equal(cased.ids, lower.ids)


def test_byte_level_pairs_as_roberta(byte_level):
    tokenizer = tokenizer_files.load(byte_level)
    encoded = subwords.encode(tokenizer, ["The cat"], ["sat"], 64)
    found = tokens(tokenizer, 0, encoded)
    assert found[0] == "<s>"
    assert found[-1] == "</s>"
    middle = found.index("</s>")
    assert found[middle : middle + 2] == ["</s>", "</s>"]
    assert not encoded.types.any()
    plain = tokenizer.decode(encoded.ids[encoded.starts[0] :].tolist())
    assert plain == "The catsat"


def test_settings_in_the_file_do_not_cut_or_pad(wordpiece, tmp_path):
    other = subwords.train_wordpiece(TEXTS, 120)
    other.enable_truncation(4)
    other.enable_padding(length=16)
    subwords.save(other, tmp_path / tokenizer_files.NAME)
    encoded = subwords.encode(tokenizer_files.load(tmp_path), TEXTS, None, 128)
    assert encoded.lengths.min() > 4
    assert len(set(encoded.lengths)) > 1


def test_what_is_not_a_tokenizer(tmp_path, byte_level):
    with pytest.raises(
        InputError, match=r"data.tokenizer: expected tokenizer.json, voc"
    ):
        tokenizer_files.load(tmp_path)
    with pytest.raises(InputError, match=r"found nothing at .*nowhere"):
        tokenizer_files.load(tmp_path / "nowhere")
    (tmp_path / tokenizer_files.NAME).write_text('{"model": {}')
    with pytest.raises(InputError, match=r"tokenizer.json: no tokenizer: "):
        tokenizer_files.load(tmp_path)
    (tmp_path / tokenizer_files.NAME).unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"found one without \[CLS\]"):
        tokenizer_files.load(tmp_path)


def test_a_tokenizer_of_another_model(wordpiece, byte_level):
    size = wordpiece.get_vocab_size()
    subwords.check_fits(wordpiece, vocab_size=size, pad_id=0, exact=True)
    subwords.check_fits(wordpiece, vocab_size=size + 100, pad_id=0, exact=True)
    subwords.check_fits(wordpiece, vocab_size=size + 9999, pad_id=0, exact=False)
    for vocab_size in (size - 1, size + 128):  # mDeBERTa: 251,000 rows for 250,102
        with pytest.raises(
            InputError, match=rf"{vocab_size} tokens of.*of {size}. Use"
        ):
            subwords.check_fits(wordpiece, vocab_size=vocab_size, pad_id=0, exact=True)
    for exact, remedy in ((True, "Use the model's"), (False, "Set model.pad_id=0, or")):
        with pytest.raises(InputError, match=rf"id 1, the model's padding .* {remedy}"):
            subwords.check_fits(wordpiece, vocab_size=size, pad_id=1, exact=exact)
    subwords.check_fits(
        tokenizer_files.load(byte_level), vocab_size=330, pad_id=1, exact=True
    )


def test_equal_to_transformers(byte_level, wordpiece, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    texts = [*TEXTS, "<mask> a</s>b [SEP] c", "x" * 300, "\u4e2d\u6587 \U0001f600"]
    theirs = transformers.RobertaTokenizer(
        vocab=json.loads((byte_level / "vocab.json").read_text()),
        merges=[
            tuple(line.split(" "))
            for line in (byte_level / "merges.txt").read_text().splitlines()[1:]
        ],
    )
    by_id = sorted(wordpiece.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in by_id))
    bert = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    pairs = [(byte_level, theirs), (tmp_path, bert)]
    for folder, other in pairs:
        encoded = subwords.encode(tokenizer_files.load(folder), texts, texts[::-1], 40)
        wanted = other(
            texts,
            texts[::-1],
            truncation="longest_first",
            max_length=40,
            return_token_type_ids=True,
        )
        for row, (ids, types) in enumerate(
            zip(wanted["input_ids"], wanted["token_type_ids"], strict=True)
        ):
            part = slice(encoded.starts[row], encoded.starts[row + 1])
            assert encoded.ids[part].tolist() == ids
            assert encoded.types[part].tolist() == types
