"""Settings and trials of a comparison.

Every run is the config with some fields overridden, so that each can be reproduced by
one ordinary command of `rdrop_jax.train`.
"""

import itertools
from dataclasses import dataclass

from rdrop_jax import config as config_lib
from rdrop_jax.compare.comparison_options import ComparisonOptions


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

    @property
    def num_passes(self) -> int:
        """Number of forward passes per step."""
        passes = self.overrides["rdrop.num_passes"]
        if passes.lower() != "none":
            return int(passes)
        return 2 if float(self.overrides["rdrop.alpha"]) > 0 else 1


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


def make_settings(
    options: ComparisonOptions,
    steps_per_epoch: list[float],
    arm: str,
    cost_ratio: float = 1.0,
) -> list[Setting]:
    """Return the settings of one arm; every arm has the same number.

    An arm with alpha 0 selects among learning rates instead of alphas.

    Args:
      options: options of the comparison.
      steps_per_epoch: steps per epoch of each of ``options.variants``.
      arm: name of the arm.
      cost_ratio: time per step of rdrop divided by that of plain.

    Returns:
      The settings.
    """
    found: list[Setting] = []
    ablation = options.ablations.get(arm, {})
    alphas, rates = options.positive_alphas, _learning_rates(options)
    for number, variant in enumerate(options.variants):
        passes = options.load(variant).rdrop.num_passes
        for alpha, rate in zip(alphas, rates[number], strict=True):
            changes, values = {"rdrop.alpha": "0.0"}, dict(variant)
            if arm == "rdrop" or ablation:
                changes["rdrop.alpha"] = repr(alpha)
                values = {"rdrop.alpha": f"{alpha:g}"} | values
            elif len(alphas) > 1:
                values["optimizer.lr"] = changes["optimizer.lr"] = rate
            if arm == "rdrop" or ablation or arm == "two_passes":
                count = passes or (2 if arm == "two_passes" else None)
                changes["rdrop.num_passes"] = str(count).lower()
            else:
                changes |= {"rdrop.num_passes": "none", "rdrop.dropouts": "()"}
            changes |= ablation
            values |= {name: text for name, text in ablation.items() if name in values}
            overrides = options.pinned(options.overrides | variant | changes)
            overrides |= _durations(
                options, arm, overrides, steps_per_epoch[number], cost_ratio
            )
            found.append(Setting(arm, len(found), values, overrides))
    return found


def make_trials(
    options: ComparisonOptions, setting: Setting, *, final: bool
) -> list[Trial]:
    """Return the runs of a setting; selection and final runs have different seeds."""
    start = options.load().seed + (options.seeds if final else 0)
    count = options.final_seeds if final else options.seeds
    return [Trial(setting, start + i, final) for i in range(count)]


def _learning_rates(options: ComparisonOptions) -> list[list[str]]:
    """Return the learning rates of an arm with alpha 0: per variant, one per setting.

    The variant's rate times 1, 1/2, 2, 1/4, 4, ..., without duplicates of other trials.
    """
    count = len(options.positive_alphas)
    base = [options.load(variant).optimizer.lr for variant in options.variants]
    tried = [
        variant | {"optimizer.lr": f"{lr:.6g}"}
        for variant, lr in zip(options.variants, base, strict=True)
    ]
    found = []
    for first, lr in zip(list(tried), base, strict=True):
        rates = [first["optimizer.lr"]]
        for slot in itertools.count(2):
            if len(rates) == count:
                break
            factor = 2.0 ** (slot // 2 * (1 if slot % 2 else -1))
            candidate = first | {"optimizer.lr": f"{lr * factor:.6g}"}
            if candidate not in tried:
                tried.append(candidate)
                rates.append(candidate["optimizer.lr"])
        found.append(rates)
    return found


def _durations(
    options: ComparisonOptions,
    arm: str,
    overrides: dict[str, str],
    steps_per_epoch: float,
    cost_ratio: float,
) -> dict[str, str]:
    """Return overrides with all durations in steps, independent of the batch size.

    Logging and checkpoints coincide with validations, so that a resumed run logs the
    same means.
    """
    config = options.load(overrides)
    total = config_lib.to_steps("total_steps", config.total_steps, steps_per_epoch)
    if arm == "equal_compute":
        total = round(total * cost_ratio)
    with config.ignore_type(), config.unlocked():
        config.total_steps = total
    resolved = config_lib.flatten(config_lib.resolve(config, steps_per_epoch))
    found = {name: str(resolved[name]) for name in config_lib.DURATIONS}
    found |= {
        "log.every": found["eval.every"],
        "checkpoint.every": found["eval.every"],
        "eval.patience": "0",
        "rdrop.objective_scale": "mean",
    }
    if arm == "double_batch":
        field = config_lib.batch_field(config)
        found[field] = str(2 * config[field])
    return found
