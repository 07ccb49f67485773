"""Stochastic passes over one batch, and checks that the passes differ."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rdrop_jax.core.meshes import on_any_mesh, platform
from rdrop_jax.core.options import HOW

Params = Any  # pytree of arrays
Batch = Any  # pytree of arrays, batch axis first
Key = Any  # PRNG key, typed or raw
# forward(params, batch, key | None) -> outputs; None means evaluation.
Forward = Callable[[Params, Batch, Key | None], Any]
# view(batch, key) -> batch, with inputs that are augmented again for each key.
View = Callable[[Batch, Key], Batch]


class EqualPassesError(ValueError):
    """Two dropout keys gave equal outputs."""


class EqualPassesWarning(UserWarning):
    """All passes of a training step gave equal outputs."""


_EQUAL = (
    "two dropout keys give the same outputs, so the consistency term is 0 and "
    "R-Drop has no effect. Check that a dropout rate is above 0, that dropout is on in "
    "training, and that the key reaches it."
)
# Distinguishes the key of a view from the keys that a model derives for its dropout.
_VIEW = 0x76696577
# Attempts: one small mask may repeat by chance, but not this many times.
_TRIES = 20


def _is_typed(key: Key) -> bool:
    return hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def check_key(key: Key) -> None:
    """Reject a number in place of a PRNG key.

    Raises:
      ValueError: ``key`` is not a PRNG key.
    """
    if not getattr(key, "ndim", 0) and not _is_typed(key):
        raise ValueError(f"key must be a PRNG key, jax.random.key(0): found {key!r}")


def pass_keys(key: Key, num_passes: int) -> Key:
    """Split one key into one per pass, or check keys that are already split.

    Args:
      key: a PRNG key, typed or raw, or ``num_passes`` keys stacked on axis 0.
      num_passes: number of passes.

    Returns:
      Keys stacked on axis 0.

    Raises:
      ValueError: the wrong number of keys, or a duplicate key.
    """
    if num_passes < 1:
        raise ValueError(f"num_passes must be at least 1: found {num_passes}")
    check_key(key)
    typed = _is_typed(key)
    if key.ndim == (0 if typed else 1):
        return jax.random.split(key, num_passes)
    if key.shape[0] != num_passes:
        raise ValueError(
            f"key must be one PRNG key or num_passes={num_passes} of them: found "
            f"{key.shape[0]}"
        )
    if not isinstance(key, jax.core.Tracer):
        words = jax.device_get(jax.random.key_data(key) if typed else key)
        if len({tuple(w.ravel().tolist()) for w in words}) < num_passes:
            raise ValueError(
                "key: expected a different PRNG key for each pass, found one key "
                "twice. Passes with equal keys draw equal dropout masks, and the "
                "divergence is 0. Pass one key, or jax.random.split(key, num_passes)"
            )
    return key


def forward_passes(
    forward: Forward | Sequence[Forward],
    params: Params,
    batch: Batch,
    key: Key,
    *,
    num_passes: int = 2,
    how: str = "auto",
    out_axes: Any = 0,
    has_aux: bool = False,
    views: View | Sequence[View] | None = None,
) -> Any:
    """Run the model ``num_passes`` times over one batch, each with its own key.

    Both methods give bit-identical masks, with threefry keys (jax's default) or with
    `rdrop_jax.dropout`. ``"unroll"`` calls the model k times, which is fastest on CPU.
    ``"vmap"`` maps one call over the keys, which halves the program. The batch is never
    concatenated with itself, which would move rows between devices.

    Args:
      forward: ``(params, batch, key) -> outputs``, or a sequence with one per pass, for
        instance with different dropout rates; a sequence is unrolled.
      params: model parameters.
      batch: any pytree.
      key: one PRNG key, split here, or ``num_passes`` different keys on axis 0.
      num_passes: number of passes k.
      how: "unroll", "vmap", or "auto" (unroll on CPU, vmap elsewhere; within
        `jax.set_mesh`, the devices of the mesh decide).
      out_axes: axes to stack passes on, a prefix of the outputs as in `jax.vmap`. Use
        None only for outputs that all passes share, to keep one copy. For an output
        that depends on the key, "vmap" rejects None and "unroll" keeps the first pass.
      has_aux: forward returns ``(outputs, aux)``; aux is stacked on axis 0.
      views: ``(batch, key) -> batch``, or a sequence with one per pass. Each pass gets
        its own augmentation of the batch, with a key derived from that of the pass.
        None, as in the paper, gives all passes the same inputs. Passes without a key
        (evaluation) have no view.

    Returns:
      Outputs stacked over passes, [passes, ...] by default; ``(outputs, aux)`` for
      ``has_aux``.

    Raises:
      ValueError: ``num_passes`` below 1, an unknown ``how``, a duplicate key, a number
        of functions that is not the number of passes, or a sequence with "vmap".

    Example:
      >>> import jax
      >>> def forward(params, batch, key):
      ...     return params * batch + jax.random.normal(key, batch.shape)
      >>> forward_passes(forward, 2.0, jax.numpy.ones(3), jax.random.key(0)).shape
      (2, 3)
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {HOW}: found {how!r}")
    keys = pass_keys(key, num_passes)
    forward = with_views(forward, views, num_passes)
    forwards = _one_each(forward, num_passes)
    axes = (out_axes, 0) if has_aux else out_axes
    if how == "auto":
        unroll = platform() == "cpu" or not callable(forward)
        how = "unroll" if unroll else "vmap"
    if how == "vmap":
        if not callable(forward):
            raise ValueError(
                "how='vmap' maps one forward over all passes: found one for each pass. "
                "Use how='unroll'"
            )
        return jax.vmap(forward, (None, None, 0), out_axes=axes)(params, batch, keys)
    outputs = [call(params, batch, keys[i]) for i, call in enumerate(forwards)]
    axes = jax.tree.broadcast(axes, outputs[0], is_leaf=lambda axis: axis is None)
    return jax.tree.map(
        lambda axis, *leaves: leaves[0] if axis is None else jnp.stack(leaves, axis),
        axes,
        *outputs,
        is_leaf=lambda axis: axis is None,
    )


def with_views(
    forward: Forward | Sequence[Forward],
    views: View | Sequence[View] | None,
    num_passes: int,
) -> Forward | Sequence[Forward]:
    """Make each forward augment its inputs; see `forward_passes`.

    Raises:
      ValueError: a sequence of forwards or views that is not one per pass.
    """
    if views is None:
        return forward
    if callable(forward) and callable(views):
        return _with_view(forward, views)
    each = [views] * num_passes if callable(views) else views
    if len(each) != num_passes:
        raise ValueError(
            f"views: expected one, or one per pass, {num_passes}: found {len(each)}"
        )
    forwards = _one_each(forward, num_passes)
    return [_with_view(f, view) for f, view in zip(forwards, each, strict=True)]


def _with_view(forward: Forward, view: View) -> Forward:
    def run(params: Params, batch: Batch, key: Key | None) -> Any:
        if key is not None:
            batch = view(batch, jax.random.fold_in(key, _VIEW))
        return forward(params, batch, key)

    return run


def _one_each(
    forward: Forward | Sequence[Forward], num_passes: int
) -> Sequence[Forward]:
    if callable(forward):
        return [forward] * num_passes
    if len(forward) != num_passes:
        raise ValueError(
            f"forward must be one function or num_passes={num_passes} of them: found "
            f"{len(forward)}"
        )
    return forward


def check_stochastic(
    forward: Forward | Sequence[Forward],
    params: Params,
    batch: Batch,
    key: Key,
    *,
    rows: int = 2,
    noise: float = 0.02,
) -> None:
    """Raise an error if all passes give equal outputs, so that R-Drop has no effect.

    Disabled dropout, an unused key and masks shared between passes all give s = 0
    without an error in training. This check compares passes on a few rows. It adds a
    little noise to the parameters, because a zero-initialized head hides every mask. If
    outputs are equal, it retries with more keys.

    Args:
      forward: ``(params, batch, key) -> outputs``, which runs twice, or a sequence with
        one function per pass. At least one pass must differ from the first.
      params: model parameters.
      batch: pytree of arrays with a leading batch axis, or scalars.
      key: a PRNG key.
      rows: number of rows to compare.
      noise: size of the noise on the parameters.

    Raises:
      EqualPassesError: all passes are equal.
      ValueError: a sequence with fewer than two functions.
    """
    few = on_any_mesh()(_rows)(batch, rows)
    num_passes = 2 if callable(forward) else len(forward)
    if num_passes < 2:
        raise ValueError(
            f"forward: expected a function, or one for each of two or more passes: "
            f"found {num_passes}"
        )

    @jax.jit
    def equal(params: Params, few: Batch, key: Key) -> Array:
        keys = jax.random.split(key, num_passes)
        return _passes_equal(forward, params, few, keys, noise)

    for attempt in range(_TRIES):
        if not equal(params, few, jax.random.fold_in(key, attempt)):
            return
    raise EqualPassesError(_EQUAL)


def warn_if_equal(
    forward: Forward | Sequence[Forward],
    params: Params,
    batch: Batch,
    keys: Key,
    *,
    due: Array,
    noise: float = 0.02,
) -> None:
    """Warn from within a compiled step if all passes over a batch are equal.

    Args:
      forward: ``(params, batch, key) -> outputs``, or a sequence with one per pass.
      params: model parameters.
      batch: any pytree.
      keys: one key per pass, on axis 0.
      due: boolean scalar; the passes run only if it is True.
      noise: size of the noise on the parameters, see `check_stochastic`.
    """

    def look() -> None:
        equal = _passes_equal(forward, params, batch, keys, noise)
        jax.debug.callback(_warn, equal)

    jax.lax.cond(due, look, lambda: None)


def _warn(equal: Any) -> None:
    if np.all(equal):
        warnings.warn(_EQUAL, EqualPassesWarning, stacklevel=2)


def _passes_equal(
    forward: Forward | Sequence[Forward],
    params: Params,
    batch: Batch,
    keys: Key,
    noise: float,
) -> Array:
    """Return a boolean scalar: all passes equal the first, up to rounding."""
    moved = jax.tree.map(lambda x: _moved(x, noise), params)
    forwards = _one_each(forward, len(keys))
    outputs = [f(moved, batch, keys[i]) for i, f in enumerate(forwards)]
    first, *others = (jax.tree.leaves(output) for output in outputs)
    close = [
        jnp.allclose(
            x.astype(jnp.float32), y.astype(jnp.float32), rtol=1e-5, equal_nan=True
        )
        for other in others
        for x, y in zip(first, other, strict=True)
    ]
    return jnp.all(jnp.stack(close))


def _rows(batch: Batch, rows: int) -> Batch:
    return jax.tree.map(lambda x: x[:rows] if jnp.ndim(x) else x, batch)


def _moved(x: Array, size: float) -> Array:
    """Add a fixed cosine wave, which serves as noise and compiles much faster."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    wave = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    return x + (size * wave).astype(x.dtype)
