"""Sphinx configuration of the documentation site: `make docs`."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import rdrop_jax  # noqa: E402

project = "rdrop_jax"
author = copyright = "the rdrop_jax authors"
version = release = rdrop_jax.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
# References to public names must resolve; jax, optax and numpy would need the network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!rdrop_jax\.).*"),
    (r"py:.*", r"rdrop_jax\.(cli|core|pretrained|training)\..*"),
    (r"py:.*", r"rdrop_jax\.(compare|evaluate|export|predict|prepare|train)"),
]

# Markdown: links to headings as on GitHub, and code cells that run at build.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

# API reference: Google docstrings, single backticks link to names.
default_role = "py:obj"
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "rdrop_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def visit_math(translator, node):
    """Write a formula as MathML, which browsers show without scripts or network."""
    block = isinstance(node, nodes.math_block)
    tex = re.sub(r"\\tfrac(\d)(\d)", r"\\tfrac{\1}{\2}", node.astext())
    translator.body.append(tex2mathml(tex, as_block=block))
    raise nodes.SkipNode


def shorten_types(app, what, name, obj, options, signature, returns):
    """Write the type of arrays by the name that users import."""
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array")
        for text in (signature, returns)
    )


def resolve_public_name(app, env, node, contnode):
    """Link a public name that is written without its module."""
    name = node.get("reftarget")
    if name not in rdrop_jax.__all__:
        return None
    py, page = env.domains["py"], node["refdoc"]
    args = (env, page, app.builder, "obj", f"rdrop_jax.{name}", node, contnode)
    return py.resolve_xref(*args)


def setup(app):
    app.connect("missing-reference", resolve_public_name)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-signature", shorten_types)
