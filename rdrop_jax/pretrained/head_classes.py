"""Class names of a classifier head; rows are matched by name, not by position."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdrop_jax.errors import InputError

HEAD = "head"
_PLACEHOLDER = re.compile(r"label_\d+", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class Order:
    """Assignment of rows of a stored head to the classes of a model.

    Attributes:
      rows: row of the stored head for each class; None keeps the order.
      matched: False if the head belongs to other classes and must be re-initialized.
      note: one line for the user; empty if names and order are the same.
    """

    rows: tuple[int, ...] | None = None
    matched: bool = True
    note: str = ""


def order(stored: Sequence[str], wanted: Sequence[str]) -> Order:
    """Match the rows of a head with the classes of a model by name.

    Names are compared without surrounding white space; case is ignored
    unless two names of one list differ only by it. Names such as ``LABEL_0``, and the
    numbers 0, 1, ..., are placeholders, for which rows are matched by position.

    Args:
      stored: class names by row of the stored head; empty if unknown.
      wanted: class names of the model by id; empty if unknown.

    Returns:
      The assignment of the rows.

    Example:
      >>> order(["NEUTRAL", "entailment"], ["entailment", "neutral"]).rows
      (1, 0)
      >>> order(["LABEL_0", "LABEL_1"], ["no", "yes"]).note
      'class names unknown for the weights (LABEL_0, LABEL_1): rows matched by position'
    """
    theirs, ours = ([name.strip() for name in names] for names in (stored, wanted))
    if theirs and theirs == ours:
        return Order()
    for side, names in (("weights", theirs), ("data", ours)):
        numbers = names == [str(row) for row in range(len(names))]
        if numbers or all(_PLACEHOLDER.fullmatch(name) for name in names):
            shown = f" ({_some(names)})" if names else ""
            if sorted(theirs) == sorted(ours) and names:
                break
            return Order(
                note=f"class names unknown for the {side}{shown}: rows matched by "
                "position"
            )
    rows = _rows(theirs, ours)
    if rows is None:
        return Order(
            matched=False,
            note=f"the weights have the classes {_some(theirs)}, the data {_some(ours)}"
            "; to keep the head, use the same names in both",
        )
    if rows == tuple(range(len(ours))):
        return Order(note=f"classes {_some(theirs)} loaded as {_some(ours)}")
    return Order(
        rows,
        note=f"rows reordered by class name, from {_some(theirs)} to {_some(ours)}",
    )


def names(config: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], list[str]]:
    """Read class names by row from ``id2label`` of a config.json.

    Args:
      config: content of the file.
      where: name of the file in messages.

    Returns:
      The names, empty if the file has no ``id2label``; and notes for the user.

    Raises:
      InputError: the ids are not 0, 1, 2, ..., a name is empty or neither a string nor
        an integer, or a name occurs twice.
    """
    found = config.get("id2label")
    if found is None:
        return (), []
    remedy = "Correct the file, or remove id2label to match rows by position."
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"init_from: {where}: id2label: expected names by id, got "
            f"{_short(found)}. {remedy}"
        )
    ids = {_id(key): name for key, name in found.items()}
    if len(ids) != len(found) or ids.keys() != set(range(len(found))):
        raise InputError(
            f"init_from: {where}: id2label: expected the ids 0 to {len(found) - 1}, "
            f"got {_some([str(key) for key in found])}. {remedy}"
        )
    plain = [ids[i] for i in range(len(ids))]
    bad = [x for x in plain if isinstance(x, bool) or not isinstance(x, str | int)]
    if bad or "" in (named := [str(x).strip() for x in plain]):
        raise InputError(
            f"init_from: {where}: id2label: expected a name for each id, got "
            f"{_short(bad[0] if bad else '')}. {remedy}"
        )
    twice = [name for name in named if named.count(name) > 1] if named else []
    if twice:
        raise InputError(
            f"init_from: {where}: id2label: expected different names, got "
            f"{twice[0]!r} twice. {remedy}"
        )
    back = config.get("label2id")
    notes = []
    if isinstance(back, dict):
        theirs = {str(name).strip(): _id(i) for name, i in back.items()}
        if theirs != {name: i for i, name in enumerate(named)}:
            notes.append(f"{where}: label2id disagrees with id2label; id2label is used")
    return tuple(named), notes


def of_head(
    arrays: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[tuple[str, ...], list[str]]:
    """Read the class names of a stored head, if there is one.

    Args:
      arrays: weights by our parameter paths.
      config: content of config.json.
      where: name of that file in messages.

    Returns:
      The names and notes, see `names`; both empty if there is no head.

    Raises:
      InputError: see `names`; or the numbers of names and rows differ.
    """
    bias = arrays.get(f"{HEAD}/bias")
    if bias is None:
        return (), []
    found, notes = names(config, where)
    if found and bias.shape != (len(found),):
        raise InputError(
            f"init_from: {where}: id2label: expected a name for each row of the head, "
            f"whose bias has the shape {bias.shape}, got {len(found)} names. Correct "
            "the file, or remove id2label to match rows by position."
        )
    return found, notes


def _id(value: Any) -> int | None:
    """Parse an id of a JSON file; None if it is not a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value)
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _rows(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    for key in (str, str.casefold):
        found = {key(name): row for row, name in enumerate(theirs)}
        wanted = [key(name) for name in ours]
        unique = len(found) == len(theirs) and len(set(wanted)) == len(wanted)
        if unique and found.keys() == set(wanted):
            return tuple(found[name] for name in wanted)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _some(found: Sequence[str]) -> str:
    shown = [name if len(name) <= 40 else name[:37] + "..." for name in found[:_SHOWN]]
    more = f", ... ({len(found)} in all)" if len(found) > _SHOWN else ""
    return ", ".join(shown) + more
