"""Language modelling through the programs, and its scores against one at a time."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.programs import run as run_program
from helpers.tiny_lm import ADAPTIVE, LM, config_of, text

from rdrop_jax import config as config_lib
from rdrop_jax import export, flags, predict, tasks
from rdrop_jax import train as train_program
from rdrop_jax.cli.run import open_run
from rdrop_jax.core.train_state import init_state
from rdrop_jax.data import tokenizers
from rdrop_jax.errors import InputError
from rdrop_jax.evaluate import evaluate
from rdrop_jax.models.outputs import log_probs
from rdrop_jax.tasks import vocabulary_loss
from rdrop_jax.tasks.language_modeling import config as language_config
from rdrop_jax.tasks.language_modeling import generation, token_files, vocabularies
from rdrop_jax.tasks.language_modeling import task as language_model
from rdrop_jax.tasks.language_modeling.generation import TextGenerator
from rdrop_jax.training import state
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.mesh import make_mesh, shard_batch
from rdrop_jax.training.optim import make_schedule

LONGER = {"model.positions": "learned", "eval.block_size": "99"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def finished(folder):
    """A finished run and its result."""
    workdir = folder / "run"
    return workdir, train_program.train(config_of(folder), workdir)


def test_a_run_ends_with_scores_and_a_sample(finished, capsys):
    workdir, result = finished
    for split in ("validation", "test"):
        scores = result[split]
        assert 1 < scores["perplexity"] < 40
        # Every token of a text of words is a word or an end.
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert set(result["data"]) == {"vocabulary", "train", "validation", "test"}
    config = config_lib.resolve(config_of(workdir.parent), 1.0)
    task = tasks.build(config, workdir)
    assert task.report.samples is not None
    run = open_run(workdir)
    (line,) = task.report.samples(run.mesh)(run.params)
    assert line.startswith("sample: ")
    assert line.count(" ") > 10


def test_a_sample_continues_the_validation_text(finished):
    workdir, _ = finished
    config = config_lib.resolve(config_of(workdir.parent), 1.0)
    corpus = language_model.load(config, workdir)
    words = corpus.vocabulary.decode(corpus.splits["validation"].ids[:16].tolist())
    run = open_run(workdir)
    (line,) = tasks.build(config, workdir).report.samples(run.mesh)(run.params)
    assert line.startswith("sample: " + " ".join(words.split()) + " ... ")


def test_a_text_without_words_has_an_infinite_perplexity(tmp_path):
    path = tmp_path / "dna.txt"
    path.write_text(("ACGT" * 200 + "\n") * 60)
    fields = {"data__files__train": path, "data__tokens": "characters"}
    config = config_of(tmp_path, **fields)
    corpus = language_model.load(config, None)
    (note,) = (x for x in language_model.notes(config, corpus) if "eval.metric" in x)
    assert "tokens per word: it may stay infinite. Use bits_per_character" in note
    found = language_model.scores(1e6, corpus.splits["validation"])
    assert found["perplexity"] == math.inf
    assert math.isfinite(found["bits_per_character"])
    with_words = config_of(tmp_path)
    corpus = language_model.load(with_words, None)
    notes = language_model.notes(with_words, corpus)
    assert not any("eval.metric" in x for x in notes)


def reference(run, ids, block, context):
    """Log-probability of every token, each from a call of its own without padding."""
    module = language_config.make_model(run.config, len(run.task_vocabulary))
    before = run.task_vocabulary.end
    stream = [before, *ids]

    @jax.jit
    def last(seen):
        output = module.apply({"params": run.params}, seen[None], train=False)
        return log_probs(output)[0, -1]

    new = block - context
    for at, token in enumerate(ids):
        start = max(at // new * new - context, 0)
        yield float(last(jnp.asarray(stream[start : at + 1]))[token])


class Opened:
    """A run with its vocabulary."""

    def __init__(self, workdir):
        run = open_run(workdir)
        self.params, self.config, self.task = run.params, run.config, run.task
        corpus = language_model.load(run.config, workdir)
        self.task_vocabulary, self.corpus = corpus.vocabulary, corpus


def test_evaluation_equals_one_token_at_a_time(finished):
    workdir, result = finished
    run = Opened(workdir)
    ids = run.corpus.splits["validation"].ids.tolist()
    assert 60 < len(ids) < 200
    expected = -sum(reference(run, ids, 12, 5))
    found = result["validation"]
    assert found["examples"] == len(ids)
    assert found["loss"] * len(ids) == pytest.approx(expected, rel=1e-6)
    characters = sum(len(line) + 1 for line in text(300)[270:285])
    bits = expected / math.log(2) / characters
    assert found["bits_per_character"] == pytest.approx(bits, rel=1e-6)


def test_block_size_never_changes_which_tokens_count(finished):
    workdir, result = finished
    for block, context in ((12, 11), (7, 3), (1, 0)):
        config = config_of(
            workdir.parent, eval__block_size=block, eval__context=context
        )
        found = evaluate(workdir, "validation", "best", config)
        assert found["examples"] == result["validation"]["examples"]


def test_parts_of_windows_average_to_the_scores(finished):
    workdir, result = finished
    run = open_run(workdir)
    parts = run.task.examples["test"](run.mesh)(run.params, None)
    assert set(parts) == {"loss", "bits_per_character"}
    for name, each in parts.items():
        assert len(each) > 1
        assert each.mean() == pytest.approx(result["test"][name], rel=1e-6), name


def test_scores_of_lines_add_up_to_their_text(finished):
    workdir, _ = finished
    answer = predict.load(workdir, mode="score")
    lines = [
        "the cat sees the dog 3",
        "",
        "a bird likes the fish 0 a bird likes the cat",
    ]
    found = answer(lines)
    run = Opened(workdir)
    for line, scores in zip(lines, found, strict=True):
        ids = [*run.task_vocabulary.encode([line])[0], run.task_vocabulary.end]
        expected = sum(reference(run, ids, 12, 5))
        assert (scores["text"], scores["tokens"]) == (line, len(ids))
        assert scores["log_prob"] == pytest.approx(expected, abs=1e-4)
        perplexity = math.exp(-expected / (len(line.split()) + 1))
        assert scores["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    (unknown,) = answer(["the mouse"])
    assert unknown["notes"] == ["1 tokens are not in the vocabulary"]


def test_lines_are_scored_as_written(finished, tmp_path):
    workdir, _ = finished
    run = Opened(workdir)
    config = config_of(workdir.parent, eval__predict="score")
    predictor = tasks.build(config, workdir).predictor(make_mesh())
    path = tmp_path / "code.txt"
    path.write_text("  the cat \na bird\n")
    assert list(predictor.read(str(path))) == ["  the cat ", "a bird"]
    lines = ["the cat <eos> the dog", "a bird"]
    split = token_files.encode(run.task_vocabulary, lines, "text", keep=True)
    rows = generation.split_lines(split, run.task_vocabulary)
    found = predictor.run(run.params, rows)
    assert [(f["text"], f["tokens"]) for f in found] == [(lines[0], 6), (lines[1], 3)]


def test_continuations(finished):
    workdir, _ = finished
    answer = predict.load(workdir)
    prompts = ["the cat", "a dog sees", ""]
    found = answer(prompts)
    assert [f["prompt"] for f in found] == prompts
    assert answer(prompts) == found
    assert answer(prompts[:1]) == found[:1]
    (long,) = answer(["a dog sees the cat 3 " * 3])
    assert long["notes"] == ["only the last 8 of 18 tokens are read"]
    assert "notes" not in answer(["cat 3 a dog sees the cat 3"])[0]
    run = Opened(workdir)
    greedy = config_of(workdir.parent, eval__temperature=0)
    task = tasks.build(greedy, workdir)
    (found,) = task.predictor(make_mesh()).run(run.params, ["the cat"])
    ids = run.task_vocabulary.encode(["the cat"])[0]
    module = language_config.make_model(greedy, len(run.task_vocabulary))

    @jax.jit
    def after(seen):
        return log_probs(module.apply({"params": run.params}, seen, train=False))

    for _ in range(4):
        seen = [run.task_vocabulary.end, *ids]
        padded = jnp.asarray([seen + [0] * (12 - len(seen))])
        probs = np.array(after(padded)[0, len(seen) - 1])
        probs[run.task_vocabulary.unknown] = -np.inf
        ids.append(int(probs.argmax()))
    assert found["text"] == run.task_vocabulary.decode(ids[2:])


def test_what_is_read_of_prompts(finished):
    run = Opened(finished[0])
    vocabulary = run.task_vocabulary
    module = language_config.make_model(run.config, len(vocabulary))
    generator = TextGenerator(run.config, module, vocabulary)
    read = []

    def record(params, tokens, lengths, numbers):
        read.extend(zip(tokens.tolist(), lengths.tolist(), strict=True))
        return tokens

    generator.run = record
    end, room = vocabulary.end, generator.max_prompt()
    assert room == 12 - 4  # positions, and those of new tokens
    generator.generate({}, [[5, 6], list(range(7)), list(range(2, 14))])
    found = [tokens[:length] for tokens, length in read[:3]]
    assert found == [[end, 5, 6], [end, *range(7)], list(range(6, 14))]


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_a_model_whose_outputs_are_nan_has_no_answers(finished, mode):
    config = workdir_lib.read(finished[0]).unlock()
    config.eval.predict = mode
    run = open_run(finished[0], config=config.lock())
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), run.params)
    with pytest.raises(InputError, match="finite outputs, found NaN"):
        list(run.predictor().run(bad, ["the cat"]))


def test_predict_by_the_program(finished, tmp_path):
    workdir, _ = finished
    lines = tmp_path / "lines.txt"
    lines.write_text("the cat sees\nthe dog\n")
    code, out, err = run_program(
        "predict", "--workdir", workdir, "--input", lines, "--mode", "score"
    )
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [f["text"] for f in found] == ["the cat sees", "the dog"]
    with pytest.raises(InputError, match=r"eval\.predict: expected one of .* 'guess'"):
        predict.main(["--workdir", str(workdir), "--mode", "guess"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adaptive", "characters"])
def test_other_models_and_tokens(folder, kind):
    more = ADAPTIVE if kind == "adaptive" else {"data.tokens": "characters"}
    config = config_of(folder, total_steps=2, **more)
    result = train_program.train(config, folder / kind)
    scores = result["test"]
    assert scores["perplexity"] > 1
    if kind == "characters":
        bits = scores["loss"] / math.log(2)
        assert scores["bits_per_character"] == pytest.approx(bits)
    assert len(predict.load(folder / kind)(["the cat"])[0]["text"]) > 0


def grads_and_metrics(config, workdir, mesh=None):
    """One update on fixed data, as far from zero as one step goes."""
    config = config_lib.resolve(config, 1.0)
    task = tasks.build(config, workdir)
    tx = state.make_tx(config)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = task.train_data()[0]
    step = state.make_step(task, tx, config, mesh)
    begun = init_state(params, tx, jax.random.key(1))
    if mesh is not None:
        batch = shard_batch(mesh, batch)
        placed = jax.tree.map(lambda x: x.sharding, state.abstract_params(task, mesh))
        begun = init_state(jax.device_put(params, placed), tx, jax.random.key(1))
    ended, metrics = jax.jit(step)(begun, batch)
    return ended.params, {k: float(m.compute()) for k, m in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "adaptive"])
def test_large_vocabularies_and_devices_change_no_update(
    finished, folder, kind, monkeypatch
):
    workdir, _ = finished
    more = ADAPTIVE if kind == "adaptive" else {}
    config = config_of(folder, optimizer__name="sgd", optimizer__lr=1.0, **more)
    expected = grads_and_metrics(config, workdir)
    monkeypatch.setattr(vocabulary_loss, "LARGE_VOCAB", 4)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    found = grads_and_metrics(config, workdir, mesh)
    for name in ("loss", "ce", "kl", "grad_norm"):
        assert found[1][name] == pytest.approx(expected[1][name], rel=2e-5), name
    for a, b in zip(
        jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)


PRESETS = ("demo", "chars", "files", "wikitext103", "wikitext103_adaptive")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    config = flags.load(f"{LM}:{preset}", {})
    language_config.check_config(config)
    resolved = config_lib.resolve(config, 100.0)
    vocab = {"demo": 2000, "chars": 90, "files": 10_000}.get(preset, 267_735)
    module = language_config.make_model(resolved, vocab)
    init = functools.partial(language_model.init_params, module)
    params = jax.eval_shape(init, jax.random.key(0))
    tx = state.make_tx(resolved)
    jax.eval_shape(tx.init, params)
    size = sum(x.size for x in jax.tree.leaves(params))
    published = {"wikitext103": 290_676_480, "wikitext103_adaptive": 246_932_928}
    assert size == published.get(preset, size)


def test_schedules_of_the_paper():
    config = config_lib.resolve(flags.load(f"{LM}:wikitext103", {}), 1.0)
    rate = make_schedule(config.optimizer, config.total_steps)
    assert rate(4000) == pytest.approx(5e-4)
    assert rate(16_000) == pytest.approx(2.5e-4)
    config = config_lib.resolve(flags.load(f"{LM}:wikitext103_adaptive", {}), 1.0)
    rate = make_schedule(config.optimizer, config.total_steps)
    assert rate(16_000) == pytest.approx(1.0)
    assert rate(16_000 + 135_000) == pytest.approx(0.50005)
    assert rate(285_999) == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.context": "12"}, "eval.context: expected less than eval.block_size"),
        ({"eval.top_p": "0"}, r"eval.top_p: expected in \(0, 1\], found 0"),
        ({"eval.new_tokens": "12"}, "eval.new_tokens: expected less than .* 12"),
        ({"eval.temperature": "inf"}, "eval.temperature: expected a finite number"),
        ({"data.tokens": "letters"}, "data.tokens: expected one of words, char"),
        ({"model.name": "gpt"}, "model.name: expected one of transformer"),
        ({"model.heads": "3"}, "model.heads: expected a divisor of width"),
        (
            {"model.width": "15", "model.heads": "3"},
            "model.width: expected an even number with model.positions=fairseq",
        ),
        (LONGER, "eval.block_size: expected at most data.block_size=.*, found 99"),
        (ADAPTIVE | {"model.cutoffs": "(12, 6)"}, "model.cutoffs.* must increase"),
        (ADAPTIVE | {"rdrop.divergence": "js"}, "rdrop.divergence: expected symm"),
        (ADAPTIVE | {"rdrop.label_smoothing": "0.1"}, "label_smoothing: expected 0"),
        (ADAPTIVE | {"rdrop.num_passes": "3"}, "num_passes: expected at most 2"),
        ({"data.tokens": "bpe", "data.vocabulary": "x"}, "data.vocabulary: expected"),
    ],
)
def test_bad_fields(folder, overrides, message):
    with pytest.raises(InputError, match=message):
        tasks.build(config_of(folder, **overrides))


def test_untrained_positions_of_earlier_runs_are_kept(folder):
    token_files.save(
        language_model.load(config_of(folder), None), folder / "old" / "text"
    )
    task = tasks.build(config_of(folder, **LONGER), folder / "old")
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert 99 in [leaf.shape[0] for leaf in jax.tree.leaves(shapes)]


def test_padding_and_unknown_tokens_are_not_sampled(folder, monkeypatch):
    options = {}
    monkeypatch.setattr(
        generation, "sample", lambda *args, **more: options.update(more) or args[2]
    )
    task = tasks.build(config_of(folder, data__tokens="bpe", data__vocab_size=40))
    predictor = task.predictor(make_mesh())
    list(predictor.run(task.init(jax.random.key(0)), ["the cat"]))
    assert set(options["forbid"]) == {tokenizers.PAD, tokenizers.UNK}


def test_a_vocabulary_that_tensor_does_not_divide(folder, monkeypatch):
    monkeypatch.setattr(vocabulary_loss, "LARGE_VOCAB", 4)
    with pytest.raises(InputError, match=r"mesh.tensor: expected a divisor of the 23"):
        language_config.make_loss(config_of(folder), 23, make_mesh(data=4, tensor=2))


def test_same_words_in_any_order_of_lines(folder):
    del folder
    for lines in itertools.islice(itertools.permutations(text(4)), 3):
        made = vocabularies.learn("words", lines, 0, 1)
        expected = vocabularies.learn("words", text(4), 0, 1)
        assert made.dump() == expected.dump()


def test_a_language_model_is_not_exported(finished, tmp_path):
    with pytest.raises(InputError, match="found one of language_model"):
        export.export(finished[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
