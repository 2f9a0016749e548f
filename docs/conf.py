"""Settings of the documentation's site, which `make docs` builds with Sphinx."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "Triptych"
author = "The Triptych developers"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
# Pages of prose alone, in seconds: SITE_WITHOUT_API=1 sphinx-build ...
with_api = os.environ.get("SITE_WITHOUT_API", "0") == "0"
if not with_api:
    exclude_patterns.append("api")
    suppress_warnings = ["toc.not_readable"]

html_theme = "furo"
html_title = "Triptych"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

toc_object_entries = False  # thousands of names would be in the side bar of every page
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # a dataclass documents its fields twice otherwise
# Docstrings write code in single backquotes, as Markdown does.
default_role = "code"

FOLDERS = (
    *("models", "objectives", "datamodules", "metrics", "callbacks", "lit_modules"),
    *("studies", "benchmarks"),
)


def write_api_pages(app: Sphinx) -> None:
    """Write one page for each room, with all public names of its modules, below ``api/``."""
    api = DOCS / "api"
    api.mkdir(exist_ok=True)
    pages = {"triptych": sorted((ROOT / "triptych").glob("*.py"))}
    for folder in FOLDERS:
        for room in sorted({path.parent for path in (ROOT / folder).rglob("*.py")}):
            name = ".".join(("triptych", *room.relative_to(ROOT).parts))
            pages[name] = sorted(room.glob("*.py"))
    written = set()
    for name, files in pages.items():
        modules = [path.stem for path in files if not path.stem.startswith("__")]
        if not modules:
            continue
        title = name.removeprefix("triptych.")
        text = f"{title}\n{'=' * len(title)}\n"
        for module in modules:
            full = f"{name}.{module}"
            text += f"\n{module}\n{'-' * len(module)}\n\n.. automodule:: {full}\n"
        _write_if_new(api / f"{name}.rst", text)
        written.add(name)
    lines = "\n".join(f"   {name}" for name in sorted(written))
    _write_if_new(
        api / "index.rst",
        "API\n===\n\nAll public classes and functions, by folder and room.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{lines}\n",
    )
    for page in api.glob("*.rst"):
        if page.stem not in written | {"index"}:
            page.unlink()


def _write_if_new(path: Path, text: str) -> None:
    """Leave an equal file alone: Sphinx then reads it from its cache."""
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def adapt_docstring(
    _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Make reStructuredText of a docstring, in place.

    Docstrings are written to be read in the source: a module's indented blocks and tables are laid
    out by hand, and bars in formulas, such as |B|, are no substitutions.
    """
    adapted: list[str] = []
    laid_out = False
    for line in lines:
        if what == "module" and line.strip():
            was, laid_out = laid_out, line.startswith(("    ", "|"))
            if laid_out and not was:
                adapted += ["", "::", ""]
            elif was and not laid_out:
                adapted.append("")
        if laid_out:
            adapted.append(f"    {line}")
            continue
        parts = re.split(r"(``.+?``|`.+?`)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        adapted.append("".join(parts))
    lines[:] = adapted


def setup(app: Sphinx) -> None:
    """Register the writer of the API pages, and what docstrings need."""
    if with_api:
        app.connect("builder-inited", write_api_pages)
    app.connect("autodoc-process-docstring", adapt_docstring)
