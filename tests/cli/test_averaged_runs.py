"""`predict`, `load` and `evaluate` with several workdirs: averages of outputs."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import texts, tiny
from helpers.programs import run as run_program
from scipy.special import expit, logit, softmax

from rdrop_jax import tasks
from rdrop_jax.cli import run as run_lib
from rdrop_jax.cli.evaluate import evaluate
from rdrop_jax.cli.predict import load
from rdrop_jax.cli.run import Run, open_runs
from rdrop_jax.errors import InputError
from rdrop_jax.tasks import classification
from rdrop_jax.tasks.image_classification import task as image_task
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.mesh import make_mesh

RNG = np.random.default_rng(0)


def test_the_mean_of_probabilities_has_logits():
    logits = RNG.normal(0, 5, (3, 4, 6))
    found = classification.mean_probabilities(jnp.asarray(logits, jnp.float32))
    wanted = np.mean(softmax(logits, axis=-1), axis=0)
    np.testing.assert_allclose(softmax(found, axis=-1), wanted, rtol=1e-5)
    each = classification.mean_label_probabilities(jnp.asarray(logits, jnp.float32))
    wanted = logit(np.mean(expit(logits), axis=0))
    np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)


def write(workdir, config):
    """Write the config of a run that has no checkpoint."""
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    return workdir


@pytest.fixture
def untrained(monkeypatch):
    """Open runs of a linear model, with random parameters."""

    def restored(workdir, checkpoint, config, task, mesh):
        params = jax.random.normal(jax.random.key(config.seed), (10,))
        return Run(config, task, mesh, params, config.seed)

    def forward(params, batch, key):
        return jnp.outer(jnp.mean(batch["image"], axis=(1, 2, 3)), params)

    monkeypatch.setattr(image_task, "make_forward", lambda module: forward)
    monkeypatch.setattr(run_lib, "_restored", restored)


def digits(tmp_path, name="a", **overrides):
    return write(tmp_path / name, tasks.check_data(tiny.config(**overrides)))


def test_probabilities_of_images_are_averaged(tmp_path, untrained):
    several = [
        digits(tmp_path, "a", seed=1),
        digits(tmp_path, "b", seed=2),
    ]
    images = RNG.integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    each = [
        [list(a["probabilities"].values()) for a in load(w)(images)] for w in several
    ]
    answers = load(several)(images)
    found = [list(a["probabilities"].values()) for a in answers]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=2e-6)
    assert [a["id"] for a in answers] == np.argmax(found, axis=1).tolist()
    assert evaluate(several, "test", "best")["runs"] == 2
    assert "runs" not in evaluate(several[0], "test", "best")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__eval_crop": 0.5}, "same data.eval_crop, found 0.0 in .*a and 0.5 in "),
        ({"data__mean": "(0.1,)"}, r"same data.mean, found 0.5 in .*a and 0.1 in .*b"),
        ({"data__num_classes": 11}, "same data.num_classes, found 10 in .*11 in"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path, untrained, overrides, message):
    several = [digits(tmp_path, "a"), digits(tmp_path, "b", **overrides)]
    with pytest.raises(
        InputError, match=f"^--workdir: expected runs with the {message}"
    ):
        open_runs(several)


def test_no_workdir_is_refused():
    for program in (load, lambda workdirs: evaluate(workdirs, None, "best")):
        with pytest.raises(InputError, match=r"^--workdir: expected the folder of a r"):
            program([])


def test_runs_that_cannot_be_averaged_are_refused(tmp_path, untrained, monkeypatch):
    one = digits(tmp_path, "a")
    with pytest.raises(InputError, match=r"^--workdir: expected different runs, found"):
        open_runs([one, tmp_path / "." / "a"])
    names = texts.files(tmp_path)
    other = write(tmp_path / "b", tasks.check_data(texts.load(names)))
    with pytest.raises(InputError, match="same task, found 'image_classification' in"):
        open_runs([one, other])
    digits(tmp_path, "c")
    none = SimpleNamespace(averaging=None)
    monkeypatch.setattr(tasks, "build", lambda config, workdir: none)
    with pytest.raises(
        InputError, match=r"one run of task image_classification, .* found 2 runs"
    ):
        open_runs([one, tmp_path / "c"])


def test_all_runs_read_the_data_of_the_first_and_are_built_once(
    tmp_path, untrained, monkeypatch
):
    several = [digits(tmp_path, n, data__dir=f"/old/{n}") for n in "ab"]
    build, dirs = tasks.build, []

    def counted(config, workdir, **options):
        dirs.append(config.data.dir)
        return build(config, workdir, **options)

    monkeypatch.setattr(tasks, "build", counted)
    config = workdir_lib.read(several[0])
    config.data.dir = "/new"
    open_runs(several, config=config)
    assert dirs == ["/new", "/new"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_rows_of_one_run_that_trained_the_other_are_not_scored(
    tmp_path, untrained, split
):
    several = [digits(tmp_path, n, data__split_seed=n) for n in "12"]
    message = f"same data.split_seed, because other runs were trained on {split} rows"
    with pytest.raises(
        InputError, match=rf"^--split: expected runs with the {message}"
    ):
        evaluate(several, split, "best")
    run = open_runs([digits(tmp_path, n, seed=n) for n in "34"])
    run.check_split(split)


def test_files_that_differ_in_content_are_found(tmp_path, untrained, monkeypatch):
    several = [digits(tmp_path, name) for name in "abc"]
    sums = {"a": {"x/train.npz": "1", "x/test.npz": "1", "validation rows": "1"}}
    # Test files, and the rows of a fold, may differ.
    sums["b"] = {"y/train.npz": "1", "y/test.npz": "2", "validation rows": "2"}
    sums["c"] = sums["b"] | {"y/train.npz": "2"}
    monkeypatch.setattr(workdir_lib, "recorded_data", lambda w: sums.get(w.name, {}))
    open_runs(several[:2]).check_split("validation")
    run = open_runs(several)
    for split in ("validation", "test"):  # both are drawn from the digits
        with pytest.raises(
            InputError, match=r"^--split: .* same content of x/train.npz"
        ):
            run.check_split(split)
    sums.pop("c")  # a run without a record
    open_runs(several).check_split("validation")


@pytest.mark.parametrize(
    ("test", "names", "expected"),
    [
        ("held/data.csv", ["train/data.csv", "held/data.csv"], ["held/data.csv"]),
        ("held/train.csv", ["train.csv", "held/train.csv"], ["held/train.csv"]),
        ("held/final.csv", ["train.csv", "final.csv"], ["final.csv"]),  # of 0.1
        ("held/flores", ["train.de", "held/flores.de"], ["held/flores.de"]),
        ("test", ["/d/train.de", "/d/test.de"], ["/d/test.de"]),  # of 0.1
    ],
)
def test_files_of_test_data_are_known_by_their_names(test, names, expected):
    assert [n for n in names if run_lib._is_of_test(n, test, names)] == expected


def test_test_rows_that_are_separate_or_shared_by_folds_are_scored(tmp_path):
    names = texts.files(tmp_path)

    def opened(field, values, **fields):
        configs = [
            tasks.check_data(texts.load(names, **fields, **{field: value}))
            for value in values
        ]
        task = tasks.build(configs[0])
        mesh = make_mesh(**configs[0].mesh)
        return Run(configs[0], task, mesh, (), 0, run_lib._unlike(configs))

    opened("data__split_seed", (0, 1)).check_split("test")
    held_out = {"data__files__test": "", "data__test": 0.2}
    with pytest.raises(InputError, match=r"^--split: .* same data.split_seed.* test"):
        opened("data__split_seed", (0, 1), **held_out).check_split("test")
    with pytest.raises(InputError, match=r"^--split: .* the same data.columns.group"):
        opened("data__columns__group", ("", "text"), **held_out).check_split("test")
    held_out |= {"data__files__validation": "", "data__folds": 2}
    folds = opened("data__fold", (0, 1), **held_out)
    folds.check_split("test")
    with pytest.raises(InputError, match=r"^--split: expected runs with the same data"):
        folds.check_split("validation")


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["classes", "multilabel", "numbers"])
def test_trained_classifiers_of_texts(tmp_path, labels):
    def change(row):
        return row | ({"label": len(row["text"])} if labels == "numbers" else {})

    names = texts.files(tmp_path, change=change)
    metric = {"numbers": "pearson"}.get(labels, "accuracy")
    options = {"data__labels": labels, "eval__metric": metric, "total_steps": 2}
    several = [tmp_path / "a", tmp_path / "b"]
    for seed, workdir in enumerate(several):
        width = 32 + 16 * seed  # models may differ
        texts.train(workdir, names, seed=seed, model__width=width, **options)
    rows = [json.loads(x) for x in (tmp_path / "test.jsonl").read_text().splitlines()]

    def answers(workdir):
        found = load(workdir)([(row["text"], row["text_b"]) for row in rows])
        if labels == "numbers":
            return [a["label"] for a in found]
        return [[*a["probabilities"].values()] for a in found]

    means = np.mean([answers(w) for w in several], axis=0)
    np.testing.assert_allclose(answers(several), means, atol=2e-6)
    scores = evaluate(several, "test", "best")
    assert scores["runs"] == 2
    if labels == "numbers":
        wanted = np.mean((means - [row["label"] for row in rows]) ** 2)
        assert scores["loss"] == pytest.approx(wanted, rel=1e-4)
    with (several[1] / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(InputError, match=r"with the same tokenizer.json, found '"):
        open_runs(several)


@pytest.mark.slow
def test_the_programs_take_several_workdirs(tmp_path):
    several = [tmp_path / "a", tmp_path / "b"]
    for seed, workdir in enumerate(several):
        tiny.train(workdir, seed=seed, total_steps=1, eval__every=1)
    code, out, err = run_program("evaluate", "--workdir", *several)
    assert code == 0, err
    found = evaluate(several, "test", "best")
    assert json.loads(out) == pytest.approx(found, abs=1e-5)
    for argv in (several, [several[0], "--workdir", several[1]]):
        code, out, err = run_program("predict", "--workdir", *argv, "--split", "test")
        assert code == 0, err
        labels = [json.loads(line)["label"] for line in out.splitlines()]
        assert len(labels) == 360
