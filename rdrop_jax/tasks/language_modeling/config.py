"""Config of language models: field checks, module and loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.core.kernels import adaptive_softmax as adaptive_loss
from rdrop_jax.core.kernels.adaptive_softmax import adaptive_rdrop_loss
from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.passes import Batch
from rdrop_jax.errors import InputError
from rdrop_jax.models import adaptive, decoder
from rdrop_jax.models.adaptive import AdaptiveDecoder
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.decoder import CausalDecoder, Decoder
from rdrop_jax.models.embeddings import POSITIONS
from rdrop_jax.models.layers import ACTIVATIONS
from rdrop_jax.models.outputs import AdaptiveOutput
from rdrop_jax.tasks import vocabulary_loss
from rdrop_jax.tasks.field_checks import (
    check_choices,
    check_heads,
    check_least,
    check_positions,
    resized,
)
from rdrop_jax.tasks.language_modeling import running_text, vocabularies
from rdrop_jax.tasks.language_modeling.generation import MODES

ADAPTIVE = "adaptive_transformer"
SIZES = {"transformer": decoder.SIZES, ADAPTIVE: adaptive.SIZES}


def check_config(config: ConfigDict) -> None:
    """Check the config fields specific to language models.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    m, data, score = config.model, config.data, config.eval
    choices = {
        "data.tokens": (data.tokens, vocabularies.KINDS),
        "eval.predict": (score.predict, MODES),
        "model.activation": (m.activation, tuple(ACTIVATIONS)),
        "model.name": (m.name, tuple(SIZES)),
        "model.positions": (m.positions, POSITIONS),
        "rdrop.clusters": (config.rdrop.clusters, adaptive_loss.DIVERGENCES),
    }
    running_text.check_name(data)
    check_choices(choices)
    check_choices({"model.size": (m.size, tuple(SIZES[m.name]))})
    least = {
        "data.block_size": (data.block_size, 1),
        "data.min_count": (data.min_count, 0),
        "data.vocab_size": (data.vocab_size, 8 if data.tokens == "bpe" else 0),
        "eval.block_size": (score.block_size, 1),
        "eval.context": (score.context, 0),
        "eval.new_tokens": (score.new_tokens, 1),
        "eval.temperature": (score.temperature, 0),
    }
    check_least(least)
    if score.context >= score.block_size:
        raise InputError(
            f"eval.context: expected less than eval.block_size={score.block_size}, "
            f"found {score.context}"
        )
    longest = max(data.block_size, score.block_size)
    if score.new_tokens >= longest:
        raise InputError(
            f"eval.new_tokens: expected less than the model's {longest} positions, the "
            f"larger block_size, found {score.new_tokens}"
        )
    if not 0 < score.top_p <= 1:
        raise InputError(f"eval.top_p: expected in (0, 1], found {score.top_p}")
    if data.vocabulary and data.tokens != "words":
        raise InputError(
            f"data.vocabulary: expected no file with data.tokens={data.tokens}, found "
            f"{data.vocabulary!r}"
        )
    if m.name == ADAPTIVE:
        _check_clusters(config)


def check_trained_positions(config: ConfigDict) -> None:
    """Check that training reaches all learned positions; earlier versions did not.

    Raises:
      InputError: ``eval.block_size`` needs more positions.
    """
    trained, used = config.data.block_size, config.eval.block_size
    if config.model.positions == "learned" and used > trained:
        raise InputError(
            f"eval.block_size: expected at most data.block_size={trained} with "
            f"model.positions=learned, because later positions are not trained, found "
            f"{used}"
        )


def _check_clusters(config: ConfigDict) -> None:
    """Check that the adaptive-softmax loss supports the R-Drop options."""
    r, why = config.rdrop, f"with model.name={config.model.name}"
    wanted: dict[str, tuple[Any, Any]] = {
        "rdrop.divergence": (r.divergence, "symmetric_kl"),
        "rdrop.stop_gradient": (r.stop_gradient, "none"),
        "rdrop.label_smoothing": (r.label_smoothing, 0.0),
    }
    for field, (value, only) in wanted.items():
        if value != only:
            raise InputError(f"{field}: expected {only} {why}, found {value}")
    if resolve_num_passes(r.alpha, r.num_passes) > 2:
        raise InputError(
            f"rdrop.num_passes: expected at most 2 {why}, found {r.num_passes}"
        )


def make_model(config: ConfigDict, vocab_size: int) -> CausalDecoder:
    """Build the module described by ``config.model`` for a vocabulary size."""
    m = config.model
    size = resized(m, SIZES[m.name][m.size])
    check_heads(size)
    check_positions(size, m.positions)
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "size": size,
        "rates": Rates(
            m.dropout, m.attention_dropout, m.activation_dropout, m.layer_dropout
        ),
        "activation": m.activation,
        "positions": m.positions,
        "max_length": max(config.data.block_size, config.eval.block_size),
        "dtype": jnp.dtype(m.dtype),
        "remat": m.remat and m.remat_policy,
        "masks": m.masks,
        "fused_attention": m.fused_attention,
    }
    if m.name != ADAPTIVE:
        return Decoder(**shared)
    cutoffs = tuple(m.cutoffs)
    try:
        adaptive.clusters(cutoffs, vocab_size, size.width, m.factor)
    except ValueError as error:
        raise InputError(f"model.cutoffs, model.factor: {error}") from error
    return AdaptiveDecoder(
        **shared, cutoffs=cutoffs, factor=m.factor, softmax_dropout=m.softmax_dropout
    )


def out_axes(config: ConfigDict) -> LinearOutput | AdaptiveOutput:
    """Return stacking axes: passes stack hidden states and share the kernels."""
    if config.model.name == ADAPTIVE:
        return AdaptiveOutput(0, None)
    return LinearOutput(0, None, None)


def make_loss(config: ConfigDict, vocab_size: int, mesh: Mesh | None) -> Loss:
    """Make the loss: adaptive softmax, or that of `vocabulary_loss`.

    Args:
      config: config of the run.
      vocab_size: number of tokens.
      mesh: mesh of several devices; None for one device.

    Returns:
      ``(outputs, batch, **objective) -> (scalar, metrics)``.
    """
    if config.model.name != ADAPTIVE:
        return vocabulary_loss.make_loss(config, vocab_size, mesh)

    def loss(
        outputs: AdaptiveOutput, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        return adaptive_rdrop_loss(
            *outputs,
            batch["labels"],
            where=batch["where"],
            divergence=config.rdrop.clusters,
            mesh=mesh,
            **objective,
        )

    return loss
