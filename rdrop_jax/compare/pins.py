"""One commit of each name of the Hub for all runs of a comparison. Needs no jax."""

from rdrop_jax import tasks
from rdrop_jax.compare.comparison_options import ComparisonOptions
from rdrop_jax.data import hub as data_hub
from rdrop_jax.files import hub
from rdrop_jax.pretrained import families
from rdrop_jax.pretrained import hub as weights_hub


def find_pins(options: ComparisonOptions) -> dict[str, str]:
    """Download the data and weights that the arms name, and return their commits.

    Args:
      options: options of the comparison.

    Returns:
      ``FIELD=NAME`` to the name with its commit, see `ComparisonOptions.pins`.

    Raises:
      InputError: a name is unknown, or its files cannot be downloaded.
    """
    found: dict[str, str] = {}
    for change in options.changes:
        given = options.overrides | change
        config = options.load(given)
        data, weights = config.data.name, config.init_from
        if hub.is_name(data) and f"data.name={data}" not in found:
            commit = data_hub.load(data).provenance[data]
            found[f"data.name={data}"] = hub.pinned("data.name", data, commit)
        if hub.is_name(weights) and f"init_from={weights}" not in found:
            families.check_weights(config, tasks.families(), given=given)
            commit = weights_hub.snapshot(weights).name
            found[f"init_from={weights}"] = hub.pinned("init_from", weights, commit)
    return found
