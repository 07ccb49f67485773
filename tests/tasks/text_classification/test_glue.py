"""GLUE: preparing it from its files, reading it, and the presets."""

import functools
import json
import re
import zipfile

import jax
import numpy as np
import pytest
from helpers import messages
from helpers.texts import GLUE

from configs import glue as presets
from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.cli.prepare import prepare
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.text_classification import bert as encoders
from rdrop_jax.tasks.text_classification import glue, text_sets
from rdrop_jax.tasks.text_classification import task as text_classification
from rdrop_jax.training import state

# Lines of each task's files, with the header lines of the published ones.
HEADERS = {
    "cola": "",
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\t"
    "sentence2\tscore",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\t"
    "sentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\t"
    "label1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
}


def lines(name, split):
    """A file of the task: a header, and five rows."""
    task = glue.TASKS[name]
    columns = HEADERS[name].split("\t") if HEADERS[name] else list(task.header)
    test = split.startswith("test")
    if test:
        columns = [c for c in columns if c not in (task.label, "label1", "star")]
        columns = columns if HEADERS[name] else ["index", "sentence"]
    found = ["\t".join(columns)] if test or HEADERS[name] else []
    for row in range(5):
        values = {c: f'{c} "{row}' for c in columns}
        if name == "stsb":
            values["score"] = f"{row}.5"
        elif name in ("mnli", "qnli", "rte"):
            values[task.label] = task.classes[row % 2]
        else:
            values[task.label] = str(row % 2)
        found.append("\t".join(values[c] for c in columns))
    return "\n".join(found) + "\n"


def write_zip(folder, name):
    task = glue.TASKS[name]
    path = folder / f"{task.folder}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, file in task.splits.items():
            archive.writestr(f"{task.folder}/{file}", lines(name, split))
        archive.writestr(f"{task.folder}/original/train.tsv", "another file")
    return path


def load(name, folder, **more):
    changed = {k.replace("__", "."): str(v) for k, v in more.items()}
    spec = f"{GLUE}:{name}_bert_base"
    return flags.load(spec, {"data.dir": str(folder)} | changed)


@pytest.mark.parametrize("name", glue.TASKS)
def test_from_the_zip_and_from_a_folder(tmp_path, name):
    task = glue.TASKS[name]
    place = prepare(f"glue/{name}", tmp_path, [write_zip(tmp_path, name)])
    assert place == tmp_path / "glue" / name
    source = tmp_path / "from" / task.folder
    source.mkdir(parents=True)
    for split, file in task.splits.items():
        (source / file).write_text(lines(name, split))
    other = prepare(f"glue/{name}", tmp_path / "b", [tmp_path / "from"])
    for split in task.splits:
        file = f"{split}.jsonl"
        assert (place / file).read_bytes() == (other / file).read_bytes()
    data = load(name, tmp_path).data
    found = text_sets.find(data)
    assert found.classes == task.classes
    for split in text_sets.split_names(data):
        texts = text_sets.open_split(found, data, split)
        assert len(texts) == 5
        assert texts.first[1] == f'{task.text} "1'
        assert (texts.second or [""])[0] == (f'{task.text_b} "0' if task.text_b else "")
        wanted = 1.5 if name == "stsb" else task.classes[1]
        assert texts.labels[1] == wanted
    blind = [json.loads(x) for x in (place / "test.jsonl").read_text().splitlines()]
    assert len(blind) == 5
    assert all(row["label"] is None for row in blind)
    with messages.collected() as said:
        assert prepare(f"glue/{name}", tmp_path, []) == place
    assert said == [f"{place} exists. Remove it to prepare it again"]


def test_held_out_rows_make_the_published_validation_the_test(tmp_path):
    prepare("glue/mnli", tmp_path, [write_zip(tmp_path, "mnli")])
    data = load("mnli", tmp_path).data
    assert text_sets.split_names(data) == (
        "train",
        "validation",
        "validation_mismatched",
    )
    data = load("mnli", tmp_path, data__validation=2).data
    names = text_sets.split_names(data)
    assert names == ("train", "validation", "test", "test_mismatched")
    found = text_sets.find(data)
    sizes = [len(text_sets.open_split(found, data, name)) for name in names]
    assert sizes == [3, 2, 5, 5]


def test_a_damaged_task_is_noticed(tmp_path):
    place = prepare("glue/rte", tmp_path, [write_zip(tmp_path, "rte")])
    data = load("rte", tmp_path).data
    whole = (place / "train.jsonl").read_bytes()
    (place / "train.jsonl").write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"train.jsonl: expected {len(whole)} bytes"):
        text_sets.find(data)
    (place / "index.json").write_text(json.dumps({"format": 1, "splits": {"test": 3}}))
    with pytest.raises(InputError, match="corrupt index"):
        text_sets.find(data)


def test_files_that_are_not_glue(tmp_path):
    with pytest.raises(
        InputError, match=r"expected RTE.zip, or a folder with RTE/train"
    ):
        prepare("glue/rte", tmp_path, [tmp_path])
    bad = tmp_path / "RTE.zip"
    bad.write_bytes(write_zip(tmp_path, "rte").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"RTE.zip: expected a zip archive"):
        prepare("glue/rte", tmp_path, [bad])
    folder = tmp_path / "RTE"
    folder.mkdir()
    for text, match in {
        "index\tsentence1\tlabel\n": r"the columns sentence1, sentence2, label, found",
        HEADERS["rte"] + "\n0\ta\tb\n": r"line 2: expected 4 columns",
        HEADERS["rte"] + "\n0\ta\tb\tperhaps\n": r"one of entailment, .*'perhaps'",
        HEADERS["rte"] + "\n": r"train.tsv: expected rows, found none",
    }.items():
        (folder / "train.tsv").write_text(text)
        with pytest.raises(InputError, match=match):
            prepare("glue/rte", tmp_path, [tmp_path / "none", tmp_path])
    assert not (tmp_path / "glue" / "rte").exists()
    with pytest.raises(InputError, match=r"no such dataset. Did you mean glue/rte"):
        prepare("glue/rt", tmp_path, [])


def test_lines_that_lost_a_column_are_known_of_qqp(tmp_path):
    folder = tmp_path / "QQP"
    folder.mkdir()
    for split, file in glue.TASKS["qqp"].splits.items():
        (folder / file).write_text(lines("qqp", split) + "7\t8\t9\tWhy?\n")
    with messages.collected() as said:
        prepare("glue/qqp", tmp_path, [tmp_path])
    assert "train: left out 1 lines that lack a text or a label" in said
    assert "train: 5 rows" in said


@pytest.mark.parametrize("name", ["glue/rte", "tfds:glue/rte"])
def test_what_is_not_prepared_names_the_command(tmp_path, name):
    config = load("rte", tmp_path, data__name=name)
    with pytest.raises(InputError, match=f"rdrop_jax.prepare {name} --data_dir"):
        text_sets.find(config.data)
    with pytest.raises(
        InputError, match=r"expected one of docstrings, .*mean glue/rte"
    ):
        text_sets.find(load("rte", tmp_path, data__name="glue/rtee").data)
    with pytest.raises(InputError, match=r"data.labels: expected classes for glue/rte"):
        text_sets.find(load("rte", tmp_path, data__labels="numbers").data)


def test_the_catalogue_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Glue(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="mnli"),)
        name = "glue"

        def _info(self):
            text = tfds.features.Text()
            names = glue.TASKS["mnli"].classes
            features = {"premise": text, "hypothesis": text}
            features["idx"] = tfds.features.Scalar(np.int32)
            features["label"] = tfds.features.ClassLabel(names=names)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            splits = ("train", "validation_matched", "validation_mismatched")
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            for i in range(3):
                yield i, {"premise": split, "hypothesis": "b", "label": i, "idx": i}

    Glue(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    data = load("mnli", tmp_path, data__name="tfds:glue/mnli").data
    found = text_sets.find(data)
    for split in text_sets.split_names(data):
        texts = text_sets.open_split(found, data, split)
        matched = split.replace("validation", "validation_matched")
        wanted = matched if split == "validation" else split
        assert list(texts.first) == [wanted] * 3
        assert sorted(texts.labels) == sorted(glue.TASKS["mnli"].classes)


# bert-base-cased and roberta-large with their poolers, as in
# tests/pretrained/test_encoder.py.
MILLIONS = {"bert": 108.3, "roberta": 355.4}


@functools.cache
def built(preset):
    config = flags.load(f"{GLUE}:{preset}", {})
    if preset in ("demo", "files"):
        config = config.copy_and_resolve_references().unlock()
        config.data.classes = ("a", "b")
    config = config_lib.resolve(text_sets.completed(config), 100.0)
    return config, tasks.build(config)


@functools.cache
def parameters(module):
    init = functools.partial(text_classification.init, module)
    return jax.eval_shape(init, jax.random.key(0))


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_has_its_shapes(preset):
    config, task = built(preset)
    params = parameters(encoders.make_model(config))
    shape = (2, config.data.max_length)
    ids = jax.ShapeDtypeStruct(shape, "int32")
    batch = {"tokens": ids, "types": ids, "length": jax.ShapeDtypeStruct((2,), "int32")}
    if preset.split("_")[0] in ("demo", "files", "rte"):  # the others are as these
        logits = jax.eval_shape(task.forward, params, batch, jax.random.key(0))
        assert logits.shape == (2, len(config.data.classes))
    assert params["head"]["bias"].shape == (max(len(config.data.classes), 1),)
    assert config.eval.metric in task.scores
    if config.init_from:
        head = sum(x.size for x in jax.tree.leaves(params["head"]))
        count = sum(x.size for x in jax.tree.leaves(params)) - head
        assert round(count / 1e6, 1) == MILLIONS[config.model.name]


def test_recipes_are_those_of_the_docstring():
    table = re.findall(
        r"^  (\w+) +(\d+) +(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)$",
        presets.__doc__,
        re.MULTILINE,
    )
    assert [row[0] for row in table] == list(presets.RECIPES)
    for task, updates, warmup, batch, paper, bert, roberta in table:
        for model, alpha in (("bert_base", bert), ("roberta_large", roberta)):
            config, _ = built(f"{task}_{model}")
            assert config.total_steps == int(updates)
            assert config.optimizer.warmup == int(warmup)
            assert config.batch_size == int(batch)
            assert config.rdrop.alpha == float(alpha)
        assert float(paper) in (0.5, 1.0)
        if task != "stsb":
            assert float(bert) == 0.5 * int(batch)
            assert float(roberta) == pytest.approx(2.8 * int(batch))
    schedule = state.make_schedule(built("rte_bert_base")[0].optimizer, 3120)
    assert float(schedule(122)) == pytest.approx(1e-5)
    assert float(schedule(61)) == pytest.approx(5e-6)
    assert float(schedule(3120)) == pytest.approx(1e-7)
