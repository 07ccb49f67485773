"""Loading of tokenizer files, compatible with transformers. Needs no jax.

Supported are tokenizer.json and the older vocabulary files: vocab.txt (WordPiece, BERT)
and vocab.json with merges.txt (byte-level BPE, RoBERTa and BART). Settings of
tokenizer_config.json and added_tokens.json in the same folder are applied.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from rdrop_jax.errors import InputError, rust_explained
from rdrop_jax.files import lfs, lines
from rdrop_jax.files.disk import read_json

NAME, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
WORDPIECE = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BYTES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_ROLES = {
    "[PAD]": "pad_token",
    "[UNK]": "unk_token",
    "[CLS]": "cls_token",
    "[SEP]": "sep_token",
    "[MASK]": "mask_token",
}
# Fields of tokenizer_config.json, and attributes of BERT's normalizer.
_NORMALIZER = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# Text that exercises a tokenizer: words, digits, unknown characters.
_PROBE = "The caf\u00e9 of 1984 \u732b \U0001f600, x_y\u0301 <> [] \u0000."


def find(folder: Path) -> bool:
    """Return True if a folder contains a tokenizer."""
    return any(
        all((folder / name).is_file() for name in names)
        for names in ((NAME,), ("vocab.txt",), ("vocab.json", "merges.txt"))
    )


def load(path: Path) -> Tokenizer:
    """Load a tokenizer from its file, or from a folder with its files.

    Args:
      path: tokenizer.json; or a folder with it, with vocab.txt (WordPiece), or with
        vocab.json and merges.txt (byte-level BPE).

    Returns:
      The tokenizer, with padding and truncation disabled.

    Raises:
      InputError: missing or corrupt files.
    """
    if path.is_dir():
        if not find(path):
            raise InputError(
                f"data.tokenizer: expected {NAME}, vocab.txt, or vocab.json with "
                f"merges.txt in {path}, found none"
            )
    elif not path.is_file():
        raise InputError(f"data.tokenizer: expected {NAME}, found nothing at {path}")
    file = path / NAME
    message = f"data.tokenizer: {file if file.is_file() else path}: no tokenizer"
    try:
        with rust_explained(message):
            tokenizer = _read(path)
            tokenizer.no_padding()
            tokenizer.no_truncation()
            _try_out(tokenizer)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{message}: {error}") from error
    return tokenizer


def _try_out(tokenizer: Tokenizer) -> None:
    """Encode a text and a pair, as many corrupt files fail only then."""
    if not tokenizer.get_vocab_size():
        raise ValueError("expected a vocabulary, found an empty one")
    tokenizer.enable_truncation(8, strategy="longest_first")
    tokenizer.encode_batch([_PROBE, (_PROBE, _PROBE)])
    tokenizer.no_truncation()


def _read(path: Path) -> Tokenizer:
    if path.is_file():
        return _from_json(path)
    settings = _settings(path / SETTINGS)
    whole = (path / NAME).is_file()
    if whole:
        tokenizer = _from_json(path / NAME)
        _override(tokenizer, settings)
    elif (path / "vocab.txt").is_file():
        tokenizer = _wordpiece(path / "vocab.txt", settings)
    else:
        tokenizer = _bytes(path)
    _add_tokens(tokenizer, path, settings, whole=whole)
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    lfs.check_not_pointer(path, "data.tokenizer")
    return Tokenizer.from_buffer(path.read_bytes())  # works for any path


def _wordpiece(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    for token, role in _ROLES.items():
        found = settings.get(role, token)
        if isinstance(found, dict):
            found = found.get("content")
        if found not in (None, token):
            raise InputError(
                f"data.tokenizer: {path.with_name(SETTINGS)}: {role}: expected "
                f"{token}, got {found!r}. Use a folder with {NAME}."
            )
    model = models.WordPiece(read_vocabulary(path), unk_token="[UNK]")
    tokenizer = as_bert(Tokenizer(model), normalizers.BertNormalizer(lowercase=True))
    _override(tokenizer, settings)
    return tokenizer


def _bytes(path: Path) -> Tokenizer:
    names = [path / name for name in ("vocab.json", "merges.txt")]
    for name in names:
        lfs.check_not_pointer(name, "data.tokenizer")
    return as_roberta(Tokenizer(models.BPE(*models.BPE.read_file(*map(str, names)))))


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read vocab.txt; the id of a token is its line number, starting from 0.

    Blank lines keep their ids, except at the end, where they are dropped. A duplicate
    token gets its last id, as in transformers.

    Args:
      path: file with one token per line, UTF-8, with or without a byte order mark.

    Returns:
      Ids by token.

    Raises:
      InputError: no tokens, or a line that is not UTF-8.
    """
    lfs.check_not_pointer(path, "data.tokenizer")
    tokens = [line.rstrip() for line in lines.read(path)]
    while tokens and not tokens[-1]:
        tokens.pop()
    if not tokens:
        raise InputError(
            f"data.tokenizer: {path}: expected tokens, found an empty file"
        )
    return {token: i for i, token in enumerate(tokens)}


def _settings(path: Path) -> dict[str, Any]:
    """Read tokenizer_config.json and check the fields that are used here."""
    settings = _json(path)
    for field in _NORMALIZER:
        value = settings.get(field)
        if value is not None and not isinstance(value, bool):
            raise InputError(
                f"data.tokenizer: {path}: {field}: expected true or false, got "
                f"{value!r}"
            )
    return settings


def _normalizer(settings: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return the options of BERT's normalizer set in tokenizer_config.json."""
    # strip_accents: null is the default, which follows do_lower_case.
    return {
        ours: settings[theirs]
        for theirs, ours in _NORMALIZER.items()
        if theirs in settings
        and (settings[theirs] is not None or theirs == "strip_accents")
    }


def _override(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Apply tokenizer_config.json where it differs from a BERT normalizer."""
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        for name, value in _normalizer(settings).items():
            if getattr(tokenizer.normalizer, name) != value:
                setattr(tokenizer.normalizer, name, value)


def settings_of(tokenizer: Tokenizer) -> dict[str, bool | None]:
    """Return the fields of tokenizer_config.json that describe BERT's normalizer."""
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return {"do_lower_case": False}
    return {theirs: getattr(normalizer, ours) for theirs, ours in _NORMALIZER.items()}


def _add_tokens(
    tokenizer: Tokenizer, path: Path, settings: Mapping[str, Any], *, whole: bool
) -> None:
    """Add the tokens of tokenizer_config.json and added_tokens.json."""
    found = dict(_from_added(path / ADDED)) | dict(_from_settings(path, settings))
    for number, token in sorted(found.items()):
        there = tokenizer.token_to_id(token.content)
        if there is None or (there == number and not whole):
            adds = (
                tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
            )
            adds([token])
            there = tokenizer.token_to_id(token.content)
        if there != number:
            raise InputError(
                f"data.tokenizer: {path}: added token {token.content!r}: expected id "
                f"{there}, got {number}. Use a folder with {NAME}."
            )


def _from_added(path: Path) -> Iterator[tuple[int, AddedToken]]:
    special = {*WORDPIECE, *BYTES}
    for content, number in _json(path).items():
        if not isinstance(number, int) or isinstance(number, bool) or not content:
            raise InputError(
                f"data.tokenizer: {path}: {content!r}: expected an id, got {number!r}"
            )
        known = content in special
        yield number, AddedToken(content, special=known, normalized=not known)


def _from_settings(
    path: Path, settings: Mapping[str, Any]
) -> Iterator[tuple[int, AddedToken]]:
    found = settings.get("added_tokens_decoder") or {}
    where = f"data.tokenizer: {path / SETTINGS}: added_tokens_decoder"
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected tokens by id, got {found!r}")
    for key, token in found.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not (
            key.isascii() and key.isdigit() and isinstance(content, str) and content
        ):
            raise InputError(
                f"{where}: {key!r}: expected an id and a token with content"
            )
        flags = {name: bool(token.get(name, False)) for name in _FLAGS}
        yield (
            int(key),
            AddedToken(content, special=bool(token.get("special", False)), **flags),
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json(path, "data.tokenizer")


def _ids(tokenizer: Tokenizer, *names: str) -> list[int]:
    ids: list[int] = []
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is None:
            raise InputError(
                f"data.tokenizer: expected a vocabulary with {', '.join(names)}, found "
                f"one without {name}"
            )
        ids.append(found)
    return ids


def as_bert(tokenizer: Tokenizer, normalizer: normalizers.BertNormalizer) -> Tokenizer:
    """Configure WordPiece with BERT's special tokens, word splitting and template."""
    cls, sep = _ids(tokenizer, "[CLS]", "[SEP]")
    tokenizer.add_special_tokens(list(WORDPIECE))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def as_roberta(tokenizer: Tokenizer) -> Tokenizer:
    """Configure byte-level BPE with special tokens and template of RoBERTa and BART."""
    start, end = _ids(tokenizer, "<s>", "</s>")
    plain = [t for t in BYTES if t != "<mask>"]
    tokenizer.add_special_tokens([*plain, AddedToken("<mask>", lstrip=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", end), ("<s>", start), add_prefix_space=False
    )
    return tokenizer
