"""Options of a comparison and their validation."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.errors import InputError

# Arms and their descriptions. Of these arms only `rdrop` has an alpha above 0.
ARMS = {
    "plain": "alpha 0, one pass",
    "rdrop": "two passes, or rdrop.num_passes, and the consistency term",
    "two_passes": "alpha 0, the passes of rdrop",
    "double_batch": "plain with batches twice as large",
    "equal_compute": "plain with more steps, for the time that rdrop takes",
}
_MAX_SEEDS = 10_000
# Fields that the comparison sets. An ablation may set only alpha of these.
RESERVED = (
    "rdrop.alpha",
    "rdrop.objective_scale",
    "eval.test",
    "eval.patience",
    "log.every",
    "checkpoint.every",
)
# Fields without effect in arms with a single pass.
RDROP_ONLY = (
    "rdrop.alpha_warmup",
    "rdrop.divergence",
    "rdrop.dropouts",
    "rdrop.every",
    "rdrop.num_passes",
    "rdrop.stop_gradient",
)


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of a comparison, which resumes only with the same options.

    Attributes:
      config: FILE[:PRESET].
      overrides: config fields and their values as text, for all runs.
      alphas: weights of the consistency term; rdrop selects among those above 0.
      seeds: number of seeds for selection, from the config's seed on.
      final_seeds: number of seeds for the verdict, following the selection seeds.
      arms: names of arms, from `ARMS` and the ablations.
      vary: field to values as text; every arm selects among all combinations.
      metric: score of the verdict.
      mode: "max" or "min": whether a higher or a lower ``metric`` is better.
      ablations: name of an ablation arm to the fields that it changes in rdrop.
      pins: ``FIELD=NAME`` of the Hub to the name with the commit that all runs use,
        found when the comparison is started.
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
    ablations: dict[str, dict[str, str]]
    pins: dict[str, str] = field(default_factory=dict)

    @property
    def positive_alphas(self) -> list[float]:
        """The alphas that rdrop selects from."""
        return [alpha for alpha in self.alphas if alpha > 0]

    @property
    def variants(self) -> list[dict[str, str]]:
        """All combinations of ``vary``; one empty dict if no field is varied."""
        combinations = itertools.product(*self.vary.values())
        return [dict(zip(self.vary, each, strict=True)) for each in combinations]

    @property
    def changes(self) -> list[dict[str, str]]:
        """Overrides of every variant, alone and with each ablation."""
        ablations = [{}, *self.ablations.values()]
        return [v | fields for v in self.variants for fields in ablations]

    @property
    def settings_per_arm(self) -> int:
        """Number of settings that each arm selects from."""
        return len(self.positive_alphas) * len(self.variants)

    def load(self, overrides: Mapping[str, str] | None = None) -> ConfigDict:
        """Load the config with the overrides for all runs and with these."""
        return flags.load(self.config, {**self.overrides, **(overrides or {})})

    def pinned(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """Return overrides by present names, with commits of data and weights."""
        config = self.load(overrides)
        overrides, _ = config_lib.renamed(config.task, overrides)
        names = {"data.name": config.data.name, "init_from": config.init_from}
        found = {name: self.pins.get(f"{name}={text}") for name, text in names.items()}
        return {**overrides, **{name: pin for name, pin in found.items() if pin}}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a JSON-ready dict, without the pins."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del found["pins"]
        return found

    def describe(self, arm: str) -> str:
        """Return a short description of an arm."""
        return ARMS.get(arm) or f"rdrop with {arm}"


def check_options(options: ComparisonOptions) -> ConfigDict:
    """Check the options as far as possible without data.

    Returns:
      The config that all runs share.

    Raises:
      InputError: an invalid option; the message names the argument.
    """
    alphas = ",".join(f"{alpha:g}" for alpha in options.alphas) or "none"
    if not any(options.alphas) or not all(map(math.isfinite, options.alphas)):
        raise InputError(
            f"--alphas: expected finite numbers, one of them above 0, found {alphas}"
        )
    if min(options.alphas) < 0 or len(set(options.alphas)) < len(options.alphas):
        raise InputError(
            f"--alphas: expected different numbers, none below 0, found {alphas}"
        )
    for name, count in (("seeds", options.seeds), ("final_seeds", options.final_seeds)):
        if not 1 <= count <= _MAX_SEEDS:
            raise InputError(
                f"--{name}: expected from 1 to {_MAX_SEEDS}, found {count}"
            )
    for arm in options.arms:
        if arm not in (*ARMS, *options.ablations):
            raise InputError(
                f"--arms: expected names of {', '.join(ARMS)}, found {arm!r}."
                f"{config_lib.suggest(arm, ARMS)}"
            )
    _check_ablations(options)
    for name in [*options.overrides, *options.vary]:
        if name in RESERVED or (name == "seed" and name in options.vary):
            flag = "--vary " if name in options.vary else "--config."
            raise _reserved(flag, name)
    _check_vary(options)
    for variant in options.variants:  # typos and values out of range
        config = options.load(variant)
        if not config.optimizer.lr:
            raise InputError("optimizer.lr: expected above 0, found 0")
        if config.rdrop.num_passes == 1:
            raise InputError("rdrop.num_passes: expected none or at least 2, found 1")
        for fields in options.ablations.values():
            options.load(variant | fields)
    return options.load()


def _reserved(flag: str, name: str) -> InputError:
    own = {"rdrop.alpha": "Set --alphas", "seed": "Set --seeds"}
    return InputError(
        f"{flag}{name}: expected a field that the comparison does not set, got {name}. "
        f"{own.get(name, 'Remove it')}"
    )


def _check_ablations(options: ComparisonOptions) -> None:
    count = len(options.positive_alphas)
    for name in itertools.chain(*options.ablations.values()):
        if name == "seed" or (name in RESERVED and name != "rdrop.alpha"):
            raise _reserved("--ablate ", name)
        if name in options.vary:
            raise InputError(f"--ablate {name}: found --vary {name} as well")
        if name == "rdrop.alpha" and count > 1:
            raise InputError(
                "--ablate rdrop.alpha: expected one alpha above 0 in --alphas, found "
                f"{count}"
            )


def _check_vary(options: ComparisonOptions) -> None:
    for name, values in options.vary.items():
        if name in RDROP_ONLY:
            raise InputError(
                f"--vary {name}: expected a field that plain training has too; "
                f"--ablate {name}=VALUE makes an arm of it"
            )
        if not values or len(set(values)) < len(values):
            raise InputError(
                f"--vary {name}: expected different values, found "
                f"{','.join(values) or 'none'}"
            )
        if name in options.overrides:
            raise InputError(f"--vary {name}: found --config.{name} as well")
