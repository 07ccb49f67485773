"""Translation: an encoder-decoder over subword pairs, decoded by beam search."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.passes import Batch, Params
from rdrop_jax.core.rdrop import rdrop_loss
from rdrop_jax.data import encoded, moses, pair_sets, token_batches, tokenizers
from rdrop_jax.data.parallel import Pairs
from rdrop_jax.data.token_batches import TokenBatches
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.errors import InputError
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.seq2seq import PARTITION_RULES, SIZES, Seq2Seq, Size
from rdrop_jax.runtime import workdir as workdir_lib
from rdrop_jax.scoring import translation as scoring
from rdrop_jax.tasks.base import Task
from rdrop_jax.tasks.fields import check_choices, check_least
from rdrop_jax.tasks.translation_scores import make_evaluator, make_samples
from rdrop_jax.tasks.translator import Translator, make_predictor

Split = Callable[[str], Pairs]
SCORES = ("bleu", "chrf", "exact_match", "loss", "perplexity")


def build(config: ConfigDict, workdir: Path | None = None) -> Task:
    """The task of a config whose ``task`` is translation.

    Args:
      config: of the run.
      workdir: holds its vocabularies; None makes them from the training pairs.

    Returns:
      The task.

    Raises:
      InputError: a field out of range, or vocabularies that are not the run's.
    """
    check(config)
    split = functools.cache(lambda name: pair_sets.find(config.data).splits[name]())
    vocabularies = (
        make_vocabularies(config, split)
        if workdir is None
        else tokenizers.load(workdir)
    )
    module = make_model(config, len(vocabularies.source), len(vocabularies.target))
    forward = linen_forward(
        module,
        lambda batch: (batch["src"], batch["src_where"], batch["inputs"]),
        train={"train": True},
        evaluate={"train": False},
    )
    translator = Translator(config, module, vocabularies)
    encode = functools.cache(
        lambda name: encode_split(config, split(name), vocabularies)
    )

    def loss(
        logits: jax.Array, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        return rdrop_loss(
            logits,
            batch["labels"],
            **objective,
            where=batch["where"],
            label_smoothing=config.rdrop.label_smoothing,
            smoothing=config.rdrop.smoothing,
            divergence=config.rdrop.divergence,
            stop_gradient=config.rdrop.stop_gradient,
        )

    return Task(
        init=functools.partial(init_params, module),
        forward=forward,
        loss=loss,
        train_data=functools.cache(lambda: make_train_data(config, encode("train"))),
        scores=SCORES,
        evaluators={
            name: functools.partial(
                make_evaluator, config, forward, translator, split, encode, name
            )
            for name in pair_sets.SPLITS
        },
        predictor=lambda mesh: make_predictor(translator, split),
        partition_rules=PARTITION_RULES,
        provenance=lambda: (
            pair_sets.find(config.data).provenance()
            | vocabularies.provenance()
            | scoring.signatures(["a"], ["a"], config.eval.bleu)
        ),
        notes=lambda: encode("train").notes,
        samples=lambda mesh: make_samples(translator, split),
    )


def prepare(config: ConfigDict, workdir: Path, *, begun: bool) -> None:
    """Makes the vocabularies of a run before its first step, in its workdir."""
    check(config)

    def make() -> Vocabularies:
        data = config.data
        return make_vocabularies(config, lambda n: pair_sets.find(data).splits[n]())

    tokenizers.ensure(workdir, make, begun=begun)


def check(config: ConfigDict) -> None:
    """Checks the fields that are translation's own.

    Raises:
      InputError: names the field, what was expected and what was found.
    """
    data, score = config.data, config.eval
    choices = {
        "data.overlong": (data.overlong, encoded.OVERLONG),
        "eval.bleu": (score.bleu, scoring.TOKENIZE),
        "model.share": (config.model.share, ("all", "decoder", "none")),
        "model.name": (config.model.name, tuple(SIZES)),
    }
    check_choices(choices)
    least = {
        "data.vocab_size": (data.vocab_size, 8),
        "data.max_length": (data.max_length, 2),
        "data.buckets": (data.buckets, 1),
        "data.rows_multiple": (data.rows_multiple, 1),
        "eval.beam": (score.beam, 1),
        "eval.n_best": (score.n_best, 1),
        "eval.max_length_a": (score.max_length_a, 0),
        "eval.max_length_b": (score.max_length_b, 0),
    }
    check_least(least)
    if score.n_best > score.beam:
        raise InputError(
            f"eval.n_best: expected at most eval.beam={score.beam}, found "
            f"{score.n_best}"
        )
    if config.model.share == "all" and not data.joint_vocabulary:
        raise InputError(
            "model.share=all: expected one vocabulary for both languages, found "
            "data.joint_vocabulary=False; take model.share=decoder"
        )
    if data.moses:
        moses.check("data.moses")


def make_model(config: ConfigDict, source_size: int, target_size: int) -> Seq2Seq:
    """The module that ``config.model`` describes, for vocabularies of these sizes."""
    m = config.model
    chosen = {k: m[k] for k in Size._fields if m[k] is not None}
    for name, value in chosen.items():
        if value < 1:
            raise InputError(f"model.{name}: expected at least 1, found {value}")
    size = SIZES[m.name]._replace(**chosen)
    if size.width % size.heads:
        raise InputError(
            f"model.heads: expected a divisor of width {size.width}, found {size.heads}"
        )
    return Seq2Seq(
        vocab_size=target_size,
        size=size,
        rates=Rates(
            m.dropout, m.attention_dropout, m.activation_dropout, m.layer_dropout
        ),
        source_vocab_size=source_size,
        share=m.share,
        pre_norm=m.pre_norm,
        activation=m.activation,
        positions=m.positions,
        position_offset=2 if m.positions == "fairseq" else 0,
        max_length=config.data.max_length,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
        masks=m.masks,
    )


def init_params(module: Seq2Seq, key: jax.Array) -> Params:
    """New parameters."""
    ids = jnp.zeros((1, 2), jnp.int32)
    where = jnp.ones((1, 2), bool)
    return module.init(key, ids, where, ids, train=False)["params"]


def make_vocabularies(config: ConfigDict, split: Split) -> Vocabularies:
    """Those that a run starts with.

    In this order: (1) of the workdir that ``init_from`` names, whose parameters make
    sense with no other, (2) of the workdir ``data.vocabulary``, (3) new ones.

    Raises:
      InputError: (1) and (2) differ, or they are two where the model has one table.
    """
    data = config.data
    named = [tokenizers.load(Path(data.vocabulary))] if data.vocabulary else []
    first, _ = workdir_lib.split_checkpoint(config.init_from)
    if config.init_from and (first / tokenizers.FOLDER).is_dir():
        found = tokenizers.load(first)
        if any(found.provenance() != other.provenance() for other in named):
            raise InputError(
                f"data.vocabulary: expected that of init_from={config.init_from}, or "
                f"none, found another in {data.vocabulary}"
            )
        named = [found]
    if named:
        if config.model.share == "all" and not named[0].joint:
            raise InputError(
                "model.share=all: expected one vocabulary for both languages, found "
                f"one for each in {config.init_from or data.vocabulary}; take "
                "model.share=decoder"
            )
        return named[0]
    train = prepared(config, split("train"))
    if data.joint_vocabulary:
        texts = [*train.source, *train.target]
        joint = tokenizers.train("joint", texts, data.vocab_size)
        return Vocabularies(joint, joint)
    return Vocabularies(
        tokenizers.train("source", train.source, data.vocab_size),
        tokenizers.train("target", train.target, data.vocab_size),
    )


def prepared(config: ConfigDict, pairs: Pairs) -> Pairs:
    """Pairs as the model reads them: lower-cased where it knows no capitals."""
    if not config.data.lowercase:
        return pairs
    lower = [[text.lower() for text in side] for side in (pairs.source, pairs.target)]
    return Pairs(lower[0], lower[1], pairs.origin, pairs.notes)


def encode_split(
    config: ConfigDict, pairs: Pairs, vocabularies: Vocabularies
) -> encoded.Encoded:
    """Pairs as ids."""
    return encoded.encode(
        prepared(config, pairs),
        vocabularies,
        max_length=config.data.max_length,
        overlong=config.data.overlong,
    )


def make_train_data(config: ConfigDict, pairs: encoded.Encoded) -> TokenBatches:
    """Shuffled batches of about ``batch_size`` tokens."""
    source, target = pairs.source, pairs.target
    lengths = token_batches.choose_lengths(
        source.lengths, target.lengths, config.data.buckets
    )
    multiple = config.data.rows_multiple * config.accum_steps
    return TokenBatches(
        source,
        target,
        token_batches.make_shapes(lengths, config.batch_size, multiple),
        seed=config.seed,
        process=(jax.process_index(), jax.process_count()),
    )
