"""Decoding, augmentation and batches of images: pure, checked, the same anywhere."""

import contextlib
import io

import numpy as np
import pytest
from helpers.pictures import encoded, noise, write_folder
from PIL import Image, features

from rdrop_jax import flags
from rdrop_jax.data.batches import TrainBatches, eval_batches
from rdrop_jax.data.sources import Images
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import images, predict, randaugment
from rdrop_jax.tasks.image_classification.decode import BadImage, Decoded, decode
from rdrop_jax.tasks.image_classification.folder import find
from rdrop_jax.tasks.image_classification.predict import prepared, read_images

ALL = {
    "data.crop": "random",
    "data.flip": "true",
    "data.randaugment": "2",
    "data.image_size": "16",
}


def settings(**changed):
    changed = {f"data.{k}": str(v) for k, v in changed.items()}
    return flags.load("configs/vit.py:cifar100", ALL | changed).data


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth(width, height):
    """x in the red channel, y in the green."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def test_transforms_are_pure_and_sized():
    image = Image.fromarray(noise(1, 40)[0])
    for crop in images.CROPS:
        transform = images.make_train_transform(settings(crop=crop))
        one, other = (transform(image, rng()) for _ in range(2))
        assert one.shape == (16, 16, 3)
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)
        assert np.any(transform(image, rng(1)) != one)
    array = images.make_train_transform(settings())(np.asarray(image), rng())
    np.testing.assert_array_equal(
        array, images.make_train_transform(settings())(image, rng())
    )


def test_random_crops_have_the_wanted_area_and_ratio():
    image = Image.fromarray(smooth(200, 100))
    areas, ratios = [], []
    nearest = Image.Resampling.NEAREST
    for seed in range(300):
        found = images.random_resized_crop(
            image, 50, rng(seed), (0.05, 1.0), (0.75, 4 / 3), nearest
        )
        pixels = np.asarray(found).astype(float)
        # 50 samples in the middles of 50 equal steps over the part.
        width = np.ptp(pixels[..., 0]) * 50 / 49
        height = np.ptp(pixels[..., 1]) * 50 / 49
        areas.append(width * height / 20_000)
        ratios.append(width / height)
    assert min(areas) < 0.1
    assert 0.5 < max(areas) <= 0.7  # wider ones do not fit into 200 x 100
    assert 0.68 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.45
    # What never fits gives the largest middle part of an allowed shape.
    found = images.random_resized_crop(
        image, 50, rng(), (1.0, 1.0), (0.75, 1.0), nearest
    )
    pixels = np.asarray(found)
    assert (pixels[..., 0].min(), pixels[..., 0].max()) == (51, 149)
    assert (pixels[..., 1].min(), pixels[..., 1].max()) == (1, 99)


def test_pad_crop_moves_by_up_to_the_margin():
    image = noise(1, 6)[0] | 1  # nowhere black
    seen = set()
    for seed in range(60):
        found = images.pad_crop(image, 2, rng(seed))
        assert found.shape == image.shape
        black = (found == 0).all(-1)
        seen.add((int(black.all(1).sum()), int(black.all(0).sum())))
    assert max(seen) == (2, 2)
    assert (0, 0) in seen


def test_flips_are_half_and_half():
    data = settings(crop="none", flip=True, randaugment=0, image_size=8)
    image = noise(1)[0]
    transform = images.make_train_transform(data)
    plain = images.normalize(image, (0.5,), (0.5,))
    found = [transform(image, rng(seed)) for seed in range(100)]
    kept = [np.array_equal(x, plain) for x in found]
    turned = [np.array_equal(x, plain[:, ::-1]) for x in found]
    assert all(a or b for a, b in zip(kept, turned, strict=True))
    assert 35 <= sum(turned) <= 65


def test_evaluation_squeezes_or_takes_the_middle():
    image = smooth(80, 40)
    squeezed = images.make_eval_transform(settings(eval_crop=0))(image)
    middle = images.make_eval_transform(settings(eval_crop=0.5))(image)
    back = (middle + 1) * 127.5
    assert squeezed.shape == middle.shape == (16, 16, 3)
    # The middle 20 x 20 of 80 x 40: columns 30 to 49, rows 10 to 29.
    assert back[..., 0].min() == pytest.approx(30, abs=1)
    assert back[..., 0].max() == pytest.approx(49, abs=1)
    assert back[..., 1].min() == pytest.approx(10, abs=1)
    assert ((squeezed + 1) * 127.5)[..., 0].max() > 75
    same = images.make_eval_transform(settings(eval_crop=1, image_size=8))
    np.testing.assert_allclose(same(noise(1)[0]), noise(1)[0] / 127.5 - 1, atol=1e-6)


def test_channels_are_normalised_each_by_its_own():
    image = np.full((2, 2, 3), 255, np.uint8)
    found = images.normalize(image, (0.5, 0.25, 0.0), (0.5, 0.75, 2.0))
    np.testing.assert_allclose(found[0, 0], [1.0, 1.0, 0.5])


@pytest.mark.parametrize("number", range(len(randaugment.OPERATIONS)))
def test_each_operation_keeps_size_and_mode(number):
    op = randaugment.OPERATIONS[number]
    for image in (
        Image.fromarray(noise(1, 32)[0]),
        Image.fromarray(noise(1, 32)[0][..., 0]),
    ):
        found = op(image, 0.9, -1.0)
        assert (found.size, found.mode) == (image.size, image.mode)
        if number not in (0, 1):  # noise already fills the range that (1) stretches to
            gone = np.asarray(found) != np.asarray(image)
            assert gone.any() or (number == 6 and image.mode == "L")
    if number not in (1, 2):
        untouched = op(image, 0.0, 1.0)
        np.testing.assert_array_equal(np.asarray(untouched), np.asarray(image))


def test_operations_are_drawn_alike():
    counts = np.zeros(len(randaugment.OPERATIONS))
    for seed in range(400):
        drawn = rng(seed).integers(len(counts), size=2)
        counts += np.bincount(drawn, minlength=len(counts))
    assert counts.min() > 30
    image = Image.fromarray(noise(1, 32)[0])
    found = [randaugment.rand_augment(image, 2, 9.0, rng(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(found[1]))
    assert np.any(np.asarray(found[0]) != np.asarray(found[2]))


def jpegs(folder, count=12, size=24):
    classes = ("ant", "bee")
    write_folder(folder, noise(count, size), np.arange(count) % 2, classes)
    return find(folder)[0]["train"]


def batches(rows, workers=0, process=(0, 1)):
    transform = images.make_train_transform(settings())
    source = Decoded(rows, channels=3, num_classes=2, skip_bad=False)
    return TrainBatches(
        source,
        lambda row, rng: {
            "image": transform(row["image"], rng),
            "label": row["label"],
        },
        batch_size=4,
        seed=3,
        process=process,
        workers=workers,
    )


def test_batches_do_not_depend_on_workers_or_hosts(tmp_path):
    rows = jpegs(tmp_path)
    wanted = [batches(rows)[t] for t in range(5)]
    for workers in (2, 4):
        data = batches(rows, workers)
        found = {t: data[t] for t in (4, 1, 3, 0, 2)}  # in any order
        for t, batch in enumerate(wanted):
            for name in ("image", "label"):
                np.testing.assert_array_equal(found[t][name], batch[name])
    parts = [batches(rows, 2, (i, 2)) for i in (0, 1)]
    for t, batch in enumerate(wanted):
        for name in ("image", "label"):
            halves = [part[t][name] for part in parts]
            np.testing.assert_array_equal(np.concatenate(halves), batch[name])


def test_evaluation_is_shared_by_hosts_and_workers(tmp_path):
    rows = jpegs(tmp_path, count=10)
    source = Decoded(rows, channels=3, num_classes=2, skip_bad=False)
    resized = images.make_eval_transform(settings())

    def transform(row):
        return row | {"image": resized(row["image"])}

    whole = list(eval_batches(source, transform, batch_size=8))
    assert [int(b["where"].sum()) for b in whole] == [8, 2]
    parts = [
        list(
            eval_batches(
                source, transform, batch_size=8, process=(i, 2), workers=2, ahead=2
            )
        )
        for i in (0, 1)
    ]
    for t, batch in enumerate(whole):
        for name in batch:
            halves = [part[t][name] for part in parts]
            np.testing.assert_array_equal(np.concatenate(halves), batch[name])


def test_bad_images_are_named_or_left_out(tmp_path, capsys):
    rows = jpegs(tmp_path)
    bad = tmp_path / "ant" / "00002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    row = [rows.name(i) for i in range(len(rows))].index(str(bad))
    strict = Decoded(rows, channels=3, num_classes=2, skip_bad=False)
    with pytest.raises(InputError, match=rf"{bad}: expected an image .*skip_bad=true"):
        strict[row]
    lenient = Decoded(rows, channels=3, num_classes=2, skip_bad=True)
    for _ in range(2):
        found = lenient[row]
        assert not found["where"]
        np.testing.assert_array_equal(
            np.asarray(found["image"]), np.asarray(strict[row + 1]["image"])
        )
    assert list(lenient.skipped) == [str(bad)]
    assert capsys.readouterr().err.count("left out: ") == 1
    # Evaluation counts what is there, and no other image twice.
    resized = images.make_eval_transform(settings())
    (batch,) = eval_batches(
        lenient, lambda r: r | {"image": resized(r["image"])}, batch_size=12
    )
    assert batch["where"].sum() == 11
    assert not batch["where"][row]
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="expected readable images, found none"):
        lenient[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_damaged_files_give_bad_image_and_nothing_else(kind):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow reads no WEBP")
    content = encoded(noise(1, 24)[0], kind)
    assert np.asarray(decode(content, 3)).shape == (24, 24, 3)
    assert np.asarray(decode(content, 1)).shape == (24, 24)
    generator = rng()
    for _ in range(150):
        broken = bytearray(content)
        for place in generator.integers(len(broken), size=3):
            broken[place] = generator.integers(256)
        broken = broken[: generator.integers(1, len(broken) + 1)]
        with contextlib.suppress(BadImage):
            decode(bytes(broken), 3)
    with pytest.raises(BadImage) as error:
        decode(content[:20], 3)
    assert "0x" not in str(error.value)


def test_other_files_are_bad_images(tmp_path, monkeypatch):
    for content in (b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(BadImage):
            decode(content, 3)
    with pytest.raises(BadImage, match="No such file"):
        decode(tmp_path / "none.png", 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="exceeds limit"):
        decode(encoded(noise(1, 24)[0]), 3)
    out = io.BytesIO()
    Image.fromarray(noise(1, 9)[0]).convert("CMYK").save(out, "JPEG")
    assert decode(out.getvalue(), 3).mode == "RGB"


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_grey_are_scaled(channels):
    deep = np.arange(0, 2**16, 2**8, dtype=np.uint16).reshape(16, 16)
    out = io.BytesIO()
    Image.fromarray(deep).save(out, "PNG")
    found = np.asarray(decode(out.getvalue(), channels)).reshape(16, 16, channels)
    for channel in range(channels):
        np.testing.assert_array_equal(found[..., channel], deep >> 8)
    row = prepared(settings(channels=channels), 0, Image.fromarray(deep))
    assert row["image"].shape == (16, 16, channels)
    assert row["image"].min() == -1
    assert row["image"].mean() == pytest.approx(0, abs=0.01)


def test_labels_of_files_are_checked_with_their_name():
    rows = Images(noise(2), np.array([0, 5]), "mine")
    with pytest.raises(InputError, match=r"mine row 1: expected a label .* 1, found 5"):
        Decoded(rows, channels=3, num_classes=2, skip_bad=True)[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop", "center", "one of none, random, pad"),
        ("crop_area", "(0.0, 1.0)", r"in \(0, 1\]"),
        ("crop_area", "(0.5,)", r"in \(0, 1\]"),
        ("crop_area", "('a', 'b')", r"in \(0, 1\]"),
        ("crop_ratio", "(1,)", "minimum and maximum"),
        ("std", "(0.0,)", "a number above 0"),
        ("std", "('a',)", "a number above 0"),
        ("mean", "('a',)", "for all channels, or for each"),
        ("mean", "(1e999,)", "for all channels, or for each"),
        ("mean", "(0.1, 0.2)", "for all channels, or for each"),
        ("magnitude", "11", "from 0 to 10"),
        ("interpolation", "area", "one of nearest"),
        ("channels", "4", "1 or 3"),
    ],
)
def test_bad_settings_are_named(field, value, message):
    with pytest.raises(InputError, match=rf"data\.{field}: expected .*{message}"):
        images.check_transforms(settings(**{field: value}))


def test_predict_reads_files_folders_and_lists(tmp_path):
    rows = jpegs(tmp_path / "photos", count=4)
    (tmp_path / "photos" / "notes.md").write_text("not an image")
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    assert list(read_images(str(tmp_path / "photos"))) == paths
    assert list(read_images(str(paths[0]))) == [paths[0]]
    listing = tmp_path / "list.txt"
    listing.write_text("photos/ant/00000.png\n\nphotos/bee/00001.png\n")
    assert [p.read_bytes() for p in read_images(str(listing))] == [
        (rows.root / rows.paths[i]).read_bytes() for i in (0, 2)
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"in .*empty, found none"):
        list(read_images(str(tmp_path / "empty")))
    (tmp_path / "scan.heic").write_bytes(b"II*\0")
    with pytest.raises(InputError, match=r"expected an image \(.*JSON in line 1"):
        list(read_images(str(tmp_path / "scan.heic")))
    data = settings(eval_crop=0.5)
    wanted = images.make_eval_transform(data)(np.asarray(Image.open(paths[0])))
    opened = Image.open(paths[0])
    for given in (paths[0], str(paths[0]), paths[0].read_bytes(), opened):
        np.testing.assert_array_equal(prepared(data, 0, given)["image"], wanted)
    with pytest.raises(InputError, match=r"--input: .*notes\.md: expected an image"):
        prepared(data, 0, tmp_path / "photos" / "notes.md")


def test_predict_names_a_truncated_picture():
    file = io.BytesIO()
    Image.fromarray(noise(1, 64)[0]).save(file, "JPEG")
    opened = Image.open(io.BytesIO(file.getvalue()[:-600]))
    with pytest.raises(
        InputError, match=r"--input: image 4: expected an image .*trunc"
    ):
        prepared(settings(), 4, opened)


def test_predict_takes_fractions_as_it_takes_bytes():
    data = settings(eval_crop=0.75)
    (image,) = noise(1, 16)
    wanted = prepared(data, 0, image)["image"]
    found = prepared(data, 0, image.astype(float))["image"]
    # Bytes are rounded after each of the two passes of resizing.
    np.testing.assert_allclose(found, wanted, atol=1 / 255 / 0.5)
    for bad in (np.nan, -0.5, 255.5):
        broken = image.astype(float)
        broken[3, 3, 1] = bad
        with pytest.raises(InputError, match="from 0 to 255 in image 7, found values"):
            prepared(data, 7, broken)


@pytest.mark.parametrize("channels", [1, 3])
def test_predict_converts_pixels_as_training_does(channels):
    data = settings(channels=channels)
    colour = noise(1, 16)[0]
    for image in (colour, colour[..., :1]):
        picture = Image.fromarray(image.squeeze())
        wanted = prepared(data, 0, picture)["image"]
        np.testing.assert_array_equal(prepared(data, 0, image)["image"], wanted)
    grey = colour[..., 0]
    np.testing.assert_array_equal(prepared(data, 0, grey)["image"], wanted)


def test_json_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jsonl").write_text("[[1]]")
    monkeypatch.setattr(predict, "open", refuse, raising=False)
    with pytest.raises(InputError, match=r"^--input: .*a\.jsonl cannot be read: .*Per"):
        list(predict.read_images(str(tmp_path / "a.jsonl")))
