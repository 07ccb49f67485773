"""Sequence-to-sequence code shared by translation and summarization."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.core.passes import Batch, Forward, Key, Params, View
from rdrop_jax.data import tables
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.data.tokenizers import Special
from rdrop_jax.errors import InputError
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.seq2seq import PARTITION_RULES, SIZES, Seq2Seq
from rdrop_jax.tasks import cutoff
from rdrop_jax.tasks.field_checks import (
    SEQ2SEQ_VIEWS,
    SIMCUT,
    check_choices,
    check_heads,
    check_least,
    check_positions,
    resized,
)
from rdrop_jax.tasks.pass_rates import pass_forwards
from rdrop_jax.tasks.seq2seq import encoded, token_batches
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.scores import (
    TextMetrics,
    make_evaluator,
    make_examples,
    make_samples,
)
from rdrop_jax.tasks.seq2seq.token_batches import TokenBatches
from rdrop_jax.tasks.seq2seq.translator import (
    Seq2SeqSpec,
    make_predictor,
    make_translate,
)
from rdrop_jax.tasks.vocabulary_loss import make_loss
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import process
from rdrop_jax.training.task import Report, StepOptions, Task

# Maximum |eval.length_penalty|: lengths to this power fit into float32.
_PENALTY = 10


def make_task(
    config: ConfigDict,
    spec: Seq2SeqSpec,
    metrics: TextMetrics,
    find: Callable[[], PairSet],
    workdir: Path | None,
) -> Task:
    """Build a task from its components.

    Args:
      config: config of the run.
      spec: specification of the task.
      metrics: scores of the task.
      find: finds the dataset of the config.
      workdir: folder of the run; None if there is none.

    Returns:
      The task.
    """
    find = functools.cache(find)
    recorded = workdir_lib.recorded_data(workdir)

    @functools.cache
    def split(name: str) -> Pairs:
        if recorded and find().held_out and name in ("train", *find().held_out):
            workdir_lib.check_unchanged(recorded, find().train(), "data.files.train")
        return find().splits[name]()

    vocabularies = spec.vocabularies
    special, vocab_size = vocabularies.target.special, len(vocabularies.target)
    encode = functools.cache(
        lambda name: encoded.encode(split(name), vocabularies, config.data)
    )
    translate = make_translate(config, spec)
    module = spec.make_model(config)
    forward, tied = make_forward(module), module.share != "none"
    evaluator = functools.partial(
        make_evaluator, config, forward, special, metrics, translate, split, encode
    )
    return Task(
        init=functools.partial(init_params, module),
        forward=forward,
        loss=make_loss(config, vocab_size),
        train_data=functools.cache(
            lambda: make_train_data(config, encode("train"), special)
        ),
        scores=metrics.names,
        evaluators={name: functools.partial(evaluator, name) for name in SPLITS},
        examples={
            name: functools.partial(make_examples, metrics, translate, split, name)
            for name in (SPLITS if metrics.compute_each else ())
        },
        predictor=lambda mesh: make_predictor(config, spec, translate, split),
        provenance=lambda: find().provenance() | vocabularies.provenance(),
        step=StepOptions(
            forwards=pass_forwards(
                config, lambda changed: make_forward(spec.make_model(changed))
            ),
            views=make_views(config, module.size.width, special),
            out_axes=LinearOutput(0, None, None) if tied else 0,
            sharded_loss=(
                functools.partial(make_loss, config, vocab_size) if tied else None
            ),
            partition_rules=PARTITION_RULES,
        ),
        report=Report(
            size=lambda name: f"{len(split(name)):,} rows",
            notes=lambda: encode("train").notes,
            signatures=lambda: metrics.signatures(
                split("test" if config.eval.test else "validation")
            ),
            samples=lambda mesh: make_samples(spec, translate, split),
        ),
        generates=True,
    )


def make_forward(module: Seq2Seq) -> Forward:
    """Make a forward that returns hidden states and the tied kernel, or else logits.

    The output bias comes from pretrained files, is usually zero, and is not trained.
    """
    hidden = module.share != "none"
    apply = linen_forward(
        module,
        lambda batch: (
            *(batch[name] for name in ("src", "src_where", "inputs")),
            *(batch.get(name) for name in ("src_keep", "keep")),
        ),
        train={"train": True, "return_hidden": hidden},
        evaluate={"train": False, "return_hidden": hidden},
    )
    if not hidden:
        return apply

    def forward(params: Params, batch: Batch, key: Key | None) -> LinearOutput:
        bias = params.get("logits_bias")
        return LinearOutput(
            apply(params, batch, key),
            params["embedding"].astype(module.dtype),
            None if bias is None else jax.lax.stop_gradient(bias),
        )

    return forward


def make_views(
    config: ConfigDict, width: int, special: Special
) -> View | tuple[View, View] | None:
    """Make the view of ``rdrop.views``, which never cuts the tokens EOS and BOS.

    SimCut cuts the second pass alone.

    Args:
      config: config of the run.
      width: number of features of an embedding.
      special: special tokens; texts may begin with one, as BART's do.
    """
    cut = cutoff.make_cut(config, SEQ2SEQ_VIEWS, width)
    if cut is None:
        return None
    first = 0 if special.bos is None else 1

    def view(batch: Batch, key: Key) -> Batch:
        of_source, of_target = jax.random.split(key)
        source = batch["src_where"]
        before_end = jnp.pad(source[:, 1:], ((0, 0), (0, 1)))
        return batch | {
            "src_keep": cut(of_source, before_end.at[:, :first].set(False)),
            "keep": cut(of_target, batch["where"].at[:, : first + 1].set(False)),
        }

    r = config.rdrop
    if r.views != SIMCUT:
        return view
    two = resolve_num_passes(r.alpha, r.num_passes) == 2
    return (lambda batch, key: batch, view) if two else None


def check_config(config: ConfigDict) -> None:
    """Check the config fields shared by all sequence-to-sequence tasks.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    data, score = config.data, config.eval
    check_choices(
        {
            "data.overlong": (data.overlong, encoded.OVERLONG),
            "data.quoting": (data.quoting, tables.QUOTING),
            "model.name": (config.model.name, tuple(SIZES)),
        }
    )
    sizes = SIZES[config.model.name]
    check_choices({"model.size": (config.model.size, tuple(sizes))})
    least = {
        "data.vocab_size": (data.vocab_size, 8),
        "data.max_length": (data.max_length, 2),
        "data.buckets": (data.buckets, 1),
        "data.rows_multiple": (data.rows_multiple, 1),
        "eval.beam": (score.beam, 1),
        "eval.n_best": (score.n_best, 1),
    }
    check_least(least)
    if not abs(score.length_penalty) <= _PENALTY:
        raise InputError(
            f"eval.length_penalty: expected from {-_PENALTY} to {_PENALTY}, found "
            f"{score.length_penalty}"
        )
    if score.n_best > score.beam:
        raise InputError(
            f"eval.n_best: expected at most eval.beam={score.beam}, found "
            f"{score.n_best}"
        )


def make_model(config: ConfigDict, vocab_size: int, **options: Any) -> Seq2Seq:
    """Build the module described by ``config.model``.

    Args:
      config: config of the run.
      vocab_size: size of the target vocabulary.
      options: further options of `Seq2Seq`.
    """
    m = config.model
    size = resized(m, SIZES[m.name][m.size])
    check_heads(size)
    check_positions(size, options.get("positions", Seq2Seq.positions))
    return Seq2Seq(
        vocab_size=vocab_size,
        size=size,
        rates=Rates(
            m.dropout, m.attention_dropout, m.activation_dropout, m.layer_dropout
        ),
        dtype=jnp.dtype(m.dtype),
        remat=m.remat and m.remat_policy,
        masks=m.masks,
        fused_attention=m.fused_attention,
        **options,
    )


def init_params(module: Seq2Seq, key: jax.Array) -> Params:
    """Initialize parameters."""
    ids = jnp.zeros((1, 2), jnp.int32)
    where = jnp.ones((1, 2), bool)
    return module.init(key, ids, where, ids, train=False)["params"]


def make_train_data(
    config: ConfigDict, pairs: encoded.Encoded, special: Special
) -> TokenBatches:
    """Make shuffled batches of about ``batch_tokens`` tokens."""
    source, target = pairs.source, pairs.target
    lengths = token_batches.choose_lengths(
        source.lengths, target.lengths, config.data.buckets
    )
    multiple = config.data.rows_multiple * config.accum_steps
    return TokenBatches(
        source,
        target,
        token_batches.make_shapes(lengths, config.batch_tokens, multiple),
        seed=config.seed,
        process=process(),
        special=special,
    )
