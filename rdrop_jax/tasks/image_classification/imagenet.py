"""ImageNet (ILSVRC 2012) from its archives, with unmodified JPEG files.

The recipe stays because the copy on the Hub is gated, and because several hosts can
read the array_record files from one shared folder.
"""

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdrop_jax.data import prepared
from rdrop_jax.errors import InputError
from rdrop_jax.files import archives

_logger = logging.getLogger(__name__)
_SITE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (an account)"
_LIMIT = 2**25  # bytes per image; the largest is 16 MB
_META = "meta.mat"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Expected:
    """Expected contents of the archives.

    Attributes:
      train, validation, devkit: the archives.
      rows: images per split.
      classes: number of classes.
    """

    train: archives.Source
    validation: archives.Source
    devkit: archives.Source
    rows: dict[str, int]
    classes: int


IMAGENET2012 = Expected(
    archives.Source(
        "ILSVRC2012_img_train.tar", _SITE, "1d675b47d978889d74fa0da5fadfb00e"
    ),
    archives.Source(
        "ILSVRC2012_img_val.tar", _SITE, "29b22e2961454d5413ddabcf34fc5622"
    ),
    archives.Source(
        "ILSVRC2012_devkit_t12.tar.gz", _SITE, "fa75699e90414af021442c21a62c3abf"
    ),
    {"train": 1_281_167, "test": 50_000},
    1000,
)


def prepare(
    folder: Path,
    files: list[Path],
    expected: Expected = IMAGENET2012,
    shard: int = 10_000,
) -> Path:
    """Write the training set and the official validation set, here called test.

    Class ids follow the sorted WordNet ids, as is usual. A resumed write reads only the
    archive headers to find its position, which takes minutes.

    Args:
      folder: output folder.
      files: the archives, or folders that contain them.
      expected: counts and checksums.
      shard: images per file.

    Returns:
      The folder.

    Raises:
      InputError: an archive differs from the published one.
    """
    sources = (expected.train, expected.validation, expected.devkit)
    paths = archives.locate(sources, files)
    sums = archives.verify(sources, paths)
    devkit = _devkit(paths[expected.devkit.file], expected)
    names = dict(devkit.classes.values())
    ids = {wordnet: i for i, wordnet in enumerate(sorted(names))}
    truth = [ids[devkit.classes[number][0]] for number in devkit.truth]
    makers = {
        "train": lambda start: _train(paths[expected.train.file], ids, start),
        "test": lambda start: _test(paths[expected.validation.file], truth, start),
    }
    writer = prepared.Writer(folder, sums)
    for split, rows in expected.rows.items():
        for done in writer.write(split, rows, makers[split], shard):
            _logger.info("%s: %d of %d images", split, done, rows)
    return writer.finish([names[w] for w in sorted(names)])


def _train(path: Path, ids: dict[str, int], start: int) -> Iterator[bytes]:
    """Yield records starting at row ``start``, grouped by class."""
    row = 0
    with archives.open_tar(path) as outer:
        for entry in archives.members(outer, str(path)):
            origin = f"{path}:{entry.name}"
            wordnet = Path(entry.name).stem
            if wordnet not in ids:
                raise InputError(
                    f"{origin}: expected the archive of one of the classes"
                )
            with archives.open_tar(path, outer.extractfile(entry)) as inner:
                for member in archives.members(inner, origin):
                    row += 1
                    if row > start:
                        image = archives.read(inner, member, origin, _LIMIT)
                        yield prepared.record(ids[wordnet], image)


def _test(path: Path, truth: list[int], start: int) -> Iterator[bytes]:
    """Yield records starting at row ``start``, in the order of the archive."""
    row = 0
    with archives.open_tar(path) as archive:
        for member in archives.members(archive, str(path)):
            match = re.fullmatch(r".*_val_(\d{8})\.JPEG", member.name)
            if match is None or not 1 <= int(match[1]) <= len(truth):
                raise InputError(
                    f"{path}: expected ILSVRC2012_val_00000001.JPEG to "
                    f"{len(truth):08d}, found {member.name!r}"
                )
            row += 1
            if row > start:
                image = archives.read(archive, member, str(path), _LIMIT)
                yield prepared.record(truth[int(match[1]) - 1], image)


@dataclass(frozen=True)
class _Devkit:
    classes: dict[int, tuple[str, str]]  # ILSVRC id to WordNet id and name
    truth: list[int]  # ILSVRC id of each validation image


def _devkit(path: Path, expected: Expected) -> _Devkit:
    found = {}
    with archives.open_tar(path) as archive:
        for member in archives.members(archive, str(path)):
            if Path(member.name).name in (_META, _TRUTH):
                content = archives.read(archive, member, str(path), _LIMIT)
                found[Path(member.name).name] = content
    if set(found) != {_META, _TRUTH}:
        raise InputError(f"{path}: expected {_META} and {_TRUTH}, found {list(found)}")
    classes = _classes(found[_META], path)
    truth = [int(line) for line in archives.lines(found[_TRUTH], str(path))]
    if len(classes) != expected.classes or not set(truth) <= set(classes):
        raise InputError(
            f"{path}: expected {expected.classes} classes, including those of all "
            f"images, found {len(classes)} classes"
        )
    if len(truth) != expected.rows["test"]:
        raise InputError(
            f"{path}: expected {expected.rows['test']} labels, found {len(truth)}"
        )
    return _Devkit(classes, truth)


def _classes(content: bytes, path: Path) -> dict[int, tuple[str, str]]:
    """Read the leaves of the synset table: id to (WordNet id, names)."""
    import scipy.io

    try:
        table = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        return {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in table
            if int(row["num_children"]) == 0
        }
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise InputError(f"{path}: expected a table of synsets: {error}") from error
