"""The translation task: loss, scores, vocabularies, what users type."""

import dataclasses
import io
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_nmt
from helpers.programs import run

from rdrop_jax import predict, tasks
from rdrop_jax.cli.evaluate import with_input
from rdrop_jax.cli.run import open_run
from rdrop_jax.config import resolve
from rdrop_jax.data import tokenizers
from rdrop_jax.errors import InputError
from rdrop_jax.evaluate import evaluate
from rdrop_jax.flags import load as load_config
from rdrop_jax.predict import load
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.translator import Answer, make_predictor
from rdrop_jax.tasks.translation import task as translation
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.mesh import make_mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_nmt.write(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run_dir(folder, tmp_path_factory):
    """Workdir of a finished run, and its result."""
    workdir = tmp_path_factory.mktemp("nmt")
    return workdir, tiny_nmt.train(folder, workdir, checkpoint__keep=3)


def test_a_run_scores_and_says_what_it_read(run_dir):
    workdir, result = run_dir
    for split in ("validation", "test"):
        assert set(translation.SCORES) < set(result[split])
        assert result[split]["examples"] == 12
        assert result[split]["perplexity"] == pytest.approx(
            np.exp(result[split]["loss"])
        )
    assert "|tok:13a|" in result["data"]["bleu"]
    (vocabulary,) = (k for k in result["data"] if k.startswith("vocabulary/"))
    index = json.loads((workdir / "vocabulary" / "index.json").read_text())
    assert index["files"]["joint.json"]["sha256"] == result["data"][vocabulary]
    assert sum(name.endswith(".tsv") for name in result["data"]) == 3


@pytest.mark.slow
def test_going_on_ends_with_the_same_bits(folder, run_dir, tmp_path):
    workdir, result = run_dir
    tiny_nmt.train(folder, tmp_path, total_steps=3)
    again = tiny_nmt.train(folder, tmp_path)
    assert again["test"] == result["test"]
    one, other = (open_run(path, "last").params for path in (workdir, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_scores_are_those_of_the_answers(run_dir, folder, monkeypatch):
    workdir, result = run_dir
    rows = (folder / "test.tsv").read_text().splitlines()
    sources, references = zip(*(row.split("\t") for row in rows), strict=True)
    answers = load(workdir)(sources)
    assert [answer["source"] for answer in answers] == list(sources)
    hits = [a["text"] == r for a, r in zip(answers, references, strict=True)]
    assert result["test"]["exact_match"] == np.mean(hits)
    assert evaluate(workdir, "test", "best")["chrf"] == result["test"]["chrf"]
    (folder / "five.tsv").write_text("\n".join(rows[:5]) + "\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RDROP_DATA_DIR", "elsewhere")
    config = with_input(workdir_lib.read(workdir), "five.tsv")
    assert evaluate(workdir, None, "best", config)["examples"] == 5
    with pytest.raises(InputError, match=r"--input: expected .*six.en or six.en.gz"):
        with_input(config, "six")


def test_neighbours_and_order_change_no_answer(run_dir):
    model = load(run_dir[0])
    texts = ["eins zwei drei", "", "haus", "baum rot blau vier", "haus"]
    together = model(texts)
    alone = [model([text])[0] for text in texts]
    assert [a["text"] for a in together] == [a["text"] for a in alone]
    assert [a["score"] for a in together] == pytest.approx(
        [a["score"] for a in alone], abs=1e-4
    )
    assert together[1]["text"] == ""
    assert model([]) == []


def test_padding_changes_no_loss(folder):
    config = tiny_nmt.config(folder, data__max_length=24)
    task = tasks.build(config)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, task.train_data()[0])

    @jax.jit
    def of(batch):
        outputs = task.forward(params, batch, None)
        outputs = outputs._replace(hidden=outputs.hidden[None])
        return task.loss(outputs, batch, alpha=0.0)[0]

    def loss(batch):
        return float(of(batch))

    # More padding on each side, with any ids, and rows that do not count.
    def wider(x):
        more = 3 if x.dtype == jnp.int32 else 0
        x = jnp.pad(x, ((0, 0), (0, 4)), constant_values=more)
        return jnp.concatenate([x, x])

    larger = {name: wider(x) for name, x in batch.items()}
    half = len(batch["where"])
    larger["where"] = larger["where"].at[half:].set(False)
    assert loss(larger) == pytest.approx(loss(batch), rel=1e-5)
    larger["where"] = larger["where"].at[0, -1].set(True)
    assert loss(larger) != pytest.approx(loss(batch), rel=1e-5)


def test_evaluation_fits_any_number_of_devices(run_dir):
    config = workdir_lib.read(run_dir[0]).unlock()
    config.data.rows_multiple = 1
    config.batch_tokens = 24
    run = open_run(run_dir[0], config=config.lock())
    scores = run.task.evaluators["validation"](run.mesh)(run.params)
    wanted = run_dir[1]["validation"]
    assert scores["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_what_is_too_long_is_cut_and_counted_or_refused(folder, run_dir):
    workdir, _ = run_dir
    long = " ".join(["haus"] * 30)
    (answer,) = load(workdir)([long])
    assert answer["notes"] == ["truncated: 31 tokens, data.max_length=16"]
    (unknown,) = load(workdir)(["haus \u732b"])
    assert unknown["notes"] == ["unknown to the vocabulary: \u732b"]
    assert unknown["text"]

    task = tasks.build(tiny_nmt.config(folder, data__max_length=5))
    (note, *_) = task.report.notes()
    assert re.search(
        r"sentences truncated to data.max_length=5 tokens, the first '.+'", note
    )
    task = tasks.build(
        tiny_nmt.config(folder, data__max_length=5, data__overlong="refuse")
    )
    with pytest.raises(
        InputError, match=r"expected at most data\.max_length=5 tokens.* '"
    ):
        task.train_data()


def test_texts_of_the_data_are_not_tokenised_again(folder, run_dir):
    def translate(params, texts):
        return [Answer([text], [0.0]) for text in texts]

    config = tiny_nmt.config(folder)
    spec = translation.make_spec(config, tokenizers.load(run_dir[0]))
    spec = dataclasses.replace(spec, preprocess=str.upper)
    pairs = Pairs(["a b", "c"], ["d", "e"], "pairs")
    predictor = make_predictor(config, spec, translate, lambda name: pairs)
    by_split, by_user = (
        [(answer["source"], answer["text"]) for answer in predictor.run({}, texts)]
        for texts in (predictor.rows("test"), ["f g"])
    )
    assert by_split == [("a b", "a b"), ("c", "c")]
    assert by_user == [("f g", "F G")]


def test_a_model_whose_outputs_are_nan_has_no_scores_and_no_answers(run_dir):
    run = open_run(run_dir[0])
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), run.params)
    scores = run.task.evaluators["validation"](run.mesh)(bad)
    assert scores.pop("examples") > 0
    assert all(np.isnan(score) for score in scores.values())
    assert scores.keys() == {*run.task.scores} - {"examples"}
    with pytest.raises(InputError, match="finite outputs, found NaN"):
        list(run.predictor().run(bad, ["a b"]))


def test_an_answer_is_one_line(run_dir):
    text = open_run(run_dir[0]).predictor().text
    assert text({"text": "a\nb"}) == "a b"


def test_all_references_of_a_row_are_scored(folder):
    metrics = translation.make_metrics(tiny_nmt.config(folder))
    pairs = Pairs(["s"], ["x y z w"], "here", references=[["x y z w", "a b c d"]])
    assert metrics.compute([Answer(["a b c d"], [0.0])], pairs)["exact_match"] == 1
    assert "nrefs:2" in metrics.signatures(pairs)["bleu"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__activation": "swish"}, "model.activation: expected one of .*'swish'"),
        ({"model__positions": "rope"}, "model.positions: expected one of .*'rope'"),
        ({"model__width": 15, "model__heads": 3}, "model.width: expected an even n"),
        ({"eval__max_length_a": "inf"}, "eval.max_length_a: expected a finite number"),
        ({"eval__length_penalty": -11}, "eval.length_penalty: expected from -10 to 10"),
    ],
)
def test_bad_fields(folder, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        tasks.build(tiny_nmt.config(folder, **fields), tmp_path, resuming=False)


def test_a_vocabulary_of_another_run_is_refused(run_dir, folder, tmp_path):
    shutil.copytree(run_dir[0], tmp_path / "run")
    small = tiny_nmt.config(folder, data__vocab_size=50)
    tasks.build(small, tmp_path / "other", resuming=False)
    path = tmp_path / "run" / "vocabulary" / "joint.json"
    shutil.copy(tmp_path / "other" / "vocabulary" / "joint.json", path)
    with pytest.raises(
        InputError, match="the vocabulary that the run was started with"
    ):
        load(tmp_path / "run")
    # Parameters bring their vocabulary along.
    for name in (run_dir[0], f"{run_dir[0]}:4"):
        tasks.build(
            tiny_nmt.config(folder, init_from=name), tmp_path / "new", resuming=False
        )
        found = tokenizers.load(tmp_path / "new").provenance()
        assert found == tokenizers.load(run_dir[0]).provenance()
    both = {"init_from": run_dir[0], "data__vocabulary": tmp_path / "other"}
    with pytest.raises(
        InputError, match=r"data\.vocabulary: expected that of init_from"
    ):
        tasks.build(tiny_nmt.config(folder, **both), tmp_path / "no", resuming=False)


def test_averages_of_checkpoints(run_dir):
    workdir, _ = run_dir
    last = [open_run(workdir, str(step)).params for step in (4, 6)]
    mean = open_run(workdir, "average:2")
    assert mean.step == 6
    jax.tree.map(
        lambda a, b, m: np.testing.assert_allclose(
            (a + b) / 2, m, rtol=1e-6, atol=1e-7
        ),
        *last,
        mean.params,
    )
    with pytest.raises(InputError, match=r"expected 9 valid checkpoints to average"):
        open_run(workdir, "average:9")
    with pytest.raises(InputError, match=r"expected average:N .* found 'x'"):
        open_run(workdir, "average:x")


def test_only_as_many_shapes_as_buckets_are_compiled(folder, monkeypatch):
    config = tiny_nmt.config(folder, data__buckets=3)
    task = tasks.build(config)
    data = task.train_data()
    traced = []

    @jax.jit
    def step(batch):
        traced.append({name: x.shape for name, x in batch.items()})
        return batch["labels"].sum()

    for t in range(4 * int(data.steps_per_epoch)):
        step(data[t])
    assert len(traced) <= 3
    assert len(data.shapes) <= 3
    assert resolve(config, data.steps_per_epoch).total_steps == 6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.beam": "2", "eval.n_best": "3"}, "eval.n_best: expected at most"),
        ({"data.overlong": "drop"}, "data.overlong: expected one of truncate, refuse"),
        ({"eval.bleu": "moses"}, "eval.bleu: expected one of auto"),
        (
            {"model.name": "gpt"},
            "model.name: expected one of transformer, marian, bart",
        ),
        ({"model.size": "gpt"}, "model.size: expected one of iwslt_de_en, vasw"),
        ({"model.heads": "3"}, "model.heads: expected a divisor of width 16, found 3"),
        ({"data.joint_vocabulary": "false"}, "model.share=all: expected one vocab"),
        ({"data.max_length": "1"}, "data.max_length: expected at least 2, found 1"),
        (
            {"batch_tokens": "16"},
            "batch_tokens: expected at least ",
        ),
    ],
)
def test_fields_are_checked(folder, overrides, message):
    config = load_config(
        tiny_nmt.NMT, tiny_nmt.TINY | {"data.dir": str(folder)} | overrides
    )
    with pytest.raises(InputError) as error:
        tasks.build(config).train_data()
    assert str(error.value).startswith(message)


def test_a_vocabulary_for_each_side(folder):
    config = tiny_nmt.config(
        folder, data__joint_vocabulary=False, model__share="decoder"
    )
    task = tasks.build(config)
    params = task.init(jax.random.key(0))
    assert {"embedding", "source_embedding"} < set(params)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    (answer,) = task.predictor(mesh).run(params, ["eins zwei"])
    assert isinstance(answer["text"], str)


def test_what_users_type(run_dir, tmp_path, monkeypatch, capsys):
    workdir, _ = run_dir
    path = tmp_path / "in.txt"
    path.write_text("eins zwei\n\nhaus \u732b\n")
    code, out, err = run("predict", "--workdir", workdir, "--input", path)
    assert code == 0, err
    answers = load(workdir)(["eins zwei", "", "haus \u732b"])
    assert out.splitlines() == [answer["text"] for answer in answers]
    assert "input 3: unknown to the vocabulary: \u732b" in err
    argv = ["--workdir", workdir, "--n_best", "3", "--checkpoint", "average:2"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"eins\nzwei")))
    capsys.readouterr()
    predict.main(list(map(str, argv)))
    best = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["source"] for row in best] == ["eins", "zwei"]
    for row in best:
        scores = [item["score"] for item in row["n_best"]]
        assert scores == sorted(scores, reverse=True)
        assert row["n_best"][0] == {"text": row["text"], "score": row["score"]}


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (
            [],
            b"haus\n\xff\n",
            "{}, line 2: expected UTF-8, found byte 0xff at position 0",
        ),
        (["--n_best", "0"], b"", "eval.n_best: expected at least 1, found 0"),
        (["--config.data.source=fr"], b"", "--config.data.source: the config of a run"),
    ],
)
def test_predict_names_bad_input(run_dir, tmp_path, argv, content, message):
    path = tmp_path / "in.txt"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        predict.main(["--workdir", str(run_dir[0]), "--input", str(path), *argv])
    assert str(error.value).startswith(message.format(path))


def test_two_vocabularies_do_not_fit_one_table(folder, tmp_path):
    two = {"data__joint_vocabulary": False, "model__share": "decoder"}
    tasks.build(tiny_nmt.config(folder, **two), tmp_path / "two", resuming=False)
    named = {"data__vocabulary": tmp_path / "two"}
    with pytest.raises(InputError, match=r"share=all: .* one for each in .*two"):
        tasks.build(tiny_nmt.config(folder, **named), tmp_path / "no", resuming=False)
    tasks.build(
        tiny_nmt.config(folder, **named, **two), tmp_path / "yes", resuming=False
    )
