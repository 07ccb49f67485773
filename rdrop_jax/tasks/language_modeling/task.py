"""Language modelling: next-token prediction on running text."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.metrics import perplexity
from rdrop_jax.core.passes import Batch, Forward, Key, Params, View
from rdrop_jax.data.batches import TrainBatches
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files.roots import root
from rdrop_jax.models import decoder
from rdrop_jax.models.decoder import CausalDecoder
from rdrop_jax.models.outputs import nll
from rdrop_jax.tasks import cutoff
from rdrop_jax.tasks.field_checks import TEXT_VIEWS
from rdrop_jax.tasks.language_modeling import running_text, token_files
from rdrop_jax.tasks.language_modeling.config import (
    check_config,
    check_trained_positions,
    make_loss,
    make_model,
    out_axes,
)
from rdrop_jax.tasks.language_modeling.generation import (
    SplitLines,
    TextGenerator,
    TokenNll,
    make_predictor,
    make_windows,
    nll_of_windows,
    split_lines,
)
from rdrop_jax.tasks.language_modeling.token_files import Corpus, Split
from rdrop_jax.tasks.language_modeling.windows import Windows
from rdrop_jax.tasks.pass_rates import pass_forwards
from rdrop_jax.training.distributed import process, write_on_process_0
from rdrop_jax.training.mesh import replicated
from rdrop_jax.training.task import (
    Evaluator,
    ExampleScores,
    Report,
    StepOptions,
    Task,
)

FOLDER = "text"
SCORES = ("perplexity", "bits_per_character", "loss")
# ``params -> negative log-likelihood`` of each window of a split, in nats.
WindowNll = Callable[[Params], Float[np.ndarray, " windows"]]
_PROMPT = 16  # tokens of the prompt of the sample


def build(
    config: ConfigDict, workdir: Path | None = None, *, resuming: bool = True
) -> Task:
    """Build the task of a config with ``task="language_model"``.

    Args:
      config: config of the run.
      workdir: folder with the encoded text, or only the vocabulary if the text is
        prepared; None encodes the text again.
      resuming: False writes these files.

    Returns:
      The task.

    Raises:
      InputError: a field is out of range, or the text is not that of the run.
    """
    check_config(config)
    if workdir is None or not resuming:
        check_trained_positions(config)
    if workdir is not None and not resuming:
        texts = config.data.name not in running_text.PREPARED
        write_on_process_0(
            lambda: token_files.save(load(config, None), workdir / FOLDER, texts=texts)
        )
    return make_task(config, load(config, workdir))


def make_task(config: ConfigDict, corpus: Corpus) -> Task:
    """Build the task for a given text."""
    vocabulary = corpus.vocabulary
    module = make_model(config, len(vocabulary))
    forward = make_forward(module)
    sums = functools.cache(functools.partial(make_nll, forward, per_row=True))
    generator = TextGenerator(config, module, vocabulary)

    def lines(name: str) -> SplitLines:
        return split_lines(split(corpus, name), vocabulary)

    def on_split(make: Callable[[WindowNll, Split], Any], name: str, mesh: Mesh) -> Any:
        text = split(corpus, name)
        windows = make_windows(config, text.ids, vocabulary.end)
        size = config.eval.batch_size
        return make(lambda p: nll_of_windows(sums(mesh), mesh, p, windows, size), text)

    return Task(
        init=functools.partial(init_params, module),
        forward=forward,
        loss=make_loss(config, len(vocabulary), None),
        train_data=functools.cache(
            lambda: make_train_data(config, split(corpus, "train"), vocabulary.end)
        ),
        scores=SCORES,
        evaluators={
            name: functools.partial(on_split, make_evaluator, name) for name in SPLITS
        },
        predictor=lambda mesh: make_predictor(
            generator, make_nll(forward, mesh), mesh, lines
        ),
        examples={
            name: functools.partial(on_split, make_examples, name) for name in SPLITS
        },
        provenance=lambda: dict(corpus.provenance),
        step=StepOptions(
            forwards=pass_forwards(
                config,
                lambda changed: make_forward(make_model(changed, len(vocabulary))),
            ),
            views=make_views(config, module.size.width),
            out_axes=out_axes(config),
            sharded_loss=functools.partial(make_loss, config, len(vocabulary)),
            partition_rules=decoder.PARTITION_RULES,
        ),
        report=Report(
            size=lambda name: f"{len(split(corpus, name).ids):,} tokens",
            notes=lambda: notes(config, corpus),
            samples=lambda mesh: make_samples(generator, corpus),
        ),
    )


def make_forward(module: CausalDecoder) -> Forward:
    """Make ``(params, batch, key | None) -> outputs``."""
    return linen_forward(
        module,
        lambda batch: (batch["inputs"], batch.get("keep")),
        train={"train": True},
        evaluate={"train": False},
    )


def make_views(config: ConfigDict, width: int) -> View | None:
    """Make the view of ``rdrop.views``, which cuts inputs and never labels."""
    cut = cutoff.make_cut(config, TEXT_VIEWS, width)
    if cut is None:
        return None
    return lambda batch, key: (
        batch | {"keep": cut(key, jnp.ones(batch["inputs"].shape, bool))}
    )


def notes(config: ConfigDict, corpus: Corpus) -> tuple[str, ...]:
    """Return a line for each split that is held out of the training text, and one if
    the perplexity of an untrained model overflows."""
    data, found = config.data, []
    if data.name == "files":
        found = [
            f"{s}: {len(split(corpus, s).ids)} tokens held out of {data.files.train}"
            for s in SPLITS[1:]
            if not data.files[s]
        ]
    text = split(corpus, "validation")
    rate = len(text.ids) / text.words
    untrained = perplexity(rate * math.log(len(corpus.vocabulary)))
    if config.eval.metric == "perplexity" and math.isinf(untrained):
        found.append(
            f"eval.metric: perplexity is per word, and the text has {rate:.0f} tokens "
            "per word: it may stay infinite. Use bits_per_character"
        )
    return tuple(found)


def load(config: ConfigDict, workdir: Path | None) -> Corpus:
    """Load the text of a run; token ids are read from disk on demand."""
    data = config.data
    texts = None
    if data.name in running_text.PREPARED:
        texts = Path(root(data), data.name)
    if workdir is not None:
        return token_files.load(workdir / FOLDER, texts)
    if texts is not None:
        return token_files.load(running_text.prepared(data))
    return running_text.corpus(data)


def split(corpus: Corpus, name: str) -> Split:
    """Return a split; raise an `InputError` if it is missing."""
    if name not in corpus.splits:
        raise InputError(f"data.dir: expected {name}.bin of the run's text, found none")
    return corpus.splits[name]


def init_params(module: CausalDecoder, key: jax.Array) -> Params:
    """Initialize parameters."""
    return module.init(key, jnp.zeros((1, 2), jnp.int32), train=False)["params"]


def make_train_data(config: ConfigDict, text: Split, before: int) -> TrainBatches:
    """Make shuffled windows of the training text."""
    return TrainBatches(
        Windows(text.ids, config.data.block_size, before),
        lambda row, rng: row,
        batch_size=config.batch_size,
        seed=config.seed,
        process=process(),
    )


def make_nll(forward: Forward, mesh: Mesh, *, per_row: bool = False) -> TokenNll:
    """Make a jitted negative log-likelihood, replicated on all processes.

    Args:
      forward: forward of the model.
      mesh: device mesh.
      per_row: True returns the sum over the scored tokens of each row, False the value
        of each token, 0 if it is masked.
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def compute(params: Params, batch: Batch) -> jax.Array:
        each = nll(forward(params, batch, None), batch["labels"])
        each = jnp.where(batch["where"], each, 0.0)
        return jnp.sum(each, axis=1) if per_row else each

    return compute


def make_evaluator(windows: WindowNll, text: Split) -> Evaluator:
    """Make an evaluator of perplexity on a split; scores every token once."""
    return lambda params: scores(float(windows(params).sum()), text)


def make_examples(windows: WindowNll, text: Split) -> ExampleScores:
    """Make a function that returns each window's contribution to a split's scores.

    The last window may be shorter, so a contribution is not the mean loss of its
    window. The mean of all contributions is the score of the split. Dropout is off.
    """

    def examples(params: Params, key: Key | None) -> dict[str, np.ndarray]:
        del key  # no class probabilities, so callers never request sub-models
        parts = windows(params)
        parts = parts * len(parts)
        return {
            "loss": parts / len(text.ids),
            "bits_per_character": parts / math.log(2) / text.characters,
        }

    return examples


def scores(nll: float, text: Split) -> dict[str, float]:
    """Compute the scores of a text from its negative log-likelihood.

    Args:
      nll: negative log-likelihood of the full text, in nats.
      text: the text; only its lengths are used.

    Returns:
      ``perplexity`` per word and ``bits_per_character``, which do not depend on the
      tokenization; ``loss`` per token, in nats; ``examples``, the number of tokens.
    """
    return {
        "perplexity": perplexity(nll / text.words),
        "bits_per_character": nll / math.log(2) / text.characters,
        "loss": nll / len(text.ids),
        "examples": len(text.ids),
    }


def make_samples(
    generator: TextGenerator, corpus: Corpus
) -> Callable[[Params], list[str]]:
    """Make a function that continues the start of the validation text, for the log."""

    def samples(params: Params) -> list[str]:
        ids = split(corpus, "validation").ids[:_PROMPT].tolist()
        (found,) = generator.generate(params, [ids])
        texts = [corpus.vocabulary.decode(x) for x in (ids, found)]
        prompt, new = (" ".join(text.split()) for text in texts)
        return [f"sample: {prompt} ... {new}"]

    return samples
