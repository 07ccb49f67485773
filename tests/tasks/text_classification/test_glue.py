"""GLUE: folders of version 0.1, the catalogue, and the presets."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from helpers.texts import GLUE

from configs import glue as presets
from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.tasks.text_classification import bert as encoders
from rdrop_jax.tasks.text_classification import glue, text_sets
from rdrop_jax.tasks.text_classification import task as text_classification
from rdrop_jax.training import state


def prepared(folder, name):
    """A task as version 0.1 prepared it: five rows per split."""
    task, place = glue.TASKS[name], folder / "glue" / name
    place.mkdir(parents=True)
    splits = {}
    for split in (*task.splits, "test"):
        path = place / f"{split}.jsonl"
        found = [
            {"text": f"a {i}"}
            | ({"text_b": f"b {i}"} if task.text_b else {})
            | {
                "label": (task.classes or (0.0, 1.5))[i % 2]
                if split != "test"
                else None
            }
            for i in range(5)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        sha256 = checksums.sha256(path)
        splits[split] = {"rows": 5, "bytes": path.stat().st_size, "sha256": sha256}
    index = {"format": 1, "classes": task.classes, "splits": splits}
    (place / "index.json").write_text(json.dumps(index))
    return place


def load(name, folder, **more):
    changed = {k.replace("__", "."): str(v) for k, v in more.items()}
    spec = f"{GLUE}:{name}_bert_base"
    return flags.load(spec, {"data.dir": str(folder)} | changed)


@pytest.mark.parametrize("name", ["cola", "stsb", "mnli"])
def test_folders_of_version_0_1(tmp_path, name):
    task = glue.TASKS[name]
    prepared(tmp_path, name)
    data = load(name, tmp_path, data__name=f"glue/{name}").data
    found = text_sets.find(data)
    assert found.classes == task.classes
    assert text_sets.split_names(data) == task.splits
    for split in task.splits:
        texts = text_sets.open_split(found, data, split)
        assert list(texts.first) == [f"a {i}" for i in range(5)]
        assert (texts.second or [""])[0] == ("b 0" if task.text_b else "")
        assert texts.labels[1] == (task.classes[1] if task.classes else 1.5)


def test_held_out_rows_make_the_published_validation_the_test(tmp_path):
    prepared(tmp_path, "mnli")
    changed = {"data__name": "glue/mnli", "data__validation": 2}
    data = load("mnli", tmp_path, **changed).data
    names = text_sets.split_names(data)
    assert names == ("train", "validation", "test", "test_mismatched")
    found = text_sets.find(data)
    sizes = [len(text_sets.open_split(found, data, name)) for name in names]
    assert sizes == [3, 2, 5, 5]


def test_a_damaged_task_is_noticed(tmp_path):
    place = prepared(tmp_path, "rte")
    data = load("rte", tmp_path, data__name="glue/rte").data
    whole = (place / "train.jsonl").read_bytes()
    (place / "train.jsonl").write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"train.jsonl: expected {len(whole)} bytes"):
        text_sets.find(data)
    (place / "index.json").write_text(json.dumps({"format": 1, "splits": {"test": 3}}))
    with pytest.raises(InputError, match="corrupt index"):
        text_sets.find(data)


def test_missing_data_name_the_remedy(tmp_path):
    for name, remedy in {
        "glue/rte": "Use --config.data.name=hf:nyu-mll/glue/rte",
        "tfds:glue/rte": "rdrop_jax.prepare tfds:glue/rte --data_dir",
        "glue/rtee": "data.name: expected docstrings, files, hf:ORG/NAME or tfds:NAME",
        "hf:nyu-mll/glue/": r"data.name: expected hf:ORG/NAME\[/CONFIG\]",
    }.items():
        with pytest.raises(InputError, match=remedy):
            text_sets.find(load("rte", tmp_path, data__name=name).data)
    changed = {"data__name": "glue/rte", "data__labels": "numbers"}
    with pytest.raises(InputError, match=r"data.labels: expected classes for glue/rte"):
        text_sets.find(load("rte", tmp_path, **changed).data)


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
    data = load("mnli", tmp_path, data__name="tfds:glue/mnli:2.0.0").data
    assert text_sets.find(data).provenance() == found.provenance()


# bert-base-cased and roberta-large with their poolers, as in
# tests/pretrained/test_encoder.py.
MILLIONS = {"bert": 108.3, "roberta": 355.4}


@functools.cache
def built(preset):
    config = flags.load(f"{GLUE}:{preset}", {})
    config = config.copy_and_resolve_references().unlock()
    own = glue.TASKS.get(preset.split("_")[0])
    config.data.classes = own.classes if own else ("a", "b")
    if own:  # as `text_sets.completed` fills them in
        config.data.files.update(train="train", validation="validation")
    config = config_lib.resolve(config_lib.finish(config), 100.0)
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
