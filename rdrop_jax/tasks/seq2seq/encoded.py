"""Encoding of sentence pairs, limited to the model's maximum length."""

from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.sentences import Sentences, concatenate

OVERLONG = ("truncate", "refuse")
_CHUNK = 10_000


class Encoded(NamedTuple):
    """Encoded sentences and their translations.

    Attributes:
      source: encoded sentences.
      target: encoded translations.
      notes: messages to the user about changes.
    """

    source: Sentences
    target: Sentences
    notes: tuple[str, ...]


def encode(pairs: Pairs, vocabularies: Vocabularies, data: ConfigDict) -> Encoded:
    """Encode sentence pairs.

    Args:
      pairs: sentence pairs.
      vocabularies: source and target vocabularies.
      data: the config's ``data``, which limits the lengths. Targets have the limit
        ``max_target_length`` if the task has that field.

    Returns:
      The encoded pairs, without end-of-sentence tokens.

    Raises:
      InputError: a sentence is too long; the message names the first one.
    """
    encoded, notes = [], list(pairs.notes)
    if data.get("lowercase"):
        pairs = pairs.lowercased()
    target = "max_target_length" if "max_target_length" in data else "max_length"
    for texts, vocabulary, name in (
        (pairs.source, vocabularies.source, "max_length"),
        (pairs.target, vocabularies.target, target),
    ):
        field, most = f"data.{name}", data[name]
        cut: list[int] = []
        ids = _ids(texts, vocabulary, most, cut)
        encoded.append(concatenate(ids, len(vocabulary)))
        if cut and data.overlong == "refuse":
            raise InputError(
                f"{pairs.origin}: expected at most {field}={most} "
                f"tokens, found more in {len(cut)} sentences, the first "
                f"{texts[cut[0]][:40]!r}. Set data.overlong=truncate to truncate them"
            )
        if cut:
            notes.append(
                f"{pairs.origin}: {len(cut)} sentences truncated to {field}="
                f"{most} tokens, the first {texts[cut[0]][:40]!r}"
            )
    return Encoded(encoded[0], encoded[1], tuple(notes))


def _ids(
    texts: list[str], vocabulary: Vocabulary, max_length: int, cut: list[int]
) -> Iterator[list[int]]:
    for start in range(0, len(texts), _CHUNK):
        encoded = vocabulary.encode(texts[start : start + _CHUNK])
        for row, ids in enumerate(encoded, start):
            if len(ids) >= max_length:
                cut.append(row)
            yield ids[: max_length - 1]
