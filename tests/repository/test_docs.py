"""The documentation site: links, contents, API names, and the build."""

import fnmatch
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rdrop_jax

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.relative_to(DOCS).parts
)
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)


def prose(path):
    """Return the text of a page without code."""
    text = FENCE.sub("", path.read_text())
    return re.sub(r"^    .*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def anchors(path):
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    found = []
    for heading in re.findall(
        r"^#+ +(.+?) *$", FENCE.sub("", path.read_text()), re.MULTILINE
    ):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return found


def toctrees(path):
    """Return the entries of a page's tables of contents, relative to docs."""
    entries = []
    for block in re.findall(
        r"^```\{toctree\}\n(.*?)^```", path.read_text(), re.M | re.S
    ):
        lines = (line.strip() for line in block.splitlines())
        folder = path.parent.relative_to(DOCS)
        entries += [str(folder / x) for x in lines if x and not x.startswith(":")]
    return entries


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
def test_links(path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if name and not name.endswith(".md"):
            found = target.exists()
        else:
            found = target.exists() and (not anchor or anchor in anchors(target))
        if not found:
            broken.append(link)
    assert not broken


def test_every_page_is_in_one_table_of_contents():
    names = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES} - {"index"}
    listed = []
    for page in PAGES:
        for entry in toctrees(page):
            matches = fnmatch.filter(names, entry)
            assert matches, f"{page.name}: no page matches the entry {entry}"
            listed += matches
    assert sorted(listed) == sorted(names)


def test_every_public_name_is_on_one_api_page():
    found = []
    for page in (DOCS / "api").glob("*.md"):
        found += re.findall(
            r"^\.\. auto\w+:: rdrop_jax\.(\w+)$", page.read_text(), re.M
        )
    assert sorted(found) == sorted(rdrop_jax.__all__)


def test_results_fit_on_a_page():
    text = (DOCS / "results.md").read_text()
    assert len(text.replace("|", " ").split()) <= 800
    assert len(re.findall(r"^\|( --- \|)+$", text, re.MULTILINE)) == 1


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx_design"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed: pip install -r requirements-docs.txt"
            )
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "R-Drop: test accuracy" in (tmp_path / "html/quickstart.html").read_text()
