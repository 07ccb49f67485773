"""Settings and trials of a comparison. Needs no jax.

Every run is the config with some fields overridden, so that each can be reproduced by
one ordinary command of `rdrop_jax.train`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.compare.options import Options, positive, variants


@dataclass(frozen=True)
class Setting:
    """Candidate hyperparameters of an arm.

    Attributes:
      arm: name of the arm.
      index: position among the settings of the arm.
      values: fields that differ between settings of the arm, with their values.
      overrides: all overrides of a run except ``seed`` and ``eval.test``.
    """

    arm: str
    index: int
    values: dict[str, str]
    overrides: dict[str, str]

    @property
    def label(self) -> str:
        """Short text such as ``alpha=1, lr=0.003``."""
        return ", ".join(f"{k.split('.')[-1]}={v}" for k, v in self.values.items())


@dataclass(frozen=True)
class Trial:
    """One run: a setting and a seed.

    Attributes:
      setting: hyperparameters of the run.
      seed: seed of parameters, dropout, data order and labelled subset.
      final: True for a final run, which is scored on test data for the verdict.
    """

    setting: Setting
    seed: int
    final: bool

    @property
    def name(self) -> str:
        """Folder of the run, relative to the comparison's folder."""
        phase = "final" if self.final else "selection"
        return f"{phase}/{self.setting.arm}-{self.setting.index}/seed{self.seed}"

    @property
    def overrides(self) -> dict[str, str]:
        """All overrides of the run."""
        own = {"seed": str(self.seed), "eval.test": str(self.final).lower()}
        return self.setting.overrides | own


def trials_per_arm(options: Options) -> int:
    """Return the number of settings that each arm selects from."""
    return len(positive(options)) * len(variants(options))


def settings(
    options: Options,
    steps_per_epoch: list[float],
    arm: str,
    cost_ratio: float = 1.0,
) -> list[Setting]:
    """Return the settings of one arm; every arm has the same number.

    An arm with alpha 0 selects among learning rates instead of alphas (`_rates`).

    Args:
      options: options of the comparison.
      steps_per_epoch: steps per epoch of each of `variants`.
      arm: name of the arm.
      cost_ratio: time per step of rdrop divided by that of plain.

    Returns:
      The settings.
    """
    found: list[Setting] = []
    rates = _rates(options)
    for number, variant in enumerate(variants(options)):
        for slot, alpha in enumerate(positive(options)):
            changes = {"rdrop.alpha": "0.0"} | _passes(options, variant, arm)
            values = dict(variant)
            if arm == "rdrop" or arm in options.ablations:
                changes["rdrop.alpha"] = repr(alpha)
                values = {"rdrop.alpha": f"{alpha:g}"} | values
            elif len(positive(options)) > 1:
                values["optimizer.lr"] = rates[number][slot]
                changes["optimizer.lr"] = rates[number][slot]
            ablation = options.ablations.get(arm, {})
            values |= {name: text for name, text in ablation.items() if name in values}
            changes |= ablation
            overrides = options.overrides | variant | changes
            steps = steps_per_epoch[number]
            overrides |= _in_updates(options, arm, overrides, steps, cost_ratio)
            found.append(Setting(arm, len(found), values, overrides))
    return found


def trials(options: Options, setting: Setting, *, final: bool) -> list[Trial]:
    """Return the runs of a setting; selection and final runs have different seeds."""
    first = flags.load(options.config, options.overrides).seed
    start = first + (options.seeds if final else 0)
    count = options.final_seeds if final else options.seeds
    return [Trial(setting, start + i, final) for i in range(count)]


def _passes(options: Options, variant: dict[str, str], arm: str) -> dict[str, str]:
    """Return the overrides for an arm's forward passes."""
    if arm not in ("rdrop", "two_passes", *options.ablations):
        return {"rdrop.num_passes": "none", "rdrop.dropouts": "()"}
    passes = flags.load(options.config, options.overrides | variant).rdrop.num_passes
    if arm == "two_passes":
        passes = passes or 2
    return {"rdrop.num_passes": "none" if passes is None else str(passes)}


def _rates(options: Options) -> list[list[str]]:
    """Return the learning rates of an arm with alpha 0: per variant, one per trial.

    The variant's rate times 1, 1/2, 2, 1/4, 4, ..., without duplicates of other trials.
    """
    count = len(positive(options))
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
    """Return the factor of a slot: 1, 1/2, 2, 1/4, 4, ..."""
    power = (slot + 1) // 2
    return 2.0 ** (-power if slot % 2 else power)


def _in_updates(
    options: Options,
    arm: str,
    overrides: Mapping[str, str],
    steps_per_epoch: float,
    cost_ratio: float,
) -> dict[str, str]:
    """Return overrides with all durations in steps, independent of the batch size.

    Logging and checkpoints coincide with validations, so that a resumed run logs the
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
