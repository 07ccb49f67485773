"""Datasets of TensorFlow Datasets by name, in every task: ``tfds:NAME``."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rdrop_jax import flags, tasks
from rdrop_jax.cli import train as train_program
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.language_modeling import running_text
from rdrop_jax.tasks.summarization import summary_sets
from rdrop_jax.tasks.text_classification import text_sets

tfds = pytest.importorskip("tensorflow_datasets")
NAMES = ("bad", "good")


def write(folder, name, features, rows, splits=("train", "test")):
    """Prepare a dataset with the same rows in each split, as `prepare` does."""

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def generators(self, _):
        return {split: self._generate_examples() for split in splits}

    def examples(self):
        yield from enumerate(rows)

    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "__module__": __name__,
        "_info": info,
        "_split_generators": generators,
        "_generate_examples": examples,
    }
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    made = builder(data_dir=str(folder), file_format="array_record")
    made.download_and_prepare()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("catalogue")
    text, label = tfds.features.Text(), tfds.features.ClassLabel(names=NAMES)
    reviews = [
        {"review": f"Text\u2028{i} \u00fc", "stars": NAMES[i % 2]} for i in range(6)
    ]
    write(place, "Reviews", {"review": text, "stars": label}, reviews)
    score = tfds.features.Scalar(np.float32)
    scores = [row | {"stars": i / 2} for i, row in enumerate(reviews)]
    write(place, "Scores", {"review": text, "stars": score}, scores)
    write(
        place,
        "Unlabelled",
        {"text": text, "label": label},
        [{"text": "a", "label": -1}] * 3,
    )
    news = [{"body": f"Body {i}.", "title": f"Title {i}"} for i in range(8)]
    write(place, "News", {"body": text, "title": text}, news, ("train",))
    image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    photos = [
        {"photo": Image.fromarray(x), "kind": NAMES[i % 2]}
        for i, x in enumerate(pixels)
    ]
    write(place, "Photos", {"photo": image, "kind": label}, photos)
    splits = ("train", "validation")
    write(place, "Views", {"photo": image, "kind": label}, photos, splits)
    untold = [row | {"kind": -1} for row in photos]
    write(place, "Untold", {"photo": image, "kind": label}, untold)
    return place


def data(preset, folder, name, **fields):
    given = {"data.dir": str(folder), "data.name": name} | {
        f"data.{k.replace('__', '.')}": str(v) for k, v in fields.items()
    }
    return flags.load(f"configs/{preset}", given)


def test_labelled_texts(folder):
    columns = {"columns__text": "review", "columns__label": "stars"}
    config = data("glue.py:files", folder, "tfds:reviews", validation=2, **columns)
    config = tasks.check_data(config)
    assert tuple(config.data.classes) == NAMES
    assert dict(config.data.files) == {
        "train": "train",
        "validation": "",
        "test": "test",
    }
    found = text_sets.find(config.data)
    sizes = [
        len(text_sets.open_split(found, config.data, s))
        for s in ("train", "validation", "test")
    ]
    assert sizes == [4, 2, 6]
    assert list(found.provenance()) == ["reviews/1.0.0"]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("reviews", {}),
        ("reviews", {"classes": NAMES}),
        ("scores", {"labels": "numbers"}),
    ],
)
def test_a_name_of_one_split_leaves_the_usual_ones(folder, name, labels):
    columns = {"columns__text": "review", "columns__label": "stars"}
    fields = columns | labels | {"validation": 2, "files__train": "train"}
    config = tasks.check_data(data("glue.py:files", folder, f"tfds:{name}", **fields))
    assert config.data.files.test == "test"


def test_a_run_resumes_with_the_splits_that_it_was_started_with(folder, tmp_path):
    fields = {"columns__text": "review", "columns__label": "stars", "validation": 2}
    fields |= {"labels": "numbers", "files__train": "train"}
    config = data("glue.py:files", folder, "tfds:scores", **fields)
    step = tmp_path / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    stored = tasks.check_data(config).copy_and_resolve_references()
    stored.data.files.test = ""  # which earlier versions did not find
    (tmp_path / "config.json").write_text(stored.to_json())
    resumed = train_program.check_start(config, tmp_path)
    assert dict(resumed.data.files) == {"train": "train", "validation": "", "test": ""}
    with pytest.raises(InputError, match=r"data.files.test"):
        train_program.check_start(config, tmp_path, given=["data.files.test"])


@pytest.mark.parametrize(
    ("preset", "columns"),
    [
        ("nmt.py:files", ("source", "target")),
        ("summarization.py:files", ("source", "target")),
        ("lm.py:files", ("text",)),
    ],
)
def test_a_size_next_to_a_split_is_refused(folder, preset, columns):
    fields = {f"columns__{column}": "review" for column in columns}
    config = data(preset, folder, "tfds:reviews", test=2, **fields)
    with pytest.raises(InputError, match=r"data\.test: expected no size .*, found 2\."):
        tasks.build(tasks.check_data(config))


def test_a_version(folder):
    columns = {"columns__text": "review", "columns__label": "stars"}
    config = data(
        "glue.py:files", folder, "tfds:reviews:1.0.0", validation=2, **columns
    )
    assert tuple(tasks.check_data(config).data.classes) == NAMES
    with pytest.raises(InputError, match=r"prepare tfds:reviews:2\.0\.0"):
        tasks.check_data(data("glue.py:files", folder, "tfds:reviews:2.0.0"))


def test_a_test_split_without_labels_is_left_out(folder):
    config = data("glue.py:files", folder, "tfds:unlabelled", validation=1)
    config.data.classes = NAMES
    assert tasks.check_data(config).data.files.test == ""


def test_summaries_with_splits_held_out(folder):
    columns = {"columns__source": "body", "columns__target": "title"}
    config = data(
        "summarization.py:files", folder, "tfds:news", validation=2, test=2, **columns
    )
    found = summary_sets.find(tasks.check_data(config).data)
    pairs = [found.splits[split]() for split in ("train", "validation", "test")]
    assert [len(each) for each in pairs] == [4, 2, 2]
    assert sorted(x for each in pairs for x in each.source) == [
        f"Body {i}." for i in range(8)
    ]


def test_running_text(folder, caplog):
    config = data("lm.py:files", folder, "tfds:news", columns__text="body")
    made = running_text.named_lines(tasks.check_data(config).data)
    assert sorted(made["train"]) == [f"Body {i}." for i in range(8)]
    with caplog.at_level("INFO"):
        fields = {"validation": 2, "test": 3, "columns__text": "body"}
        running_text.corpus(data("lm.py:files", folder, "tfds:news", **fields).data)
    assert {
        "validation: 2 lines held out of tfds:news",
        "test: 3 lines held out of tfds:news",
    } <= {*caplog.messages}
    with pytest.raises(
        InputError,
        match=r"data\.columns\.text: expected a column of tfds:news, train: "
        r"body, title, found 'text'",
    ):
        tasks.check_data(data("lm.py:files", folder, "tfds:news"))


def test_images(folder):
    columns = {"columns__image": "photo", "columns__label": "kind"}
    config = data("vit.py:folder", folder, "tfds:photos", **columns)
    config = tasks.check_data(config)
    assert tuple(config.data.classes) == NAMES
    rows = image_sets.find(config.data).splits["test"]()
    assert sorted(int(rows[i]["label"]) for i in range(6)) == [0, 0, 0, 1, 1, 1]
    wrong = data("vit.py:folder", folder, "tfds:photos", num_classes=2)
    with pytest.raises(
        InputError, match="expected features image and label, found kind, photo"
    ):
        image_sets.find(wrong.data).splits["test"]()


def test_images_of_splits_that_the_user_names(folder):
    fields = {"files__validation": "test", "files__test": "test"}
    found = image_sets.find(data("vit.py:folder", folder, "tfds:photos", **fields).data)
    assert set(found.splits) == {"train", "validation", "test"}
    wrong = data("vit.py:folder", folder, "tfds:photos", files__test="tset")
    with pytest.raises(
        InputError, match=r"data\.files\.test: .*: train, test, found 'tset'"
    ):
        image_sets.find(wrong.data)


@pytest.mark.parametrize(
    ("name", "fields", "splits"),
    [
        ("views", {"files__test": "validation"}, {"train", "test"}),
        ("photos", {"files__validation": "test"}, {"train", "validation"}),
        ("untold", {}, {"train"}),
        ("untold", {"files__test": "test"}, {"train", "test"}),
    ],
)
def test_a_split_of_images_serves_once_and_has_labels(folder, name, fields, splits):
    columns = {"columns__image": "photo", "columns__label": "kind"}
    config = data("vit.py:folder", folder, f"tfds:{name}", **columns, **fields)
    found = image_sets.find(config.data)
    assert set(found.splits) == splits
    changed = fields != {"files__test": "test"}  # since earlier versions
    assert ("splits" in found.provenance()) == changed
    held_out = {"validation", "test"} - splits
    assert set(image_sets.held_out(found, config.data)) == held_out


def test_a_dataset_that_is_gone(folder, tmp_path):
    shutil.copytree(folder / "news", tmp_path / "news")
    (tmp_path / "news" / "1.0.0" / "dataset_info.json").unlink()
    with pytest.raises(
        InputError, match=r"tfds:news: no prepared .* which has 1\.0\.0"
    ):
        tasks.check_data(data("lm.py:files", tmp_path, "tfds:news"))
