"""Checks of labels and of outputs stacked over passes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def check_same_shape(name_a: str, a: Array, name_b: str, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{name_a} and {name_b} must have the same shape: found {a.shape} and "
            f"{b.shape}"
        )


def are_class_ids(labels: Array, logits: Array, *, in_passes: bool = False) -> bool:
    """Check label shapes; return True for class ids and False for probabilities.

    Args:
      labels: class ids or probabilities.
      logits: [..., classes], or [passes, ..., classes].
      in_passes: whether the first axis of the logits is that of passes.
    """
    ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
    expected = logits.shape[in_passes : -1 if ids else None]
    if labels.shape != expected:
        kind = "class ids" if ids else "probabilities"
        of, hint = "logits [..., classes]", ""
        if in_passes:
            of = "one pass of logits, [passes, ..., classes]"
            hint = reshape_hint("logits", logits.shape, "labels", labels.shape)
        raise ValueError(
            f"labels ({kind}) must have the shape {expected} of {of}: found labels "
            f"{labels.shape}, logits {logits.shape}.{hint}"
        )
    return ids


def valid_class_ids(
    labels: Integer[Array, "*positions"], num_classes: int
) -> tuple[Integer[Array, "*positions"], Float[Array, "*positions"]]:
    """Return labels clipped to the classes, and 1, or NaN for labels out of range.

    Multiply the loss by the second result: a product gives NaN gradients too.
    """
    # The number of classes may not fit into an 8-bit label dtype.
    labels = labels.astype(int)
    valid = jnp.where((labels >= 0) & (labels < num_classes), 1.0, jnp.nan)
    return jnp.clip(labels, 0, num_classes - 1), valid


def reshape_hint(
    name: str, outputs: tuple[int, ...], labels: str, one_pass: tuple[int, ...]
) -> str:
    """Return a hint if passes are concatenated along the batch, else an empty string.

    Args:
      name: name of the outputs.
      outputs: shape of the outputs.
      labels: name of the labels.
      one_pass: shape of the labels, without the class axis if only outputs have one.

    Returns:
      A sentence with a leading space.
    """
    rank = len(one_pass)
    if rank < 1 or outputs[1:rank] != one_pass[1:]:
        return ""
    rest = "".join(f", {n}" for n in outputs[1:])
    if outputs[0] == 2 * one_pass[0]:
        return (
            f" {name} has no axis of passes. For rows [x; x] pass "
            f"{name}.reshape(2, {one_pass[0]}{rest})."
        )
    if outputs[0] == one_pass[0] and len(outputs) - rank in (0, 1):
        half = f"{one_pass[0] // 2}" if one_pass[0] % 2 == 0 else "batch"
        return (
            f" {name} has no axis of passes. For rows [x; x] and labels [y; y] pass "
            f"{name}.reshape(2, {half}{rest}) and {labels}[:{half}]; for one pass "
            f"{name}[None]."
        )
    return ""


def stacked(
    name: str, outputs: Array, labels: str = "labels", one_pass: tuple[int, ...] = ()
) -> Array:
    """Check that outputs are stacked over passes; the error may suggest a reshape."""
    outputs = jnp.asarray(outputs)
    if outputs.ndim < 2 or outputs.shape[0] < 1:
        raise ValueError(
            f"{name} must be stacked over passes on axis 0, [passes, ...] with at least"
            f" 2 axes: found shape {outputs.shape}."
            + reshape_hint(name, outputs.shape, labels, one_pass)
        )
    return outputs


def check_one_pass(
    name: str, outputs: Array, labels: str, shape: tuple[int, ...]
) -> None:
    """Raise ValueError if labels do not have the shape of one pass."""
    if outputs.shape[1:] != shape:
        raise ValueError(
            f"{labels} must have the same shape as one pass of {name}, "
            f"[passes, *{labels}]: found {outputs.shape[1:]} and {shape}."
            + reshape_hint(name, outputs.shape, labels, shape)
        )
