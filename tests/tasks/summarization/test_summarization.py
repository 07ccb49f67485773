"""The summarization task: scores, answers, bad input, presets, its data."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_sum
from helpers.programs import run

from rdrop_jax import predict, tasks
from rdrop_jax.cli import targets
from rdrop_jax.cli.checks import check_values
from rdrop_jax.cli.compile import compile_step
from rdrop_jax.cli.run import open_run
from rdrop_jax.config import resolve
from rdrop_jax.data import subwords, tokenizer_files, tokenizers
from rdrop_jax.errors import InputError
from rdrop_jax.evaluate import evaluate
from rdrop_jax.export import export
from rdrop_jax.flags import load as load_config
from rdrop_jax.pretrained.initialize import merge
from rdrop_jax.tasks.seq2seq import translator
from rdrop_jax.tasks.seq2seq.abstract import blank_vocabularies
from rdrop_jax.tasks.seq2seq.prepared_text import Writer
from rdrop_jax.tasks.summarization import summary_sets
from rdrop_jax.tasks.summarization import task as summarization
from rdrop_jax.tasks.summarization.scores import NAMES, rouge, rouge_each
from rdrop_jax.training.mesh import make_mesh, shard_batch
from rdrop_jax.training.state import abstract_state, make_state, make_step, make_tx

SPEC = importlib.util.spec_from_file_location("sums", tiny_sum.SUMMARIZATION)
CONFIGS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sum.write(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def run_dir(folder, tmp_path_factory):
    """Workdir of a finished run, and its result."""
    workdir = tmp_path_factory.mktemp("summarization")
    return workdir, tiny_sum.train(folder, workdir)


@pytest.fixture(scope="module")
def model(run_dir):
    return predict.load(run_dir[0])


def test_a_run_scores_with_intervals_and_counts(run_dir):
    workdir, result = run_dir
    for split in ("validation", "test"):
        found = result[split]
        assert set(summarization.SCORES) < set(found)
        assert found["examples"] == 9
        for name in NAMES:
            assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
        assert 0 <= found["at_max_length"] <= 9
    assert result["data"]["rouge"].startswith("rouge-score 0.1.2, F1, stem")
    assert "vocabulary/joint.json" in result["data"]
    # A run goes on with another version of the package that scores.
    provenance = open_run(workdir).task.provenance()
    assert result["data"].keys() - provenance.keys() == {"rouge"}


def test_examples_are_those_of_the_scores(run_dir, folder, model):
    workdir, result = run_dir
    opened = open_run(workdir)
    each = opened.task.examples["test"](opened.mesh)(opened.params, None)
    rows = [json.loads(x) for x in (folder / "test.jsonl").read_text().splitlines()]
    answers = model([row["article"] for row in rows])
    texts = [answer["text"] for answer in answers]
    wanted = rouge_each(texts, [row["highlights"] for row in rows])
    for name in NAMES:
        np.testing.assert_allclose(each[name], wanted[name])
        assert each[name].mean() == pytest.approx(result["test"][name])
    full = [f"{n}" for a in answers for n in a.get("notes", ()) if "reached" in n]
    assert len(full) == result["test"]["at_max_length"]
    again = evaluate(workdir, "test", "best")
    assert again["rouge1"] == result["test"]["rouge1"]


def test_what_is_empty_short_or_long(model):
    texts = ["", "cat", "old men " * 40]
    empty, short, long = model(texts)
    assert (empty["text"], empty["notes"]) == ("", ["empty document: no summary"])
    assert short["text"]
    assert any(
        note.startswith("truncated: ") and note.endswith("data.max_length=32")
        for note in long["notes"]
    )
    # Neighbours change nothing, nor does white space.
    assert model([" cat\n"])[0]["text"] == short["text"]


def test_lengths_are_kept_and_counted(run_dir, folder):
    def open_with(**changes):
        config = tiny_sum.config(folder, **changes)
        return open_run(run_dir[0], "best", config)

    wide = open_with(eval__min_length=9, eval__max_length=9)
    scores = wide.task.evaluators["test"](wide.mesh)(wide.params)
    assert scores["at_max_length"] == 9
    (answer,) = wide.task.predictor(wide.mesh).run(wide.params, ["cat"])
    assert "the summary reached eval.max_length=9 tokens" in answer["notes"]


def test_what_users_type(run_dir, folder):
    workdir, _ = run_dir
    given = ("--input", folder / "test.jsonl", "--n_best", "2")
    code, out, err = run("predict", "--workdir", workdir, *given)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 9
    assert all(len(answer["n_best"]) == 2 for answer in answers)
    path = folder / "bad.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"line 1: expected a text under .*'article'"):
        predict.main(["--workdir", str(workdir), "--input", str(path)])


def test_a_run_goes_out_and_comes_in_again(run_dir, folder, tmp_path):
    out = tmp_path / "exported"
    export(run_dir[0], out)
    search = json.loads((out / "generation_config.json").read_text())
    assert (search["min_length"], search["max_length"]) == (4, 12)
    config = tiny_sum.config(folder, init_from=str(out))
    task = tasks.build(config, tmp_path / "new", resuming=False)
    ours, theirs = (tokenizers.load(p).target for p in (run_dir[0], tmp_path / "new"))
    assert ours.encode(["ten men"]) == theirs.encode(["ten men"])
    family = task.pretrained
    loaded, notes = merge(
        task.init(jax.random.key(1)), family.read(out), facts=family.facts
    )
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, loaded, open_run(run_dir[0]).params)


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [
        ("d.tsv", "1", "7\ta b\n8\t c\n"),
        ("d.tsv", "article", "id\tarticle\n7\ta b\n8\tc\n"),
        ("d.jsonl", "article", '{"article": ["a", "b"]}\n{"article": "\\nc"}\n'),
        ("d.txt", "article", "a b\nc \n"),
    ],
)
def test_documents_are_read_as_for_training(tmp_path, name, column, text):
    (tmp_path / name).write_text(text)
    path = str(tmp_path / name)
    assert list(translator.read_texts(path, column)) == ["a b", "c"]


def test_scitldr_is_read_as_it_is_published(tmp_path):
    row = {"source": ["A b.", "C."], "target": ["One", "Two"], "source_labels": [0, 1]}
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    config = load_config(
        f"{tiny_sum.SUMMARIZATION}:scitldr", {"data.dir": str(tmp_path)}
    )
    pairs = summary_sets.find(config.data).splits["validation"]()
    assert (pairs.source, pairs.targets) == (["A b. C."], [["One", "Two"]])


def test_batches_begin_as_bart_does(folder):
    task = tasks.build(tiny_sum.config(folder))
    batch = task.train_data()[0]
    assert np.all(batch["src"][:, 0] == 0)
    assert np.all(batch["inputs"][:, :2] == [2, 0])
    last = batch["where"].sum(axis=1) - 1
    rows = last >= 0
    assert np.all(batch["labels"][rows, last[rows]] == 2)
    assert np.all(batch["src"][~batch["src_where"]] == 1)


def test_the_loss_never_needs_all_logits(folder, monkeypatch):
    """From so many words on, in chunks, with the bias of pretrained files."""
    config = tiny_sum.config(folder)
    task = tasks.build(config)
    params = task.init(jax.random.key(0))
    params["logits_bias"] = jnp.linspace(-2.0, 2.0, len(params["logits_bias"]))
    batch = jax.tree.map(jnp.asarray, task.train_data()[0])

    def value(p, loss):
        out = task.forward(p, batch, None)
        out = out._replace(hidden=jnp.stack([out.hidden, out.hidden * 1.5]))
        return loss(out, batch, alpha=0.7)[0]

    grads = jax.jit(jax.value_and_grad(value), static_argnums=1)
    wanted = grads(params, task.loss)
    monkeypatch.setattr(
        "rdrop_jax.tasks.vocabulary_loss.LARGE_VOCAB", len(params["logits_bias"])
    )
    large = tasks.build(config).loss
    found = grads(params, large)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        wanted,
    )
    assert not np.any(found[1]["logits_bias"])  # which nobody trains
    assert np.any(found[1]["embedding"])


def test_rouge_takes_the_best_reference():
    texts = ["the cat sat on the mat", "dogs bark"]
    references = [["a bird", "the cats sat"], ["dogs barked"]]
    found = rouge(texts, references, samples=200)
    # 3 of 6 and 3 of 3 stems; 2 of 2 and 2 of 2.
    assert found["rouge1"] == pytest.approx((200 * 0.5 / 1.5 + 100) / 2)
    plain = rouge(texts, references, stem=False, samples=0)
    assert plain["rouge1"] < found["rouge1"]
    assert set(plain) == set(NAMES)
    one = rouge_each(texts[:1], [["on the mat. the cat sat."]])
    assert one["rougeLsum"][0] > one["rougeL"][0]
    with pytest.raises(InputError, match="found 1 for 2"):
        rouge_each(texts, references[:1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.min_length": "11"}, "eval.min_length: expected at most eval.max_len"),
        ({"eval.max_length": "32"}, "eval.max_length: expected at most model.max_pos"),
        ({"data.max_length": "40"}, "data.max_length: expected at most model.max_pos"),
        ({"eval.beam": "2", "eval.n_best": "3"}, "eval.n_best: expected at most"),
        ({"eval.length_penalty": "nan"}, "eval.length_penalty: expected from -10"),
        ({"eval.length_penalty": "11"}, "eval.length_penalty: expected from -10 to 10"),
        ({"eval.no_repeat_ngram": "-1"}, "eval.no_repeat_ngram: expected at least 0"),
        ({"data.columns.target": "summary"}, "{}/train.jsonl, line 1: expected a text"),
        ({"data.name": "cnn"}, "data.name: expected docstrings, files, hf:ORG/NAME or"),
        ({"data.name": "cnn_dailymail"}, "data.name=cnn_dailymail: expected {}/cnn_d"),
    ],
)
def test_fields_and_columns_are_checked(folder, overrides, message):
    changed = tiny_sum.TINY | {"data.dir": str(folder)} | overrides
    config = load_config(f"{tiny_sum.SUMMARIZATION}:files", changed)
    with pytest.raises(InputError) as error:
        tasks.build(config)
    assert str(error.value).startswith(message.format(folder))


def test_vocabularies_that_are_not_barts_are_refused(folder, tmp_path):
    path = tmp_path / tokenizer_files.NAME
    subwords.train_wordpiece(["a b"], 60).save(str(path))
    with pytest.raises(InputError, match=r"data\.tokenizer: .*as BART's, found one wi"):
        tasks.build(tiny_sum.config(folder, data__tokenizer=path))
    other = tokenizers.train("joint", ["a b"], 20)
    tokenizers.save(tokenizers.Vocabularies(other, other), tmp_path / "run")
    with pytest.raises(InputError, match=r"init_from: expected a summarizer"):
        tasks.build(tiny_sum.config(folder, init_from=tmp_path / "run"))


def test_empty_documents_are_dropped_from_training_and_counted(folder, tmp_path):
    text = (folder / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text + '{"article": "", "highlights": "a"}\n')
    config = tiny_sum.config(
        tmp_path, data__files__validation="", data__files__test="", data__max_length=8
    )
    notes = tasks.build(config).report.notes()
    assert notes[0].endswith("1 pairs with an empty source or target dropped")
    assert any(
        "sentences truncated to data.max_length=8 tokens" in x for x in notes[1:]
    )
    refused = tiny_sum.config(folder, data__max_length=8, data__overlong="refuse")
    with pytest.raises(InputError, match=r"expected at most data\.max_length=8 tokens"):
        tasks.build(refused).train_data()


@pytest.mark.parametrize("name", CONFIGS.PRESETS)
def test_presets_have_their_shapes(name):
    c = CONFIGS.get_config(name)
    check_values(c)
    summarization.check_config(c)
    resolved = resolve(c, 1000.5)
    module = summarization.make_model(c, c.data.vocab_size)
    params = jax.eval_shape(
        lambda key: summarization.task.init_params(module, key), jax.random.key(0)
    )
    jax.eval_shape(make_tx(resolved).init, params)
    count = sum(x.size for x in jax.tree.leaves(params))
    # Lewis et al., 2020; Hugging Face counts the same with one shared table.
    known = {"base": 139_420_416, "large": 406_291_456}
    if name != "demo":
        assert count == known[c.model.size] + c.data.vocab_size  # the bias
    assert CONFIGS.PRESETS[name].__doc__


def test_the_recipe_is_the_published_one():
    c = CONFIGS.get_config("cnn_dailymail")
    assert (c.batch_tokens, c.total_steps) == (1024 * 16 * 4, 20_000)
    assert (c.rdrop.alpha, c.rdrop.label_smoothing) == (0.7, 0.1)
    assert (c.optimizer.lr, c.optimizer.warmup, c.optimizer.clip) == (3e-5, 500, 0.1)
    assert (c.eval.beam, c.eval.length_penalty, c.eval.no_repeat_ngram) == (4, 2.0, 3)
    assert (c.eval.min_length, c.eval.max_length) == (55, 140)


def test_docstrings_are_cut_without_sharing(monkeypatch):
    monkeypatch.setattr(summary_sets, "PACKAGES", ("numpy",))
    found = summary_sets.docstring_pairs(7)
    train, test = found["train"], found["test"]
    assert len(test) == len(found["validation"]) > 20
    assert len(train) > 300
    assert not set(test.source) & set(train.source)
    shared = sum(text in set(train.target) for text in test.target)
    assert shared / len(test) < 0.05


def test_a_folder_of_version_0_1(tmp_path):
    writer = Writer(tmp_path / "cnn_dailymail", summary_sets.ENDINGS)
    for split in ("train", "validation", "test"):
        writer.write(split, [(f"{split} article .", "Short .")])
    writer.finish({})
    changes = {"data__name": "cnn_dailymail", "data__dir": tmp_path}
    found = summary_sets.find(tiny_sum.config(tmp_path, **changes).data)
    pairs = found.splits["test"]()
    assert (pairs.source, pairs.target) == (["test article ."], ["Short ."])


def test_state_of_bart_large_by_shape():
    """Parameters and two moments: 4.9 GB, cut over eight devices."""
    config = resolve(
        load_config(f"{tiny_sum.SUMMARIZATION}:cnn_dailymail", {"mesh.fsdp": "8"}),
        1000.0,
    )
    mesh = make_mesh(**config.mesh)
    task = summarization.with_vocabulary(config, blank_vocabularies(50_265, joint=True))
    state = abstract_state(task, make_tx(config), config, mesh)
    whole = here = 0
    for x in jax.tree.leaves((state.params, state.opt_state)):
        whole += 4 * x.size
        here += 4 * np.prod(x.sharding.shard_shape(x.shape))
    assert whole == pytest.approx(3 * 4 * 406.3e6, rel=0.001)
    assert here < 1.01 * whole / 8


@pytest.mark.slow
def test_bart_large_compiles_for_eight_devices():
    changed = {"mesh.fsdp": "8"}
    preset = f"{tiny_sum.SUMMARIZATION}:cnn_dailymail"
    config = load_config(preset, {"init_from": ""} | changed)
    _, report = compile_step(config, targets.parse("cpu:8"))
    assert report.state < 2**30
    assert report.temporary < 13 * 2**30


@pytest.mark.slow
def test_a_shallow_bart_large_steps_on_eight_devices():
    changed = {"mesh.fsdp": "8"}
    preset = f"{tiny_sum.SUMMARIZATION}:cnn_dailymail"
    shallow = {"model.encoder_layers": "1", "model.decoder_layers": "1"}
    shallow |= {"data.vocab_size": "512", "batch_tokens": "2048", "accum_steps": "2"}
    shallow |= {"data.max_length": "128", "data.max_target_length": "16"}
    config = resolve(load_config(preset, changed | shallow), 100.0)
    mesh = make_mesh(**config.mesh)
    task = summarization.with_vocabulary(config, blank_vocabularies(512, joint=True))
    tx = make_tx(config)
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(task, tx, config, mesh))
    now = jax.jit(lambda: make_state(task, tx, config), out_shardings=placed)()
    step = jax.jit(make_step(task, tx, config, mesh), donate_argnums=0)
    rng = np.random.default_rng(0)
    for _ in range(2):
        ids = rng.integers(4, 512, (16, 144)).astype(np.int32)
        there = np.ones((16, 144), bool)
        batch = {"src": ids[:, :128], "src_where": there[:, :128]}
        batch |= {"inputs": ids[:, 128:], "labels": ids[:, :16]}  # not a copy
        batch |= {"where": there[:, 128:]}
        now, metrics = step(now, shard_batch(mesh, batch))
    assert int(now.step) == 2
    assert int(now.first_bad_step) < 0
    ce, kl = (float(metrics[name].compute()) for name in ("ce", "kl"))
    # Tied to the table, a new model expects the token that it was given: logits reach
    # a state's length of 32 times a row's of 1.
    assert np.log(512) < ce < np.log(512) + 32
    assert kl > 0
