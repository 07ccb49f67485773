"""Image datasets by name: location, splits and classes. Needs no jax."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rdrop_jax.data import catalogue, prepared, sources, splits
from rdrop_jax.data import hub as data_hub
from rdrop_jax.data.datasets import Dataset, prepared_folder
from rdrop_jax.data.sources import ImageRows
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, hub
from rdrop_jax.files.roots import root
from rdrop_jax.tasks.image_classification import folder, hub_images, images, npz
from rdrop_jax.training import workdir as workdir_lib

# Datasets of rdrop_jax.prepare and their sources. Version 0.1 prepared CIFAR-100, and
# its runs resume from that folder.
PREPARED = {
    "cifar100": "",
    "imagenet2012": "ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar "
    "ILSVRC2012_devkit_t12.tar.gz",
}
HUB = {"cifar100": "hf:uoft-cs/cifar100"}
# Rows of a test split that are searched for a label.
_FIRST_ROWS = 1000
_GATED = (
    "Or accept the terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k, set "
    "HF_TOKEN to a token of your account, and train with "
    "--config.data.name=hf:ILSVRC/imagenet-1k --config.data.files.test=validation"
)


def find(data: ConfigDict, commit: str = "") -> Dataset[ImageRows]:
    """Find the dataset that a config names.

    Args:
      data: the config's ``data``.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      The dataset, of which only names and indices are read.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    if data.name == "digits":
        file = sources.digits_file()
        return Dataset(
            {s: functools.partial(sources.digits, s, data.split_seed) for s in SPLITS},
            lambda: {"digits.csv.gz": checksums.sha256(file)},
        )
    if data.name in PREPARED:
        return _prepared(data)
    if data.name.startswith(catalogue.PREFIX):
        return _catalogue(data)
    if hub.is_name(data.name):
        return _named(data, commit)
    if data.name == "folder":
        files, classes = folder.find(_root(data), tuple(data.classes))
        return Dataset(
            {name: functools.partial(files.__getitem__, name) for name in files},
            lambda: {name: _listing(rows) for name, rows in files.items()},
            classes,
            next(iter(files.values())).notes,
        )
    if data.name == "npz":
        paths = npz.find(_root(data), training=not data.num_classes)
        opened = {
            name: functools.cache(functools.partial(npz.load, path))
            for name, path in paths.items()
        }
        return Dataset(
            opened,
            lambda: {path.name: checksums.sha256(path) for path in paths.values()},
            npz.classes(paths["train"]) if "train" in paths else tuple(data.classes),
            npz.notes(_root(data)),
            lambda: npz.groups(
                paths["train"], data.columns.group, len(opened["train"]())
            ),
        )
    raise InputError(
        "data.name: expected one of digits, imagenet2012, folder, npz, "
        f"{catalogue.PREFIX}NAME or {hub.PREFIX}ORG/NAME, found {data.name!r}."
        f"{hub.hint('data.name', data.name)}"
    )


def own_splits(recorded: Mapping[str, str]) -> frozenset[str]:
    """Return the splits that a run read from separate images.

    Args:
      recorded: checksums of a run's data by name.

    Example:
      >>> sorted(own_splits({"train": "8 files", "test": "2 files"}))
      ['test', 'train']
      >>> sorted(own_splits({"my_val.npz": "ab", "my_train.npz": "cd"}))
      ['train', 'validation']
    """
    files = [Path(name) for name in recorded if name.lower().endswith(".npz")]
    found = {name for name in recorded if name in SPLITS}
    if len(files) > 1:  # a single file has all images
        found.update(*(npz.splits_of(file.stem) for file in files))
    return frozenset(found)


def open_split(
    found: Dataset[ImageRows],
    data: ConfigDict,
    name: str,
    recorded: Mapping[str, str] | None = None,
) -> ImageRows:
    """Read a split, held out of the training rows if the dataset does not have it.

    Args:
      found: the dataset.
      data: the config's ``data``.
      name: "train", "validation" or "test".
      recorded: checksums of a run's data by name. Its separate splits are not held out
        of training images, and no split is held out of images that have changed.

    Returns:
      The rows of the split.

    Raises:
      InputError: the split and the training images to hold it out of are both missing.
    """
    recorded = recorded or {}
    own = own_splits(recorded) - ({"validation"} if data.folds else set())
    if name in own and name not in found.splits:
        raise InputError(
            f"data.dir: expected {name} images, which the run read separately, found "
            f"only splits {', '.join(found.splits)}. Restore the {name} images"
        )
    missing = {s: n for s, n in held_out(found, data).items() if s not in own}
    if (
        name in found.splits
        and name not in missing
        and (name != "train" or not missing)
    ):
        return found.splits[name]()
    if "train" not in found.splits:
        raise InputError(
            f"data.dir: expected {name} images, or training images to hold them out "
            f"of, found only splits {', '.join(found.splits)}"
        )
    if recorded:
        workdir_lib.check_unchanged(recorded, found.provenance(), "data.dir")
    rows = found.splits["train"]()
    return sources.Subset(rows, _cut(found, data, missing)[name])


def held_out(found: Dataset[ImageRows], data: ConfigDict) -> dict[str, float]:
    """Return the size of each split to hold out; a fold for validation ignores it."""
    return {
        split: data[split]
        for split in ("validation", "test")
        if split not in found.splits or (split == "validation" and data.folds)
    }


def drawn(found: Dataset[ImageRows], data: ConfigDict) -> tuple[str, ...]:
    """Return the splits whose rows depend on ``data.split_seed``."""
    return SPLITS if data.name == "digits" else tuple(held_out(found, data))


def _cut(
    found: Dataset[ImageRows], data: ConfigDict, sizes: Mapping[str, float]
) -> dict[str, np.ndarray]:
    def cut() -> dict[str, np.ndarray]:
        rows = found.splits["train"]()
        classes = sources.labels_of(rows) if data.folds else None
        groups = found.group_list(data, map(rows.name, range(len(rows))))
        return splits.cut(len(rows), sizes, data, classes=classes, groups=groups)

    return found.once((str(data), *sizes), cut)


def provenance(found: Dataset[ImageRows], data: ConfigDict) -> dict[str, str]:
    """Return checksums of the data, and of the rows of a fold."""
    if not data.folds:
        return found.provenance()
    rows = _cut(found, data, held_out(found, data))
    return found.provenance() | splits.checksum(rows)


def notes(found: Dataset[ImageRows], data: ConfigDict) -> tuple[str, ...]:
    """Return a note for each split that is held out of the training images."""
    fold = f", fold {data.fold} of {data.folds}" if data.folds else ""
    if data.folds and "validation" in found.splits:
        fold += "; the dataset's validation split is not read"
    return tuple(
        f"{s}: {len(open_split(found, data, s))} rows held out of the training images"
        + (fold if s == "validation" else "")
        for s in held_out(found, data)
    )


def _root(data: ConfigDict) -> Path:
    home = root(data)
    if not home:
        raise InputError(
            f"data.dir: expected the location of {data.name}, found an empty path. Set "
            "--config.data.dir or $RDROP_DATA_DIR."
        )
    if not Path(home).exists():
        raise InputError(f"data.dir: no such file or folder: {home}")
    return Path(home)


def _prepared(data: ConfigDict) -> Dataset[ImageRows]:
    instead = HUB.get(data.name, "")
    place = prepared_folder(
        data, PREPARED[data.name], "data", note=_GATED, instead=instead
    )
    index = prepared.read_index(place)
    return Dataset(
        {
            s: functools.partial(prepared.Records, place, index, s)
            for s in index["splits"]
        },
        lambda: {name: s["sha256"] for name, s in index["sources"].items()},
        tuple(index["classes"]),
    )


def _catalogue(data: ConfigDict) -> Dataset[ImageRows]:
    place = catalogue.prepared_folder(data, "data")
    chosen = data_hub.choose(catalogue.load(data, "data"), dict(data.files))
    columns = (data.columns.image or "image", data.columns.label or "label")
    if "test" in chosen and not data.files.test:
        rows = catalogue.Examples(place, chosen["test"], columns)
        first = range(min(len(rows), _FIRST_ROWS))
        if all(rows[i]["label"] < 0 for i in first):
            del chosen["test"]
    names = catalogue.splits(place)
    usual = {s: data.files[s] or s for s in SPLITS if data.files[s] or s in names}
    # Earlier versions read these; their runs do not resume with other rows.
    changed = {} if chosen == usual else {"splits": str(sorted(chosen.items()))}
    return Dataset(
        {
            s: functools.partial(catalogue.Examples, place, name, columns)
            for s, name in chosen.items()
        },
        lambda: (
            {"dataset_info.json": checksums.sha256(place / "dataset_info.json")}
            | changed
        ),
        catalogue.classes(place, columns[1]),
    )


def _named(data: ConfigDict, commit: str) -> Dataset[ImageRows]:
    loaded = data_hub.load(data.name, commit)
    chosen = data_hub.choose(loaded, dict(data.files))
    columns = hub_images.columns(
        loaded, chosen["train"], data.columns.image, data.columns.label
    )
    label = columns[1]
    known = data.files.test or "test" not in chosen
    if not known and not hub_images.labelled(loaded, chosen["test"], label):
        del chosen["test"]
    return Dataset(
        {
            split: functools.partial(hub_images.HubImages, loaded, name, columns)
            for split, name in chosen.items()
        },
        lambda: dict(loaded.provenance),
        data_hub.class_names(loaded, chosen["train"], label),
        groups=lambda: hub_images.groups(loaded, chosen["train"], data.columns.group),
    )


def _listing(rows: folder.Files) -> str:
    """Return the number and a checksum of the names and labels of image files."""

    def lines() -> Iterator[bytes]:
        for path, label in zip(rows.paths, rows.labels, strict=True):
            yield f"{path}\t{label}\n".encode(errors="surrogateescape")

    return (
        f"{len(rows)} files, sha256 of names and labels "
        + hashlib.sha256(b"".join(lines())).hexdigest()
    )


def check_data(config: ConfigDict, commit: str = "") -> ConfigDict:
    """Check the training data and fill in the class names and their number.

    The workdir stores them, so that prediction needs no dataset and a change of the
    classes between starts is detected.

    Args:
      config: config of the run.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      A locked copy, or the config itself if nothing is added.

    Raises:
      InputError: the training data are missing or have other classes.
    """
    data = config.data
    images.check_transforms(data)
    splits.check_folds(data)
    if data.classes and data.num_classes and not data.columns.group:
        return config  # by an earlier call
    found = find(data, commit)
    splits.check_group(data, held_out(found, data))
    classes = found.classes
    if not classes and not data.num_classes:
        raise InputError(
            f"data.num_classes: expected the number of classes, because {data.name} "
            "has no class names, found 0"
        )
    if classes and data.num_classes not in (0, len(classes)):
        raise InputError(
            f"data.num_classes: expected {len(classes)}, the number of classes of "
            f"{data.name}, found {data.num_classes}"
        )
    if not classes:
        return config
    filled = config.copy_and_resolve_references().unlock()
    filled.data.classes = classes
    filled.data.num_classes = len(classes)
    return filled.lock()
