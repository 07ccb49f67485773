"""Tokenizers from files: settings are obeyed, and junk is refused with its name."""

import json

import pytest

from rdrop_jax.data import subwords, tokenizer_files, tokenizers
from rdrop_jax.errors import InputError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "schon", "schön", "猫狗", "猫"]
TOKENS += ["##狗", "SCHON"]


def folder(tmp_path, settings=None, added=None, text=None):
    content = "\n".join(TOKENS) + "\n" if text is None else text
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "vocab.txt").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    for name, value in (("tokenizer_config", settings), ("added_tokens", added)):
        if value is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def tokens(tokenizer, text):
    ids = subwords.encode(tokenizer, [text], None, 32).ids
    return [tokenizer.id_to_token(i) for i in ids][1:-1]


# As BertTokenizerFast of transformers.
SETTINGS = [
    ({}, ["schon", "猫", "[UNK]"]),
    ({"strip_accents": False}, ["schön", "猫", "[UNK]"]),
    ({"strip_accents": None}, ["schon", "猫", "[UNK]"]),
    ({"strip_accents": False, "tokenize_chinese_chars": False}, ["schön", "猫狗"]),
    ({"do_lower_case": False}, ["[UNK]", "猫", "[UNK]"]),
    ({"do_lower_case": False, "strip_accents": True}, ["SCHON", "猫", "[UNK]"]),
]


@pytest.mark.parametrize(("settings", "wanted"), SETTINGS)
def test_tokenizer_config_is_obeyed(tmp_path, settings, wanted):
    upper = settings.get("do_lower_case") is False
    text = "SCHÖN 猫狗" if upper else "Schön 猫狗"
    tokenizer = tokenizer_files.load(folder(tmp_path, settings))
    assert tokens(tokenizer, text) == wanted
    # The same settings count next to a tokenizer.json, and are those of an export.
    subwords.save(
        tokenizer_files.load(folder(tmp_path / "plain")),
        tmp_path / tokenizer_files.NAME,
    )
    again = tokenizer_files.load(tmp_path)
    assert tokens(again, text) == wanted
    said = tokenizer_files.settings_of(again)
    assert said == tokenizer_files.settings_of(tokenizer)
    assert tokens(tokenizer_files.load(folder(tmp_path / "new", said)), text) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_lower_case": "false"}, "do_lower_case: expected true or false, got 'fal"),
        ({"strip_accents": 1}, "strip_accents: expected true or false, got 1"),
        ({"unk_token": "<unk>"}, r"unk_token: expected \[UNK\], got '<unk>'"),
        ([1], "tokenizer_config.json: expected a JSON object"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder: expected tokens by id"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "'x': expected an id and"),
        ({"added_tokens_decoder": {"3": {}}}, "'3': expected an id and a token"),
        (
            {"added_tokens_decoder": {"40": {"content": "new"}}},
            "expected id 11, got 40",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        tokenizer_files.load(folder(tmp_path, settings))


def test_added_tokens_keep_their_ids(tmp_path):
    decoder = {"12": {"content": "[USER]", "special": True}, "3": {"content": "[SEP]"}}
    settings = {"added_tokens_decoder": decoder}
    tokenizer = tokenizer_files.load(folder(tmp_path, settings, {"new": 11}))
    assert tokenizer.token_to_id("[USER]") == 12
    assert tokens(tokenizer, "schon [USER] new") == ["schon", "[USER]", "new"]
    with pytest.raises(InputError, match=r"added token 'x': expected id 11, got 20"):
        tokenizer_files.load(folder(tmp_path / "bad", {}, {"x": 20}))
    with pytest.raises(InputError, match=r"added_tokens.json: 'x': expected an id"):
        tokenizer_files.load(folder(tmp_path / "bad", {}, {"x": "20"}))


def test_ids_are_line_numbers(tmp_path):
    lines = [*TOKENS[:5], "", "fine", "", "film"]
    for name, text in {
        "plain": "\n".join(lines) + "\n",
        "no newline": "\n".join(lines),
        "blank lines at the end": "\n".join(lines) + "\n\n \n",
        "bom and crlf": "\ufeff" + "\r\n".join(lines) + "\r\n",
    }.items():
        tokenizer = tokenizer_files.load(folder(tmp_path / name, text=text))
        found = [tokenizer.token_to_id(t) for t in ("[PAD]", "fine", "film")]
        assert found == [0, 6, 8], name
        subwords.check_fits(tokenizer, vocab_size=9, pad_id=0, exact=True)
    twice = tokenizer_files.load(
        folder(tmp_path / "twice", text="\n".join([*TOKENS, "schon"]))
    )
    assert twice.token_to_id("schon") == len(TOKENS)
    odd = tokenizer_files.load(
        folder(tmp_path / "odd", text="\n".join([*TOKENS, "a\u2028b", "c"]))
    )
    assert odd.token_to_id("c") == len(TOKENS) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"vocab.txt: expected tokens, found an empty file"),
        ("\n\n", r"vocab.txt: expected tokens, found an empty file"),
        (b"[PAD]\n\xff\n", r"vocab.txt, line 2: expected UTF-8"),
        ("[PAD]\n[CLS]\n[SEP]\n", r"no tokenizer: WordPiece error: Missing \[UNK\]"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        tokenizer_files.load(folder(tmp_path, text=text))


def changed(content, change):
    change(content)
    return json.dumps(content)


JUNK = {
    "empty vocabulary": lambda c: c["model"].update(vocab={}),
    "no unknown token": lambda c: c["model"].update(unk_token="nowhere"),
    "template": lambda c: c["post_processor"].update(special_tokens={}),
    "stride": lambda c: c.update(
        truncation={
            "direction": "Right",
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 100,
        }
    ),
    "normalizer": lambda c: c.update(normalizer={"type": "Nothing"}),
    "pattern": lambda c: c.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    ),
    "precompiled": lambda c: c.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAAAAAA"}
    ),
    "model": lambda c: c.update(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}
    ),
    "ids": lambda c: c["model"].update(vocab={"a": -1}),
    "nesting": lambda c: c.update(normalizer=None, added_tokens=[{"id": "x"}]),
}


@pytest.mark.parametrize("change", JUNK.values(), ids=JUNK.keys())
def test_junk_in_tokenizer_json_is_one_clear_line(tmp_path, change):
    content = json.loads(tokenizer_files.load(folder(tmp_path / "v")).to_str())
    path = tmp_path / tokenizer_files.NAME
    path.write_text(changed(content, change))
    if change is JUNK["stride"]:  # truncation of the file is not used
        assert tokenizer_files.load(path)
        return
    with pytest.raises(InputError, match=r"tokenizer.json: no tokenizer: ") as error:
        tokenizer_files.load(path)
    assert "\n" not in str(error.value)


def test_control_tokens_in_a_text(tmp_path):
    """Control tokens for classification, as in transformers, text for other tasks."""
    tokenizer = tokenizer_files.load(folder(tmp_path))
    assert tokens(tokenizer, "schon [SEP] schon") == ["schon", "[SEP]", "schon"]
    trained = tokenizers.train("joint", ["a </s> b <s> c"] * 4, 60)
    (ids,) = trained.encode(["a </s> b"])
    assert trained.special.eos not in ids
    assert trained.decode(ids) == "a </s> b"
