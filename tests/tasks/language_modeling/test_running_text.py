"""Running text: vocabularies, splits, files, and what is wrong with them."""

import itertools

import numpy as np
import pytest

from rdrop_jax import flags
from rdrop_jax.data import docstrings, splits
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.language_modeling import running_text, token_files, vocabularies
from rdrop_jax.tasks.language_modeling import task as language_task

LM = "configs/lm.py"
LINES = ["the cat saw the dog", "", "the dog ran", "a cat ran"]


def config_of(tmp_path, lines, **fields):
    (tmp_path / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    wanted = {"files.train": "train.txt", "dir": str(tmp_path), "tokens": "words"}
    overrides = {f"data.{k}": str(v) for k, v in (wanted | fields).items()}
    return flags.load(f"{LM}:files", overrides)


def data_of(tmp_path, lines, **fields):
    return config_of(tmp_path, lines, **fields).data


def test_words_stand_in_order_of_their_frequency():
    words = vocabularies.learn("words", LINES, 0, 1)
    # 4 ends; 3 the; 2 cat, dog, ran; 1 a, saw; the unknown last.
    order = [words.decode([i]) for i in range(len(words))]
    assert order == ["\n", "the", "cat", "dog", "ran", "a", "saw", "<unk>"]
    (ids,) = words.encode(["the mouse ran"])
    assert ids == [1, 7, 4]
    assert (words.end, words.unknown) == (0, 7)


@pytest.mark.parametrize(("size", "least"), [(5, 1), (0, 2)])
def test_rare_words_are_unknown_and_count_as_such(size, least):
    words = vocabularies.learn("words", [*LINES, "x y z u v"], size, least)
    kept = ["the", "cat", "dog"] if size else ["the", "cat", "dog", "ran"]
    order = [words.decode([i]) for i in range(len(words))]
    assert sorted(order) == sorted([*kept, "\n", "<unk>"])
    assert order[0] == "<unk>"  # more than the 5 ends of lines: frequent first


def test_text_there_and_back():
    for kind, size in (("words", 0), ("characters", 0), ("bpe", 40)):
        made = vocabularies.learn(kind, LINES, size, 1)
        again = vocabularies.parse(made.dump())
        assert again.dump() == made.dump()
        split = token_files.encode(again, LINES, "here")
        assert again.decode(split.ids.tolist()) == "\n".join(LINES) + "\n"
        assert (split.words, split.characters) == (15, 43)


def test_spaces_that_no_token_encodes_are_not_counted(tmp_path):
    lines = ["  a = 1", "a  =  1 ", "a = 1"]
    for kind, characters in (("words", 18), ("bpe", 18), ("characters", 23)):
        made = vocabularies.learn(kind, lines, 40, 1)
        corpus = token_files.make(made, dict.fromkeys(SPLITS, lines))
        assert corpus.splits["test"].characters == characters
        loaded = token_files.load(token_files.save(corpus, tmp_path / kind))
        assert loaded.splits["test"].characters == characters
        assert loaded.splits["test"].lines == tuple(lines)


def test_memory_mapped_files(tmp_path):
    words = vocabularies.learn("words", LINES, 0, 1)
    made = token_files.make(words, {"train": LINES, "test": LINES[:1]})
    folder = token_files.save(made, tmp_path / "text")
    found = token_files.load(folder)
    assert isinstance(found.splits["train"].ids, np.memmap)
    np.testing.assert_array_equal(found.splits["train"].ids, made.splits["train"].ids)
    assert found.provenance == made.provenance
    assert found.splits["test"].words == 6
    # A run keeps the vocabulary alone, the text stays where it was.
    kept = token_files.save(found, tmp_path / "run", texts=False)
    assert token_files.load(kept).splits == {}
    assert set(token_files.load(kept, folder).splits) == {"train", "test"}
    (folder / "train.bin").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"train.bin: expected 60 bytes, found 4"):
        token_files.load(folder)
    (folder / "vocabulary.json").write_text(words.dump().replace("cat", "dog"))
    with pytest.raises(InputError, match=r"expected the vocabulary of .* another file"):
        token_files.load(folder)


def test_what_has_no_file_is_cut_from_the_end():
    lines = [f"line {i:03d}" for i in range(100)]
    found = running_text.hold_out({"train": lines})
    assert [len(found[s]) for s in SPLITS] == [90, 5, 5]
    assert [*found["train"], *found["validation"], *found["test"]] == lines
    found = running_text.hold_out({"train": lines, "test": ["other"]})
    assert [len(found[s]) for s in SPLITS] == [95, 5, 1]
    with pytest.raises(InputError, match=r"data.files.test: .* found 1 lines"):
        running_text.hold_out({"train": ["one long line"]})


def test_groups_share_keys_that_are_not_common(monkeypatch):
    keys = [{"a"}, {"b"}, {"a", "c"}, {"d"}, {"c"}, {"e", "b"}, set()]
    groups = splits.grouped(keys)
    assert groups == [[0, 2, 4], [1, 5], [3], [6]]
    monkeypatch.setattr(splits, "_COMMON", 1)
    assert splits.grouped(keys) == [[i] for i in range(len(keys))]


def test_docstrings_are_split_so_that_lines_are_not_shared(monkeypatch):
    texts = {
        name: list(itertools.islice(docstrings.read(name), 1500))
        for name in running_text.PACKAGES
    }
    monkeypatch.setattr(docstrings, "read", texts.get)
    found = running_text.docstring_lines(0)
    sizes = {split: len(lines) for split, lines in found.items()}
    assert min(sizes.values()) > 1000
    assert sizes["train"] > 8 * sizes["test"]
    seen = {line.strip() for line in found["train"]}
    for split in ("validation", "test"):
        long = [line.strip() for line in found[split] if len(line.strip()) > 20]
        assert sum(line in seen for line in long) <= 0.05 * len(long)
    assert found == running_text.docstring_lines(0)
    assert found != running_text.docstring_lines(1)


def test_an_empty_file(tmp_path):
    for lines in ([], ["", "  "] * 50):
        data = data_of(tmp_path, lines)
        with pytest.raises(InputError, match="expected"):
            running_text.corpus(data)


def test_a_single_token(tmp_path):
    words = vocabularies.learn("words", LINES, 0, 1)
    with pytest.raises(InputError, match=r"validation: .* two tokens, found 1"):
        token_files.make(words, {"validation": [""]})


@pytest.mark.parametrize("lines", [["a", "b", "a"]])
def test_duplicate_lines_of_a_vocabulary(tmp_path, lines):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="once, found 'a' in lines 1 and 3"):
        vocabularies.read(path)


def test_unknown_words_without_unk(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\ncat\n")
    data = data_of(tmp_path, ["the cat"] * 60 + ["the dog"] * 60, vocabulary=path)
    with pytest.raises(InputError, match=r"train: expected words .* no <unk>, .*'dog'"):
        running_text.corpus(data)
    path.write_text("the\ncat\n<unk>\n")
    found = running_text.corpus(data)
    assert found.vocabulary.decode(found.splits["test"].ids.tolist()[:3]) == (
        "the <unk>\n"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "wikitext2"}, "data.name: expected docstrings, files, hf:"),
        ({"files.train": "gone.txt"}, "data.files.train: expected a file, .*gone.txt"),
        ({"files.train": ""}, "data.files.train: expected the name of a text"),
        ({"name": "wikitext103"}, "Use --config.data.name=hf:Salesforce/wiki"),
    ],
)
def test_what_is_not_there(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        running_text.check_data(config_of(tmp_path, LINES, **fields))


def test_a_folder_of_version_0_1(tmp_path):
    texts = {"train": ["", "the cat <unk> the"], "validation": ["cat"], "test": ["the"]}
    words = vocabularies.learn("words", texts["train"], 0, 1)
    token_files.save(token_files.make(words, texts), tmp_path / "wikitext103")
    config = config_of(tmp_path, LINES, name="wikitext103")
    running_text.check_data(config)
    found = language_task.load(config, None)
    ids = found.splits["train"].ids.tolist()
    assert found.vocabulary.decode(ids) == "\nthe cat <unk> the\n"
