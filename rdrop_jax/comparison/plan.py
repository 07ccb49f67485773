"""Which runs a comparison consists of. Needs no jax.

Every run is the config with some fields set, so that each of them is one ordinary
command of `rdrop_jax.train`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import flags
from rdrop_jax.errors import InputError

# Arm: what it changes, beside alpha. `rdrop` alone has an alpha above 0.
ARMS = {
    "plain": "alpha 0, one pass",
    "rdrop": "two passes, or rdrop.num_passes, and the consistency term",
    "two_passes": "alpha 0, the passes of rdrop",
    "double_batch": "plain with batches twice as large",
    "equal_compute": "plain with more updates, for the time that rdrop takes",
}
# Fields that the comparison sets itself.
RESERVED = (
    "rdrop.alpha",
    "rdrop.objective_scale",
    "eval.test",
    "eval.patience",
    "log.every",
    "checkpoint.every",
)


@dataclass(frozen=True)
class Options:
    """What a user asks for; a comparison goes on only with the same.

    Attributes:
      config: FILE[:PRESET].
      overrides: fields of the config as text, for all runs.
      alphas: those above 0 are what rdrop may choose from.
      seeds: for choosing, counted from the config's seed.
      final_seeds: for the verdict, counted on from those.
      arms: names of `ARMS`.
      vary: field to values as text; every arm may choose from all combinations.
      metric: score of the verdict.
      mode: "max" or "min", which of its values is better.
    """

    config: str
    overrides: dict[str, str]
    alphas: tuple[float, ...]
    seeds: int
    final_seeds: int
    arms: tuple[str, ...]
    vary: dict[str, tuple[str, ...]]
    metric: str
    mode: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON returns it."""
        return asdict(self) | {
            "alphas": list(self.alphas),
            "arms": list(self.arms),
            "vary": {name: list(values) for name, values in self.vary.items()},
        }


@dataclass(frozen=True)
class Setting:
    """One point that an arm may choose.

    Attributes:
      arm: its name.
      index: place among the settings of the arm.
      values: the fields that settings of the arm differ in.
      overrides: all fields of a run but its seed and whether it reads test data.
    """

    arm: str
    index: int
    values: dict[str, str]
    overrides: dict[str, str]

    @property
    def label(self) -> str:
        """``alpha=1, lr=0.003``."""
        return ", ".join(f"{k.split('.')[-1]}={v}" for k, v in self.values.items())


@dataclass(frozen=True)
class Trial:
    """One run: a setting and a seed.

    Attributes:
      setting: what is run.
      seed: of parameters, dropout, data order and labelled subset.
      final: whether it is read on test data, for the verdict.
    """

    setting: Setting
    seed: int
    final: bool

    @property
    def name(self) -> str:
        """Folder of the run, inside the comparison's."""
        phase = "final" if self.final else "selection"
        return f"{phase}/{self.setting.arm}-{self.setting.index}/seed{self.seed}"

    @property
    def overrides(self) -> dict[str, str]:
        """All fields that the run sets."""
        own = {"seed": str(self.seed), "eval.test": str(self.final).lower()}
        return self.setting.overrides | own


def check(options: Options) -> ConfigDict:
    """Checks what was asked for, as far as no data are needed.

    Returns:
      The config that all runs share.

    Raises:
      InputError: names the argument, what was expected and what was found.
    """
    if not options.alphas or not any(options.alphas):
        raise InputError(
            "--alphas: expected numbers, one of them above 0, found "
            f"{','.join(f'{a:g}' for a in options.alphas) or 'none'}"
        )
    if min(options.alphas) < 0 or len(set(options.alphas)) < len(options.alphas):
        raise InputError(
            "--alphas: expected different numbers, none below 0, found "
            f"{','.join(f'{a:g}' for a in options.alphas)}"
        )
    for name, count in (("seeds", options.seeds), ("final_seeds", options.final_seeds)):
        if count < 1:
            raise InputError(f"--{name}: expected at least 1, found {count}")
    for arm in options.arms:
        if arm not in ARMS:
            raise InputError(
                f"--arms: expected names of {', '.join(ARMS)}, found {arm!r}."
                f"{config_lib.suggest(arm, ARMS)}"
            )
    for name in [*options.overrides, *options.vary]:
        if name in RESERVED or (name == "seed" and name in options.vary):
            raise InputError(f"{name}: the comparison sets this field itself")
    for name, values in options.vary.items():
        if not values or len(set(values)) < len(values):
            raise InputError(
                f"--vary {name}: expected different values, found "
                f"{','.join(values) or 'none'}"
            )
        if name in options.overrides:
            raise InputError(f"--vary {name}: found --config.{name} as well")
    for variant in variants(options):  # typos and values out of range
        config = flags.load(options.config, options.overrides | variant)
        if not config.optimizer.lr:
            raise InputError("optimizer.lr: expected above 0, found 0")
        if config.rdrop.num_passes == 1:
            raise InputError("rdrop.num_passes: expected none or at least 2, found 1")
    return flags.load(options.config, options.overrides)


def variants(options: Options) -> list[dict[str, str]]:
    """All combinations of what is varied; one empty one where nothing is."""
    return [
        dict(zip(options.vary, values, strict=True))
        for values in itertools.product(*options.vary.values())
    ]


def trials_per_arm(options: Options) -> int:
    """How many settings each arm may choose from."""
    return len(_alphas(options)) * len(variants(options))


def settings(
    options: Options,
    steps_per_epoch: list[float],
    arm: str,
    cost_ratio: float = 1.0,
) -> list[Setting]:
    """The settings of one arm, as many for each arm.

    An arm without an alpha of its own chooses among learning rates in its place
    (`_rates`).

    Args:
      options: what was asked for.
      steps_per_epoch: of each of `variants`.
      arm: its name.
      cost_ratio: time of an update of rdrop, divided by that of plain.

    Returns:
      The settings.
    """
    found: list[Setting] = []
    rates = _rates(options)
    for number, variant in enumerate(variants(options)):
        for slot, alpha in enumerate(_alphas(options)):
            changes = {"rdrop.alpha": "0.0"} | _passes(options, variant, arm)
            values = dict(variant)
            if arm == "rdrop":
                changes["rdrop.alpha"] = repr(alpha)
                values = {"rdrop.alpha": f"{alpha:g}"} | values
            elif len(_alphas(options)) > 1:
                values["optimizer.lr"] = rates[number][slot]
                changes["optimizer.lr"] = rates[number][slot]
            overrides = options.overrides | variant | changes
            steps = steps_per_epoch[number]
            overrides |= _in_updates(options, arm, overrides, steps, cost_ratio)
            found.append(Setting(arm, len(found), values, overrides))
    return found


def trials(options: Options, setting: Setting, *, final: bool) -> list[Trial]:
    """The runs of a setting: other seeds to choose than for the verdict."""
    first = flags.load(options.config, options.overrides).seed
    start = first + (options.seeds if final else 0)
    count = options.final_seeds if final else options.seeds
    return [Trial(setting, start + i, final) for i in range(count)]


def _passes(options: Options, variant: dict[str, str], arm: str) -> dict[str, str]:
    """Fields of the passes, where an arm does not make those of rdrop."""
    if arm == "rdrop":
        return {}
    if arm == "two_passes":
        config = flags.load(options.config, options.overrides | variant)
        return {"rdrop.num_passes": str(config.rdrop.num_passes or 2)}
    return {"rdrop.num_passes": "none", "rdrop.dropouts": "()"}


def _alphas(options: Options) -> list[float]:
    return [alpha for alpha in options.alphas if alpha > 0]


def _rates(options: Options) -> list[list[str]]:
    """Learning rates of an arm without an alpha: of each variant, one per trial.

    The variant's own times 1, 1/2, 2, 1/4, 4, ..., leaving out what another trial has.
    """
    count = len(_alphas(options))
    own = [
        flags.load(options.config, options.overrides | variant).optimizer.lr
        for variant in variants(options)
    ]
    tried = [
        variant | {"optimizer.lr": f"{lr:.6g}"}
        for variant, lr in zip(variants(options), own, strict=True)
    ]
    found = []
    for first, lr in zip(list(tried), own, strict=True):
        rates = [first["optimizer.lr"]]
        for slot in itertools.count(1):
            if len(rates) == count:
                break
            other = first | {"optimizer.lr": f"{lr * _factor(slot):.6g}"}
            if other not in tried:
                tried.append(other)
                rates.append(other["optimizer.lr"])
        found.append(rates)
    return found


def _factor(slot: int) -> float:
    """1, 1/2, 2, 1/4, 4, ..."""
    power = (slot + 1) // 2
    return 2.0 ** (-power if slot % 2 else power)


def _in_updates(
    options: Options,
    arm: str,
    overrides: Mapping[str, str],
    steps_per_epoch: float,
    cost_ratio: float,
) -> dict[str, str]:
    """Every length in updates, so that it is the same whatever the batch.

    Records and checkpoints fall on validations: a run that was killed then logs the
    same means.
    """
    config = flags.load(options.config, dict(overrides))
    total = config_lib.to_steps("total_steps", config.total_steps, steps_per_epoch)
    if arm == "equal_compute":
        total = round(total * cost_ratio)
    with config.ignore_type(), config.unlocked():
        config.total_steps = total
    resolved = config_lib.flatten(config_lib.resolve(config, steps_per_epoch))
    lengths = {name: str(resolved[name]) for name in config_lib.DURATIONS}
    every = lengths["eval.every"]
    fixed = {
        "log.every": every,
        "checkpoint.every": every,
        "eval.patience": "0",
        "rdrop.objective_scale": "mean",
    }
    if arm == "double_batch":
        fixed["batch_size"] = str(2 * config.batch_size)
    return lengths | fixed


def unlike(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Fields in which two comparisons differ, a line each."""
    old, new = config_lib.flatten(stored), config_lib.flatten(now)
    return [
        f"{name}: there {old.get(name, '(absent)')!r}, now "
        f"{new.get(name, '(absent)')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
