"""python -m benchmarks.loader [--images 200] [--workers 1 2]

Images per second of the data pipeline, compared with Pillow's decoding of the same
files. The rate per core uses CPU time, which does not depend on the load of the
machine; the rate with threads uses wall time. The images are generated JPEGs of
500 x 375 pixels: smooth colours with some noise, 66 kB each at quality 90.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from rdrop_jax.cli import flags, process
from rdrop_jax.data import prepared
from rdrop_jax.data.batches import TrainBatches
from rdrop_jax.tasks.image_classification import images
from rdrop_jax.tasks.image_classification.decode import Decoded

SETTINGS = {
    "random crop": {"data.crop": "random"},
    "random crop, flip, RandAugment (2, 9)": {
        "data.crop": "random",
        "data.flip": "true",
        "data.randaugment": "2",
    },
}
BATCH = 32


def photo(seed: int) -> bytes:
    """Make a JPEG of 500 x 375 pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int64)
    noisy = smooth + rng.integers(-12, 13, smooth.shape)
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def rate(make: Callable[[], int], clock: Callable[[], float]) -> float:
    """Measure images per second, the best of three."""
    rates = []
    for _ in range(3):
        start = clock()
        count = make()
        rates.append(count / (clock() - start))
    return max(rates)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args(argv)
    process.tune_allocator()
    files = [photo(i) for i in range(args.images)]
    size = sum(map(len, files)) / len(files) / 1e3
    print(f"{args.images} JPEGs, {size:.0f} kB each, to 224 px\n")
    titles = " | ".join(f"{w} threads" for w in args.workers)
    print(f"| images per second | per core | {titles} |")
    print("| --- | --- |" + " --- |" * len(args.workers))

    def decode(content: bytes) -> None:
        Image.open(io.BytesIO(content)).load()

    def row(name: str, make: Callable[[int], Callable[[], int]]) -> None:
        found = [rate(make(1), time.process_time)]
        found += [rate(make(w), time.perf_counter) for w in args.workers]
        print(f"| {name} | " + " | ".join(f"{x:.0f}" for x in found) + " |", flush=True)

    def bare(workers: int) -> Callable[[], int]:
        pool = ThreadPoolExecutor(workers)
        return lambda: len(list(pool.map(decode, files)))

    row("Pillow, decoding alone", bare)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "made")
        writer = prepared.Writer(place, {})
        records = (prepared.record(0, content) for content in files)
        list(writer.write("train", len(files), lambda start: records, len(files)))
        writer.finish(["made"])
        rows = prepared.Records(place, prepared.read_index(place), "train")
        source = Decoded(rows, channels=3, num_classes=1, skip_bad=False)
        for name, overrides in SETTINGS.items():
            data = flags.load("configs/vit.py:cifar100", overrides).data
            transform = images.make_train_transform(data)

            def pipeline(workers: int, transform=transform) -> Callable[[], int]:
                batches = TrainBatches(
                    source,
                    lambda row, rng: {"image": transform(row["image"], rng)},
                    batch_size=BATCH,
                    seed=0,
                    workers=workers,
                )
                steps = max(len(files) // BATCH, 1)
                return lambda: sum(len(batches[t]["image"]) for t in range(steps))

            row(f"array_record to batch: {name}", pipeline)


if __name__ == "__main__":
    main(sys.argv[1:])
