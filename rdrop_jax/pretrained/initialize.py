"""Merging of loaded weights into model parameters, with a report of mismatches."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rdrop_jax.core.passes import Params
from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import head_classes as class_names
from rdrop_jax.pretrained.head_classes import HEAD

# Resizes an array to a shape; returns None if that is not possible.
Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray | None]


@dataclass(frozen=True)
class Weights:
    """Weights under our parameter names.

    Attributes:
      arrays: arrays by path, such as ``block_0/attention/query/kernel``.
      facts: known properties that shapes do not show, such as ``model.heads``.
      notes: messages to the user, one line each.
      sha256: checksums of the source files, by name.
      classes: class names by row of the head; empty if unknown.
    """

    arrays: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Import and export functions for the parameters of a model family.

    Attributes:
      read: ``path -> weights`` of a file or folder.
      save: ``(params, folder, format)``; writes parameters for other libraries.
      formats: formats that ``save`` supports.
      facts: properties of the task's model; see `Weights`.
      resize: functions that resize parameters of another shape, by name.
      reinit: parts that are re-initialized if they do not match, such as ``head``.
      classes: class names by row of the head; empty if unknown, None if the model has
        no head of classes.
    """

    read: Callable[[Path], Weights]
    save: Callable[[Params, Path, str], None]
    formats: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    resize: Mapping[str, Resize] = field(default_factory=dict)
    reinit: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


def flatten(params: Params) -> dict[str, Any]:
    """Flatten to ``{"block_0/mlp/mlp_in/kernel": array, ...}``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def merge(
    template: Params,
    loaded: Weights,
    *,
    facts: Mapping[str, Any] | None = None,
    resize: Mapping[str, Resize] | None = None,
    reinit: Sequence[str] = (),
    fresh: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> tuple[Params, list[str]]:
    """Replace the initial parameters of a model by loaded weights.

    Args:
      template: initial parameters of the model.
      loaded: weights that replace them.
      facts: properties of the model; those that ``loaded`` also has must be equal.
      resize: functions that resize parameters of another shape, by name.
      reinit: parts that keep the template's values if any of their arrays is missing
        or has another shape.
      fresh: parts that always keep the template's values.
      classes: class names of the model, see `Family`; head rows are matched to them.

    Returns:
      A tree with the structure and dtypes of the template; and one line for each
      conversion or re-initialization.

    Raises:
      InputError: lists all facts that differ and all names that are missing,
        unexpected, or have another shape or dtype.
    """
    wanted = flatten(template)
    for part in fresh:
        if not any(_under(part, wanted)):
            raise InputError(
                f"reinit: expected a prefix of a parameter's path, such as head, found "
                f"{part!r}"
            )
    kept_new = {name for part in fresh for name in _under(part, loaded.arrays)}
    found = {k: x for k, x in loaded.arrays.items() if k not in kept_new}
    notes, reasons, by_class = list(loaded.notes), dict[str, str](), ""
    if classes is not None:
        found, by_class, matched = _by_class(found, loaded.classes, classes)
        if not matched:
            fresh, reasons[HEAD] = [*fresh, HEAD], f": {by_class}"
    for name, fit in (resize or {}).items():
        if name in found and name in wanted:
            array, shape = found[name], tuple(wanted[name].shape)
            fitted = None if array.shape == shape else fit(np.asarray(array), shape)
            if fitted is not None:
                found[name] = fitted
                notes.append(f"{name}: resized from {array.shape} to {shape}")
    mismatches = {n: f for n in wanted | found if (f := _mismatch(n, wanted, found))}
    for part in dict.fromkeys([*fresh, *reinit]):
        if not any(_under(part, mismatches)):
            continue
        here = ", ".join(sorted(_under(part, wanted))) or "nothing"
        why = reasons.get(part, "")
        notes.append(f"{part}: not loaded; {here} re-initialized{why}")
        for name in [*_under(part, found), *_under(part, mismatches)]:
            found.pop(name, None)
            mismatches.pop(name, None)
    if by_class and any(_under(HEAD, found)):
        notes.append(f"{HEAD}: {by_class}")
    known = {k: v for k, v in (facts or {}).items() if k in loaded.facts}
    lines = [
        f"  {name}: expected {value!r}, found {loaded.facts[name]!r}"
        for name, value in known.items()
        if value != loaded.facts[name]
    ]
    lines += [mismatches[name] for name in sorted(mismatches)]
    if lines:
        raise InputError("init_from: weights of another model\n" + "\n".join(lines))
    leaves = [
        found[k].astype(leaf.dtype) if k in found else leaf
        for k, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves), notes


def _by_class(
    found: Mapping[str, Any], stored: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, Any], str, bool]:
    """Reorder the rows of the head to the class order of the model.

    Returns:
      The arrays; a note for the user; and False if the head belongs to other classes
      and was therefore removed.
    """
    head = _under(HEAD, found)
    if not head:
        return dict(found), "", True
    order = class_names.order(stored, wanted)
    if not order.matched:
        kept = {name: x for name, x in found.items() if name not in head}
        return kept, order.note, False
    if order.rows is None:
        return dict(found), order.note, True
    rows = np.asarray(order.rows)
    moved = {name: found[name][..., rows] for name in head}
    return dict(found) | moved, order.note, True


def _under(part: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == part or name.startswith(part + "/")]


def _mismatch(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    expected, got = _described(wanted.get(name)), _described(found.get(name))
    return "" if expected == got else f"  {name}: expected {expected}, found {got}"


def _described(array: Any) -> str:
    if array is None:
        return "none"
    kind = "" if jnp.issubdtype(array.dtype, jnp.floating) else f" of {array.dtype}"
    return f"{tuple(array.shape)}{kind}"
