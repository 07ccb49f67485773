"""Templates of the report, and their rendering."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(["html", "svg"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(name: str, **values: Any) -> Markup:
    """Render the template of this name; text in ``values`` is escaped."""
    return Markup(_ENVIRONMENT.get_template(name).render(values))
