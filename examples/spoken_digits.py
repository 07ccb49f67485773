"""Connected spoken digits with CTC: R-Drop, and CR-CTC with two views.

Data: github.com/Jakobovski/free-spoken-digit-dataset, 3,000 recordings of 6 speakers.
Recordings of one speaker are joined to strings of 3 to 7 digits.

Run: python -m rdrop_jax.train --config examples/spoken_digits.py \
         --config.data.dir=free-spoken-digit-dataset/recordings

Plain CTC is rdrop.alpha=0, R-Drop the default, and CR-CTC data.views=2.
docs/results/plan.md has the command that compares them.
"""

import functools
import hashlib
import wave
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rdrop_jax import dropout, rdrop_ctc_loss
from rdrop_jax.config import base_config, finish
from rdrop_jax.errors import InputError
from rdrop_jax.training.task import StepOptions, Task

RATE, WINDOW, HOP, FFT, BANDS = 8000, 200, 80, 256, 40
# Recordings of each digit and speaker; 0 to 4 are the dataset's own test set.
TEST, VALIDATION, TRAIN = range(5), range(5, 10), range(10, 50)
LONGEST, SUBSAMPLING, CLASSES = 7, 4, 11  # class 0 is the blank, digit d is d + 1


def get_config(preset: str = ""):
    """Return the config; its task is `build` below."""
    c = base_config()
    c.total_steps, c.batch_size = 1000, 16
    c.model.width, c.model.layers, c.model.dropout = 64, 3, 0.1
    c.data.recordings = 40  # per digit and speaker, for training
    c.data.strings = 300  # of validation, and of test
    c.data.frames = 400  # of 10 ms; digits that do not fit are left out
    c.data.views = 1  # 2: each pass masks its own time and frequencies
    c.data.time_mask, c.data.band_mask = 25, 8  # widest; two masks each
    c.rdrop.alpha, c.rdrop.alpha_warmup = 0.4, "10%"
    c.rdrop.stop_gradient, c.rdrop.objective_scale = "targets", "mean"
    c.optimizer.lr, c.optimizer.warmup, c.optimizer.schedule = 4e-3, "10%", "cosine"
    c.optimizer.weight_decay, c.optimizer.clip = 1e-2, 1.0
    c.eval.every = c.checkpoint.every = "10%"
    c.eval.metric = "error_rate"
    return finish(c)


@functools.cache
def mel_filters() -> np.ndarray:
    """Return triangles on the mel scale [frequencies, bands]."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    hertz = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Return log-mel features [frames, bands] of a sound; silence is 0."""
    sound = np.pad(sound / max(np.abs(sound).max(), 1e-6), (0, WINDOW))
    at = np.arange(0, len(sound) - WINDOW, HOP)[:, None] + np.arange(WINDOW)
    spectrum = np.fft.rfft(sound[at] * np.hanning(WINDOW), FFT)
    return np.log1p(1e3 * np.abs(spectrum) ** 2 @ mel_filters()).astype(np.float32) / 5


def read_wav(file: Path) -> np.ndarray:
    """Return the samples of a recording."""
    with wave.open(str(file)) as sound:
        found = (sound.getframerate(), sound.getsampwidth(), sound.getnchannels())
        if found != (RATE, 2, 1):
            raise InputError(f"{file}: expected 8 kHz, 16 bits, mono, found {found}")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2")


@functools.cache
def read_recordings(folder: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the features by name, such as 7_jackson_32, and a checksum."""
    files = sorted(Path(folder).glob("[0-9]_*_*.wav"))
    if not folder or not files:
        raise InputError(
            f"data.dir: expected recordings such as 7_jackson_32.wav, found none in "
            f"{folder!r}. Clone github.com/Jakobovski/free-spoken-digit-dataset and "
            "name its folder recordings"
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return {f.stem: log_mel(read_wav(f)) for f in files}, digest.hexdigest()


class Strings:
    """Batches of digit strings; batch t is a pure function of (seed, t)."""

    def __init__(self, config, indices: range, size: int, seed: int) -> None:
        self.speakers: dict = {}  # speaker and digit: features of the recordings
        for name, features in read_recordings(config.data.dir)[0].items():
            digit, speaker, index = name.split("_")
            if int(index) in indices:
                digits = self.speakers.setdefault(speaker, {})
                digits.setdefault(int(digit), []).append(features)
        self.frames, self.size, self.seed = config.data.frames, size, seed
        count = sum(
            len(x) for digits in self.speakers.values() for x in digits.values()
        )
        self.steps_per_epoch = count / 5 / size  # a string has 5 digits on average
        self.examples_per_step = float(size)

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.seed, step))
        rows = [self.make(rng) for _ in range(self.size)]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return batch | {"view": np.full(self.size, rng.integers(2**31), np.int32)}

    def make(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Join recordings of one speaker, with up to 0.2 s of silence before each."""
        digits = self.speakers[rng.choice(sorted(self.speakers))]
        features, end = np.zeros((self.frames, BANDS), np.float32), 0
        labels: list[int] = []
        for digit in rng.choice(sorted(digits), rng.integers(3, LONGEST + 1)):
            sound = digits[digit][rng.integers(len(digits[digit]))]
            start = end + int(rng.integers(20))
            if start + len(sound) > self.frames:
                break
            end = start + len(sound)
            features[start:end] = sound
            labels.append(digit + 1)
        return {
            "features": features,
            "frame_paddings": np.arange(self.frames) >= end,
            "labels": np.pad(labels, (0, LONGEST - len(labels))).astype(np.int32),
            "label_paddings": np.arange(LONGEST) >= len(labels),
        }


def spec_augment(batch, key, *, widest: tuple[int, int]):
    """Mask two ranges of time and two of frequency in each row (arXiv 1904.08779)."""
    x = batch["features"]
    length = jnp.sum(~batch["frame_paddings"], axis=1)
    keep = jnp.ones(x.shape, bool)
    for axis, end in ((1, length), (2, jnp.full(len(x), BANDS))):
        for _ in range(2):
            key, draw = jax.random.split(key)
            u = jax.random.uniform(draw, (2, len(x)))
            width = jnp.floor(u[0] * (1 + jnp.minimum(widest[axis - 1], end)))
            start = jnp.floor(u[1] * (1 + end - width))[:, None]
            at = jnp.arange(x.shape[axis])[None]
            masked = (at >= start) & (at < start + width[:, None])
            keep &= ~jnp.expand_dims(masked, 3 - axis)
    return batch | {"features": x * keep}


class Encoder(nn.Module):
    """Two strided convolutions and residual convolutional layers with dropout."""

    width: int
    layers: int
    dropout: float

    @nn.compact
    def __call__(self, x, padded, *, train: bool):
        def drop(h):
            return dropout(self.make_rng("dropout"), h, self.dropout) if train else h

        for _ in range(2):
            x = nn.relu(nn.Conv(self.width, (5,), strides=2)(x))
        keep = ~padded[:, ::SUBSAMPLING, None]
        for _ in range(self.layers):
            h = nn.relu(nn.Conv(self.width, (5,))(nn.LayerNorm()(x) * keep))
            x = x + drop(nn.Dense(self.width)(drop(h)))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x))


def decode(logits: np.ndarray, padded: np.ndarray) -> list[list[int]]:
    """Return the most likely class of each frame, without repetitions and blanks."""
    best = np.where(padded[:, ::SUBSAMPLING], 0, np.argmax(logits, axis=-1))
    new = np.diff(best, axis=1, prepend=0) != 0
    return [row[at & (row > 0)].tolist() for row, at in zip(best, new, strict=True)]


def edits(found: list[int], wanted: list[int]) -> int:
    """Return the number of insertions, deletions and substitutions."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def build(config) -> Task:
    """Build the task of a config."""
    data = config.data
    read_recordings(data.dir)  # an error before the model is built
    model = Encoder(config.model.width, config.model.layers, config.model.dropout)
    view = functools.partial(spec_augment, widest=(data.time_mask, data.band_mask))

    def init(key):
        padded = jnp.zeros((1, data.frames), bool)
        features = jnp.zeros((1, data.frames, BANDS))
        return model.init(key, features, padded, train=False)["params"]

    def forward(params, batch, key):
        if key is not None and data.views == 1:  # the same for all passes
            batch = view(batch, jax.random.key(batch["view"][0]))
        rngs = None if key is None else {"dropout": key}
        x, padded = batch["features"], batch["frame_paddings"]
        return model.apply({"params": params}, x, padded, train=bool(rngs), rngs=rngs)

    def loss(logits, batch, **objective):
        return rdrop_ctc_loss(
            logits,
            batch["frame_paddings"][:, ::SUBSAMPLING],
            batch["labels"],
            batch["label_paddings"],
            divergence=config.rdrop.divergence,
            stop_gradient=config.rdrop.stop_gradient,
            **objective,
        )

    @jax.jit
    def run(params, batch, key):
        logits = forward(params, batch, key)
        return logits, loss(logits[None], batch, alpha=0.0)[1]["ce"]

    def make_scores(indices):
        """Make ``(params, key) -> error of each string, CTC loss``."""
        batch = Strings(config, indices, data.strings, 0)[0]
        pairs = zip(batch["labels"], batch["label_paddings"], strict=True)
        wanted = [row[~padded].tolist() for row, padded in pairs]
        digits = sum(map(len, wanted)) / len(wanted)  # of the mean string

        def scores(params, key=None):
            logits, ce = run(params, batch, key)
            found = decode(np.asarray(logits), batch["frame_paddings"])
            errors = [edits(*pair) for pair in zip(found, wanted, strict=True)]
            return np.array(errors) / digits, float(ce.compute())

        return scores

    def evaluator(indices, mesh):
        scores = make_scores(indices)
        return lambda params: {
            name: float(np.mean(x))
            for name, x in zip(("error_rate", "loss"), scores(params), strict=True)
        }

    def examples(mesh):
        scores = make_scores(TEST)
        return lambda params, key: {"error_rate": scores(params, key)[0]}

    return Task(
        init=init,
        forward=forward,
        loss=loss,
        train_data=lambda: Strings(
            config, TRAIN[: data.recordings], config.batch_size, config.seed
        ),
        scores=("error_rate", "loss"),
        evaluators={
            "validation": functools.partial(evaluator, VALIDATION),
            "test": functools.partial(evaluator, TEST),
        },
        provenance=lambda: {"recordings": read_recordings(data.dir)[1]},
        examples={"test": examples},
        step=StepOptions(views=view if data.views == 2 else None),
    )
