"""Translation: an encoder-decoder over BPE subwords, decoded by beam search."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.data import tokenizers
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.errors import InputError
from rdrop_jax.models.embeddings import POSITIONS
from rdrop_jax.models.layers import ACTIVATIONS
from rdrop_jax.models.seq2seq import SHARE, Seq2Seq
from rdrop_jax.pretrained import weight_files
from rdrop_jax.tasks.field_checks import check_choices, check_least
from rdrop_jax.tasks.seq2seq import task
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.scores import TextMetrics
from rdrop_jax.tasks.seq2seq.translator import Answer, Seq2SeqSpec, search_options
from rdrop_jax.tasks.translation import marian, moses, sentencepieces, translation_sets
from rdrop_jax.tasks.translation import scores as scoring
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import write_on_process_0
from rdrop_jax.training.task import Task

Split = Callable[[str], Pairs]
SCORES = ("bleu", "chrf", "exact_match", "loss", "perplexity")


def build(
    config: ConfigDict, workdir: Path | None = None, *, resuming: bool = True
) -> Task:
    """Build the task of a config with ``task="translation"``.

    Args:
      config: config of the run.
      workdir: folder with the vocabularies; None calls `make_vocabularies`.
      resuming: False writes the vocabularies.

    Returns:
      The task.

    Raises:
      InputError: a field is out of range, or the vocabularies are not those of the
        run.
    """
    check_config(config)
    commit = workdir_lib.recorded_commit(config, workdir)
    find = functools.cache(lambda: translation_sets.find(config.data, commit))

    def split(name: str) -> Pairs:
        return find().splits[name]()

    if workdir is not None and not resuming:
        write_on_process_0(lambda: write_vocabularies(config, split, workdir))
    vocabularies = (
        make_vocabularies(config, split)
        if workdir is None
        else tokenizers.load(workdir, sentencepieces.from_text)
    )
    return with_vocabularies(config, vocabularies, workdir, find=find)


def with_vocabularies(
    config: ConfigDict,
    vocabularies: Vocabularies,
    workdir: Path | None = None,
    *,
    find: Callable[[], PairSet] | None = None,
) -> Task:
    """Build the task for given vocabularies."""
    find = find or functools.partial(translation_sets.find, config.data)
    check_marian(config, vocabularies)
    spec = make_spec(config, vocabularies)
    made = task.make_task(config, spec, make_metrics(config), find, workdir)
    if config.model.name != "marian":
        return made
    family = marian.family(spec.make_model(config), vocabularies, generation(config))
    return dataclasses.replace(made, pretrained=family)


def check_marian(config: ConfigDict, vocabularies: Vocabularies) -> None:
    """Check that a Marian model, and no other model, has a Marian vocabulary."""
    name = config.model.name
    if (name == "marian") != sentencepieces.is_marian(vocabularies):
        found = "SentencePiece" if name != "marian" else "trained byte pairs"
        raise InputError(
            f"model.name={name}: expected another vocabulary, found {found}. Set "
            "model.name=marian together with init_from=hf:ORG/NAME of a Marian model"
        )


def generation(config: ConfigDict) -> dict[str, Any]:
    """Return the beam-search settings in the format of generation_config.json."""
    return {
        "num_beams": config.eval.beam,
        "early_stopping": True,
        "length_penalty": config.eval.length_penalty,
        "max_length": config.data.max_length + 1,
    }


def make_spec(config: ConfigDict, vocabularies: Vocabularies) -> Seq2SeqSpec:
    """Make the specification of translation."""
    data, score = config.data, config.eval

    def limits(source: int) -> tuple[int, int]:
        most = int(score.max_length_a * source + score.max_length_b)
        return 0, min(data.max_length - 1, most)

    return Seq2SeqSpec(
        make_model=functools.partial(
            make_model,
            source_size=len(vocabularies.source),
            target_size=len(vocabularies.target),
        ),
        vocabularies=vocabularies,
        # Like Hugging Face's generate, which forces the end of a Marian translation.
        search=search_options(
            config, vocabularies, free_end=config.model.name == "marian"
        ),
        limits=limits,
        preprocess=moses.make_tokenize(data.source) if data.moses else str,
        postprocess=moses.make_detokenize(data.target) if data.moses else str,
    )


def make_metrics(config: ConfigDict) -> TextMetrics:
    """Make the scores of translation."""
    data = config.data
    shown = moses.make_detokenize(data.target) if data.moses else str
    used = scoring.chosen(config.eval.bleu, data.target)

    def compute(answers: list[Answer], pairs: Pairs) -> dict[str, float]:
        hypotheses, references = [a.texts[0] for a in answers], pairs.targets
        if data.lowercase:
            references = [[text.lower() for text in row] for row in references]
        if used not in ("none", "compound"):
            hypotheses, *references = (
                [shown(text) for text in texts] for texts in (hypotheses, *references)
            )
        return scoring.scores(hypotheses, references, used)

    return TextMetrics(
        names=SCORES,
        compute=compute,
        signatures=lambda pairs: scoring.signatures(used, pairs.targets),
        problem=lambda pairs: scoring.misfit(
            pairs.target, config.eval.bleu, data.target
        ),
    )


def write_vocabularies(config: ConfigDict, split: Split, workdir: Path) -> None:
    """Write the vocabularies of a new run to its workdir.

    Raises:
      InputError: BLEU's default tokenizer does not fit the references.
    """
    bleu, target = config.eval.bleu, config.data.target
    if bleu == scoring.AUTO:
        problem = scoring.misfit(split("validation").target, bleu, target)
        if problem:
            raise InputError(problem)
    tokenizers.save(make_vocabularies(config, split), workdir)


def check_config(config: ConfigDict) -> None:
    """Check the config fields specific to translation.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    task.check_config(config)
    data, score = config.data, config.eval
    choices = {
        "eval.bleu": (score.bleu, (scoring.AUTO, *scoring.TOKENIZE)),
        "model.activation": (config.model.activation, tuple(ACTIVATIONS)),
        "model.positions": (config.model.positions, POSITIONS),
        "model.share": (config.model.share, SHARE),
    }
    check_choices(choices)
    least = {
        "eval.max_length_a": (score.max_length_a, 0),
        "eval.max_length_b": (score.max_length_b, 0),
    }
    check_least(least)
    if config.model.share == "all" and not data.joint_vocabulary:
        raise InputError(
            "model.share=all: expected one vocabulary for both languages, found "
            "data.joint_vocabulary=False. Set model.share=decoder"
        )
    if data.moses:
        moses.check_installed("data.moses")


def make_model(config: ConfigDict, source_size: int, target_size: int) -> Seq2Seq:
    """Build the module described by ``config.model`` for these vocabulary sizes."""
    m = config.model
    return task.make_model(
        config,
        target_size,
        source_vocab_size=source_size,
        share=m.share,
        pre_norm=m.pre_norm,
        activation=m.activation,
        positions=m.positions,
        position_offset=2 if m.positions == "fairseq" else 0,
        max_length=config.data.max_length,
        logits_bias=m.name == "marian",
    )


def _vocabularies_of(
    init_from: str, load: Callable[[Path], Vocabularies]
) -> Vocabularies | None:
    """Return the vocabularies of a workdir or of a Marian model."""
    path = Path(init_from)
    if path.exists() and weight_files.is_weights(path):
        return sentencepieces.read(path if path.is_dir() else path.parent)
    workdir, _ = workdir_lib.split_checkpoint(init_from)
    return load(workdir) if (workdir / tokenizers.FOLDER).is_dir() else None


def make_vocabularies(config: ConfigDict, split: Split) -> Vocabularies:
    """Load or train the vocabularies of a new run.

    In order of precedence: (1) those of the workdir or Marian model ``init_from``,
    which its parameters require, (2) those of the workdir ``data.vocabulary``, (3)
    newly trained ones.

    Raises:
      InputError: (1) and (2) differ, or a model with one shared embedding table gets
        two vocabularies.
    """
    data = config.data
    load = functools.partial(tokenizers.load, make=sentencepieces.from_text)
    named = [load(Path(data.vocabulary))] if data.vocabulary else []
    found = _vocabularies_of(config.init_from, load) if config.init_from else None
    if found:
        if any(found.provenance() != other.provenance() for other in named):
            raise InputError(
                f"data.vocabulary: expected that of init_from={config.init_from}, or "
                f"none, found another in {data.vocabulary}"
            )
        named = [found]
    if named:
        if config.model.share == "all" and not (
            named[0].joint or sentencepieces.is_marian(named[0])
        ):
            raise InputError(
                "model.share=all: expected one vocabulary for both languages, found "
                f"one for each in {config.init_from or data.vocabulary}. Set "
                "model.share=decoder"
            )
        return named[0]
    train = split("train").lowercased() if data.lowercase else split("train")
    if data.joint_vocabulary:
        texts = [*train.source, *train.target]
        joint = tokenizers.train("joint", texts, data.vocab_size)
        return Vocabularies(joint, joint)
    return Vocabularies(
        tokenizers.train("source", train.source, data.vocab_size),
        tokenizers.train("target", train.target, data.vocab_size),
    )
