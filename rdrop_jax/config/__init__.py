"""The config: fields, durations, and configs of earlier versions. Needs no jax."""

from rdrop_jax.config.durations import log_seconds as log_seconds
from rdrop_jax.config.durations import resolve as resolve
from rdrop_jax.config.durations import to_steps as to_steps
from rdrop_jax.config.equality import differences as differences
from rdrop_jax.config.equality import shared as shared
from rdrop_jax.config.fields import DURATIONS as DURATIONS
from rdrop_jax.config.fields import SIZES as SIZES
from rdrop_jax.config.fields import base_config as base_config
from rdrop_jax.config.fields import batch_field as batch_field
from rdrop_jax.config.fields import duration as duration
from rdrop_jax.config.fields import field_help as field_help
from rdrop_jax.config.fields import finish as finish
from rdrop_jax.config.fields import flatten as flatten
from rdrop_jax.config.fields import pick as pick
from rdrop_jax.config.fields import suggest as suggest
from rdrop_jax.config.upgrades import NAMES as NAMES
from rdrop_jax.config.upgrades import NEW_DEFAULTS as NEW_DEFAULTS
from rdrop_jax.config.upgrades import added_fields as added_fields
from rdrop_jax.config.upgrades import renamed as renamed
from rdrop_jax.config.upgrades import unlike_base as unlike_base
from rdrop_jax.config.upgrades import upgrade as upgrade
