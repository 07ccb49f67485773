"""Tiny image datasets in every form that the library reads."""

import hashlib
import io
import tarfile

import numpy as np
from PIL import Image

from rdrop_jax.files import archives
from rdrop_jax.tasks.image_classification import imagenet


def noise(rows, size=8, channels=3, seed=0):
    shape = (rows, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def write_folder(root, images, labels, classes):
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / classes[label] / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def imagenet_archives(folder, per_class=3, classes=2, rows=5):
    """The three archives in their published structure, and what to expect of them."""
    import scipy.io

    wordnet = [f"n0000000{i}" for i in range(classes)]
    inner, images = {}, {}
    for number, name in enumerate(wordnet):
        files = {
            f"{name}_{i}.JPEG": encoded(noise(1, 12, seed=10 * number + i)[0], "JPEG")
            for i in range(per_class)
        }
        images[name] = list(files.values())
        inner[f"{name}.tar"] = write_tar(folder / "inner.tar", files).read_bytes()
    # Ids of the devkit run against the order of WordNet ids.
    kinds = [("ILSVRC2012_ID", "<i4"), ("WNID", "O"), ("words", "O")]
    synsets = np.zeros(classes + 1, [*kinds, ("num_children", "<i4")])
    for i, name in enumerate(wordnet):
        synsets[i] = (classes - i, name, f"word {i}", 0)
    synsets[classes] = (classes + 1, "n99999999", "everything", classes)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = [i % classes + 1 for i in range(rows)]
    validation = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(
            noise(1, 12, seed=100 + i)[0], "JPEG"
        )
        for i in reversed(range(rows))
    }
    root = "ILSVRC2012_devkit_t12/data/"
    devkit = {
        root + "meta.mat": meta.getvalue(),
        root + "ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{t}\n" for t in truth
        ).encode(),
    }
    sources = []
    for name, content, mode in (
        ("ILSVRC2012_img_train.tar", inner, "w"),
        ("ILSVRC2012_img_val.tar", validation, "w"),
        ("ILSVRC2012_devkit_t12.tar.gz", devkit, "w:gz"),
    ):
        path = write_tar(folder / name, content, mode)
        sources.append(archives.Source(name, "https://example.org", md5(path)))
    counts = {"train": per_class * classes, "test": rows}
    return imagenet.Expected(*sources, counts, classes), images, truth
