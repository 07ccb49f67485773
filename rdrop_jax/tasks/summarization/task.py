"""Summarization: BART over byte-level subwords, with constrained beam search."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer

from rdrop_jax.data import subwords, tokenizer_files, tokenizers
from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary
from rdrop_jax.decoding.options import SearchOptions
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.tasks.fields import check_choices, check_least
from rdrop_jax.tasks.seq2seq import encoded, pair_sets, task
from rdrop_jax.tasks.seq2seq.pair_sets import PairSet
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.translator import (
    Answer,
    GenerationSettings,
    Translator,
    make_predictor,
)
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
    check(config)
    commit = workdir_lib.recorded_data(workdir).get(config.data.name, "")
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
    data = config.data
    recorded = workdir_lib.recorded_data(workdir)
    module = make_model(config, len(vocabularies.target))
    return task.make_task(
        config,
        task.Seq2SeqSpec(
            make_model=functools.partial(
                make_model, vocab_size=len(vocabularies.target)
            ),
            vocabularies=vocabularies,
            translator=Translator(
                config, module, vocabularies, make_settings(config, vocabularies)
            ),
            find=find
            or functools.partial(summary_sets.find, data, recorded.get(data.name, "")),
            encode=lambda pairs: encoded.encode(
                pairs,
                vocabularies,
                max_length=data.max_length,
                overlong=data.overlong,
                max_target_length=data.max_target_length,
            ),
            predictor=lambda translator, split: make_predictor(
                translator,
                split,
                pair_sets.form(data, (summary_sets.PREPARED,)),
                config.data.columns.source,
            ),
            sample=_line,
            scores=SCORES,
            signatures=lambda: {"rouge": signature(config)},
            recorded=recorded,
            per_example=scoring.NAMES,
            pretrained=weights.family(module, vocabularies.target, generation(config)),
        ),
    )


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


def check(config: ConfigDict) -> None:
    """Check the config fields specific to summarization.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    task.check(config)
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
            one = ", its end included," if field == "eval.max_length" else ""
            raise InputError(
                f"{field}: expected at most model.max_positions={positions}{one} "
                f"found {found}"
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


def make_settings(config: ConfigDict, vocabularies: Vocabularies) -> GenerationSettings:
    """Make the generation settings, text hooks and scores of summarization."""
    score, special = config.eval, vocabularies.target.special
    # `misfit` has checked "auto" against the validation references.
    auto = score.rouge_tokenizer == "auto"
    tokenizer = "english" if auto else score.rouge_tokenizer

    def each(answers: list[Answer], pairs: Pairs) -> dict[str, list[float]]:
        texts = [answer.texts[0] for answer in answers]
        found = scoring.rouge_each(
            texts, pairs.targets, stem=score.stem, tokenizer=tokenizer
        )
        return {name: values.tolist() for name, values in found.items()}

    def scores(answers: list[Answer], pairs: Pairs) -> dict[str, float]:
        texts = [answer.texts[0] for answer in answers]
        found = scoring.rouge(
            texts,
            pairs.targets,
            stem=score.stem,
            samples=score.bootstrap,
            tokenizer=tokenizer,
        )
        return found | {"at_max_length": float(sum(a.cut_short for a in answers))}

    return GenerationSettings(
        options=SearchOptions(
            bos=special.start,
            eos=special.eos,
            pad=special.pad,
            beam=score.beam,
            n_best=score.n_best,
            length_penalty=score.length_penalty,
            first=special.bos,
            free_end=True,
            no_repeat=score.no_repeat_ngram,
            forbid=(special.unk,),
        ),
        limits=lambda source: (score.min_length, score.max_length),
        longest=score.max_length + 1,
        score=scores,
        score_each=each,
        misfit=lambda pairs: scoring.misfit(pairs.targets, score.rouge_tokenizer),
        unit="document",
        empty=("empty document: no summary",),
        cut_short=(f"the summary reached eval.max_length={score.max_length} tokens",),
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


def _line(source: str, answer: str, target: str) -> str:
    begins = source if len(source) <= 60 else source[:57] + "..."
    return f"{begins} -> {answer} ({target})"
