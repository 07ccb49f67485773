"""Summarization: BART over byte-level subwords, with constrained beam search."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from rdrop_jax.data import subwords, tokenizer_files, tokenizers
from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.tasks.field_checks import check_choices, check_least
from rdrop_jax.tasks.seq2seq import task
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.scores import TextMetrics
from rdrop_jax.tasks.seq2seq.translator import Answer, Seq2SeqSpec, search_options
from rdrop_jax.tasks.summarization import scores as scoring
from rdrop_jax.tasks.summarization import summary_sets, weights
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import write_on_process_0
from rdrop_jax.training.task import Task

SCORES = (*scoring.NAMES, "loss", "perplexity")
# Options of `Seq2Seq` that define BART; not configurable.
BART = {
    "activation": "gelu",
    "positions": "learned",
    "position_offset": 2,
    "scale_embedding": False,
    "embedding_norm": True,
    "logits_bias": True,
}


def build(
    config: ConfigDict, workdir: Path | None = None, *, resuming: bool = True
) -> Task:
    """Build the task of a config with ``task="summarization"``.

    Args:
      config: config of the run.
      workdir: folder with the vocabulary; None loads or trains it again.
      resuming: False writes the vocabulary.

    Returns:
      The task.

    Raises:
      InputError: a field is out of range, or the vocabulary is not that of the run.
    """
    check_config(config)
    commit = workdir_lib.recorded_commit(config, workdir)
    find = functools.cache(lambda: summary_sets.find(config.data, commit))
    if workdir is None:
        return with_vocabulary(config, make_vocabulary(config, find), find=find)
    if not resuming:
        write_on_process_0(lambda: write_vocabulary(config, find, workdir))
    return with_vocabulary(config, tokenizers.load(workdir), workdir, find=find)


def with_vocabulary(
    config: ConfigDict,
    vocabularies: Vocabularies,
    workdir: Path | None = None,
    *,
    find: Callable[[], PairSet] | None = None,
) -> Task:
    """Build the task for a given vocabulary."""
    spec = make_spec(config, vocabularies)
    family = weights.family(
        spec.make_model(config), vocabularies.target, generation(config)
    )
    made = task.make_task(
        config,
        spec,
        make_metrics(config),
        find or functools.partial(summary_sets.find, config.data),
        workdir,
    )
    return dataclasses.replace(made, pretrained=family)


def write_vocabulary(
    config: ConfigDict, find: Callable[[], PairSet], workdir: Path
) -> None:
    """Write the vocabulary of a new run to its workdir.

    Raises:
      InputError: ROUGE's default tokenizer does not fit the references.
    """
    problem = ""
    if config.eval.rouge_tokenizer == "auto":
        problem = scoring.misfit(find().splits["validation"]().targets, "auto")
    if problem:
        raise InputError(problem)
    tokenizers.save(make_vocabulary(config, find), workdir)


def check_config(config: ConfigDict) -> None:
    """Check the config fields specific to summarization.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    task.check_config(config)
    data, score, positions = config.data, config.eval, config.model.max_positions
    check_choices({"eval.rouge_tokenizer": (score.rouge_tokenizer, scoring.TOKENIZERS)})
    least = {
        "data.max_target_length": (data.max_target_length, 3),
        "data.max_length": (data.max_length, 3),
        "eval.max_length": (score.max_length, 1),
        "eval.min_length": (score.min_length, 0),
        "eval.no_repeat_ngram": (score.no_repeat_ngram, 0),
        "eval.bootstrap": (score.bootstrap, 0),
    }
    check_least(least)
    longest = {
        "data.max_length": data.max_length,
        "data.max_target_length": data.max_target_length,
        "eval.max_length": score.max_length + 1,
    }
    for field, found in longest.items():
        if found > positions:
            end = ", with the end token" if field == "eval.max_length" else ""
            raise InputError(
                f"{field}: expected at most model.max_positions={positions}, found "
                f"{found}{end}"
            )
    if score.min_length > score.max_length:
        raise InputError(
            f"eval.min_length: expected at most eval.max_length={score.max_length}, "
            f"found {score.min_length}"
        )


def make_model(config: ConfigDict, vocab_size: int) -> Seq2Seq:
    """Build the BART module described by ``config.model``."""
    return task.make_model(
        config, vocab_size, max_length=config.model.max_positions, **BART
    )


def make_vocabulary(config: ConfigDict, find: Callable[[], PairSet]) -> Vocabularies:
    """Load or train the vocabulary of a new run.

    In order of precedence: ``data.tokenizer``; the tokenizer next to the parameters of
    ``init_from``; byte-level BPE trained on the training texts.

    Raises:
      InputError: the tokenizer is missing, or lacks BART's special tokens.
    """
    data = config.data
    if data.tokenizer:
        return _joint(tokenizer_files.load(Path(data.tokenizer)))
    if config.init_from:
        beside = Path(config.init_from)
        if not beside.exists():
            beside, _ = workdir_lib.split_checkpoint(config.init_from)
        folder = beside if beside.is_dir() else beside.parent
        if (folder / tokenizers.FOLDER).is_dir():
            found = tokenizers.load(folder)
            if found.target.special.bos is None:
                raise InputError(
                    f"init_from: expected a summarizer, whose texts begin with "
                    f"{tokenizers.BOS}, found another run in {folder}"
                )
            return found
        return _joint(tokenizer_files.load(folder))
    train = find().splits["train"]()
    texts = [*train.source, *train.target]
    return _joint(subwords.train_bytes(texts, data.vocab_size))


def _joint(tokenizer: Tokenizer) -> Vocabularies:
    special = (tokenizers.BOS, *tokenizers.SPECIAL)
    missing = [name for name in special if tokenizer.token_to_id(name) is None]
    if missing:
        raise InputError(
            f"data.tokenizer: expected one with {', '.join(special)}, as BART's, found "
            f"one without {', '.join(missing)}"
        )
    vocabulary = Vocabulary("joint", tokenizer.to_str())
    return Vocabularies(vocabulary, vocabulary)


def make_spec(config: ConfigDict, vocabularies: Vocabularies) -> Seq2SeqSpec:
    """Make the specification of summarization."""
    score = config.eval
    return Seq2SeqSpec(
        make_model=functools.partial(make_model, vocab_size=len(vocabularies.target)),
        vocabularies=vocabularies,
        search=search_options(
            config,
            vocabularies,
            first=vocabularies.target.special.bos,
            free_end=True,
            no_repeat=score.no_repeat_ngram,
        ),
        limits=lambda source: (score.min_length, score.max_length),
        empty_note="empty document: no summary",
        full_note=f"the summary reached eval.max_length={score.max_length} tokens",
    )


def make_metrics(config: ConfigDict) -> TextMetrics:
    """Make the scores of summarization."""
    score = config.eval
    # `misfit` has checked "auto" against the validation references.
    auto = score.rouge_tokenizer == "auto"
    options = {
        "stem": score.stem,
        "tokenizer": "english" if auto else score.rouge_tokenizer,
    }

    def compute_each(answers: list[Answer], pairs: Pairs) -> dict[str, np.ndarray]:
        texts = [answer.texts[0] for answer in answers]
        return scoring.rouge_each(texts, pairs.targets, **options)

    def compute(answers: list[Answer], pairs: Pairs) -> dict[str, float]:
        texts = [answer.texts[0] for answer in answers]
        found = scoring.rouge(texts, pairs.targets, samples=score.bootstrap, **options)
        return found | {"at_max_length": float(sum(a.cut_short for a in answers))}

    return TextMetrics(
        names=SCORES,
        compute=compute,
        signatures=lambda pairs: {"rouge": signature(config)},
        problem=lambda pairs: scoring.misfit(pairs.targets, score.rouge_tokenizer),
        compute_each=compute_each,
    )


def generation(config: ConfigDict) -> dict[str, Any]:
    """Return the beam-search settings in the format of generation_config.json.

    Its lengths include </s>; ``max_length`` also counts the decoder's start token.
    """
    score = config.eval
    return {
        "num_beams": score.beam,
        "early_stopping": True,
        "length_penalty": score.length_penalty,
        "no_repeat_ngram_size": score.no_repeat_ngram,
        "min_length": score.min_length + 1,
        "max_length": score.max_length + 2,
    }


def signature(config: ConfigDict) -> str:
    """Return a description of the ROUGE settings, for reproducibility."""
    from importlib.metadata import version

    stem = "stem" if config.eval.stem else "no stem"
    if config.eval.rouge_tokenizer == "unicode":
        return (
            f"rouge-score {version('rouge-score')}, F1, {stem}, best reference, "
            "Unicode words, sentences end at .!? and their like"
        )
    return (
        f"rouge-score {version('rouge-score')}, F1, {stem}, best reference, sentences "
        "end at .!?"
    )
