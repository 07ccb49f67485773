"""Language modelling: the next token of running text."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rdrop_jax.core import adaptive as adaptive_loss
from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.adaptive import adaptive_rdrop_loss
from rdrop_jax.core.large_vocab import LinearOutput, large_vocab_rdrop_loss
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.core.rdrop import rdrop_loss, resolve_num_passes
from rdrop_jax.core.step import Loss
from rdrop_jax.data import running_text, token_files, vocabularies
from rdrop_jax.data.batches import TrainBatches
from rdrop_jax.data.blocks import Blocks, Windows
from rdrop_jax.data.token_files import Corpus, Split
from rdrop_jax.errors import InputError
from rdrop_jax.models import adaptive, decoder
from rdrop_jax.models.adaptive import AdaptiveDecoder
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.decoder import Decoder, Size
from rdrop_jax.models.embeddings import POSITIONS
from rdrop_jax.models.layers import ACTIVATIONS
from rdrop_jax.models.outputs import AdaptiveOutput, logits, nll
from rdrop_jax.tasks.base import Evaluator, Task
from rdrop_jax.tasks.text_generation import (
    MODES,
    Sums,
    TextGenerator,
    make_predictor,
    nll_of_windows,
)

FOLDER = "text"
SIZES = decoder.SIZES | adaptive.SIZES
SCORES = ("perplexity", "bits_per_character", "loss")
# From so many words on, their logits are never made as a whole.
LARGE_VOCAB = 4096
_PROMPT = 16  # tokens of the prompt of the sample


def build(config: ConfigDict, workdir: Path | None = None) -> Task:
    """The task of a config whose ``task`` is language_model.

    Args:
      config: of the run.
      workdir: holds its text or, if that is prepared, its vocabulary; None makes both.

    Returns:
      The task.

    Raises:
      InputError: a field out of range, or a text that is not the run's.
    """
    check(config)
    corpus = load(config, workdir)
    vocabulary = corpus.vocabulary
    module = make_model(config, len(vocabulary))
    forward = linen_forward(
        module, "inputs", train={"train": True}, evaluate={"train": False}
    )
    sums = functools.cache(functools.partial(make_sums, forward))
    generator = TextGenerator(config, module, vocabulary)

    def lines(name: str) -> list[str]:
        return vocabulary.decode(split(corpus, name).ids).split("\n")

    return Task(
        init=functools.partial(init_params, module),
        forward=forward,
        loss=make_loss(config, len(vocabulary), None),
        sharded_loss=functools.partial(make_loss, config, len(vocabulary)),
        out_axes=_out_axes(config),
        train_data=functools.cache(
            lambda: make_train_data(config, split(corpus, "train"), vocabulary.end)
        ),
        scores=SCORES,
        evaluators={
            name: functools.partial(
                make_evaluator, config, sums, corpus, vocabulary.end, name
            )
            for name in token_files.SPLITS
        },
        predictor=lambda mesh: make_predictor(generator, sums(mesh), mesh, lines),
        partition_rules=decoder.PARTITION_RULES,
        provenance=lambda: dict(corpus.provenance),
        samples=lambda mesh: make_samples(generator, corpus),
    )


def prepare(config: ConfigDict, workdir: Path, *, begun: bool) -> None:
    """Writes the text of a run as ids into its workdir, before its first step.

    A prepared text stays where it is; its vocabulary goes into the workdir.
    """
    check(config)
    if not begun:
        texts = config.data.name not in running_text.PREPARED
        token_files.save(load(config, None), workdir / FOLDER, texts=texts)


def load(config: ConfigDict, workdir: Path | None) -> Corpus:
    """The text of a run, read from disk as it is needed."""
    data = config.data
    texts = None
    if data.name in running_text.PREPARED:
        texts = running_text.root(data) / data.name
    if workdir is not None:
        return token_files.load(workdir / FOLDER, texts)
    if texts is not None:
        return token_files.load(running_text.prepared(data))
    return running_text.corpus(data)


def split(corpus: Corpus, name: str) -> Split:
    """A split, which must be there."""
    if name not in corpus.splits:
        raise InputError(f"data.dir: expected {name}.bin of the run's text, found none")
    return corpus.splits[name]


def check(config: ConfigDict) -> None:
    """Checks the fields that are a language model's own.

    Raises:
      InputError: names the field, what was expected and what was found.
    """
    m, data, score = config.model, config.data, config.eval
    choices = {
        "data.name": (data.name, running_text.NAMES),
        "data.tokens": (data.tokens, vocabularies.KINDS),
        "eval.predict": (score.predict, MODES),
        "model.activation": (m.activation, tuple(ACTIVATIONS)),
        "model.name": (m.name, tuple(SIZES)),
        "model.positions": (m.positions, POSITIONS),
        "rdrop.clusters": (config.rdrop.clusters, adaptive_loss.DIVERGENCES),
    }
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(
                f"{field}: expected one of {', '.join(allowed)}, found {value!r}"
            )
    least = {
        "data.block_size": (data.block_size, 1),
        "data.min_count": (data.min_count, 0),
        "data.vocab_size": (data.vocab_size, 8 if data.tokens == "bpe" else 0),
        "eval.block_size": (score.block_size, 1),
        "eval.context": (score.context, 0),
        "eval.new_tokens": (score.new_tokens, 1),
        "eval.temperature": (score.temperature, 0),
    }
    for field, (value, low) in least.items():
        if value < low:
            raise InputError(f"{field}: expected at least {low}, found {value}")
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
            f"data.vocabulary: expected none where data.tokens={data.tokens}, found "
            f"{data.vocabulary!r}"
        )
    if m.name in adaptive.SIZES or data.vocab_size >= LARGE_VOCAB:
        _check_objective(config, m.name in adaptive.SIZES)


def _check_objective(config: ConfigDict, clusters: bool) -> None:
    """Refuses what the losses of large vocabularies do not know."""
    r = config.rdrop
    why = f"model.name={config.model.name}" if clusters else "a large vocabulary"
    wanted: dict[str, tuple[Any, Any]] = {
        "rdrop.divergence": (r.divergence, "symmetric_kl"),
        "rdrop.stop_gradient": (r.stop_gradient, "none"),
    }
    if clusters:
        wanted["rdrop.label_smoothing"] = (r.label_smoothing, 0.0)
    for field, (value, only) in wanted.items():
        if value != only:
            raise InputError(f"{field}: expected {only} with {why}, found {value}")
    if resolve_num_passes(r.alpha, r.num_passes) > 2:
        raise InputError(
            f"rdrop.num_passes: expected at most 2 with {why}, found {r.num_passes}"
        )


def make_model(config: ConfigDict, vocab_size: int) -> Decoder | AdaptiveDecoder:
    """The module that ``config.model`` describes, for so many words."""
    m = config.model
    chosen = {k: m[k] for k in Size._fields if m[k] is not None}
    for name, value in chosen.items():
        if value < 1:
            raise InputError(f"model.{name}: expected at least 1, found {value}")
    size = SIZES[m.name]._replace(**chosen)
    if size.width % size.heads or size.width % 2:
        raise InputError(
            f"model.width: expected an even multiple of {size.heads} heads, found "
            f"{size.width}"
        )
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
        "remat": m.remat,
        "masks": m.masks,
    }
    if m.name not in adaptive.SIZES:
        return Decoder(**shared)
    cutoffs = tuple(m.cutoffs)
    try:
        adaptive.clusters(cutoffs, vocab_size, size.width, m.factor)
    except ValueError as error:
        raise InputError(f"model.cutoffs, model.factor: {error}") from error
    return AdaptiveDecoder(
        **shared, cutoffs=cutoffs, factor=m.factor, softmax_dropout=m.softmax_dropout
    )


def init_params(module: Decoder | AdaptiveDecoder, key: jax.Array) -> Params:
    """New parameters."""
    return module.init(key, jnp.zeros((1, 2), jnp.int32), train=False)["params"]


def _out_axes(config: ConfigDict) -> LinearOutput | AdaptiveOutput:
    if config.model.name in adaptive.SIZES:
        return AdaptiveOutput(0, None)
    return LinearOutput(0, None, None)


def make_loss(config: ConfigDict, vocab_size: int, mesh: Mesh | None) -> Loss:
    """The objective, in the form that suits the vocabulary.

    Args:
      config: of the run.
      vocab_size: words.
      mesh: of several devices; None for one.

    Returns:
      ``(outputs, batch, **objective) -> (scalar, metrics)``.
    """
    r = config.rdrop
    large = vocab_size >= LARGE_VOCAB
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if large and vocab_size % tensor and config.model.name not in adaptive.SIZES:
        raise InputError(
            f"mesh.tensor: expected a divisor of the {vocab_size} words of the "
            f"vocabulary, found {tensor}"
        )

    def loss(
        outputs: Any, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        objective["where"] = batch["where"]
        labels = batch["labels"]
        if isinstance(outputs, AdaptiveOutput):
            return adaptive_rdrop_loss(
                *outputs, labels, divergence=r.clusters, **objective
            )
        objective["label_smoothing"] = r.label_smoothing
        objective["smoothing"] = r.smoothing
        if large:
            hidden, kernel, _ = outputs
            return large_vocab_rdrop_loss(
                hidden, kernel, labels, tied=True, mesh=mesh, **objective
            )
        return rdrop_loss(
            logits(outputs),
            labels,
            divergence=r.divergence,
            stop_gradient=r.stop_gradient,
            **objective,
        )

    return loss


def make_train_data(config: ConfigDict, text: Split, before: int) -> TrainBatches:
    """Shuffled blocks of the training text."""
    return TrainBatches(
        Blocks(text.ids, config.data.block_size, before),
        lambda row, rng: row,
        batch_size=config.batch_size,
        seed=config.seed,
        process=(jax.process_index(), jax.process_count()),
    )


def make_sums(forward: Forward, mesh: Mesh) -> Sums:
    """Minus the log-probability of what counts in each row, on every process."""

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def sums(params: Params, batch: Batch) -> jax.Array:
        each = nll(forward(params, batch, None), batch["labels"])
        return jnp.sum(jnp.where(batch["where"], each, 0.0), axis=1)

    return sums


def make_evaluator(
    config: ConfigDict,
    sums_on: Callable[[Mesh], Sums],
    corpus: Corpus,
    before: int,
    name: str,
    mesh: Mesh,
) -> Evaluator:
    """Perplexity of a whole split, every token once, with context before it."""
    text, sums = split(corpus, name), sums_on(mesh)
    windows = Windows(text.ids, config.eval.block_size, config.eval.context, before)

    def evaluate(params: Params) -> dict[str, float]:
        each = nll_of_windows(sums, mesh, params, windows, config.eval.batch_size)
        return scores(float(each.sum()), text)

    return evaluate


def scores(nll: float, text: Split) -> dict[str, float]:
    """What a text scores.

    Args:
      nll: minus the log-probability of the whole text, in nats.
      text: how long it is.

    Returns:
      ``perplexity`` per word and ``bits_per_character``, which do not depend on how a
      text is cut into tokens; ``loss`` per token, in nats; how many ``tokens``.
    """
    return {
        "perplexity": math.exp(min(nll / text.words, 700.0)),
        "bits_per_character": nll / math.log(2) / text.characters,
        "loss": nll / len(text.ids),
        "tokens": len(text.ids),
    }


def make_samples(
    generator: TextGenerator, corpus: Corpus
) -> Callable[[Params], list[str]]:
    """The first words of the test text, and how the model goes on."""

    def samples(params: Params) -> list[str]:
        ids = split(corpus, "test").ids[:_PROMPT].tolist()
        (found,) = generator.generate(params, [ids])
        texts = [corpus.vocabulary.decode(x) for x in (ids, found)]
        begun, new = (" ".join(text.split()) for text in texts)
        return [f"sample: {begun} ... {new}"]

    return samples
