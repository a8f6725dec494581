"""Sphinx: the documents of the checkout as they are, and the docstrings of the library.

The source folder is the root of the checkout (``make docs``), so that a link from one document to
another leads to its page, as it does in a browser of repositories.
"""

import json
import re
import sys
from pathlib import Path

from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import igvg_d2  # noqa: E402

project = "igvg_d2"
author = "the authors of igvg_d2"
version = release = igvg_d2.__version__
html_title = f"igvg_d2 {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "datasets/README.md", "dev/README.md", "projects/**/README.md"]
include_patterns += ["docs/**.md", "projects/IGVG/RESULTS*.md"]
# Runs, data and environments are not even listed.
exclude_patterns = [".*", "build", "output", "datasets/*/**", "tests", "igvg_d2", "configs"]

myst_heading_anchors = 3
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}

# Nothing is loaded from elsewhere: it reads the same offline.
html_theme = "alabaster"
html_static_path, html_css_files = ["static"], ["pages.css"]
# Below this width the navigation moves under the text.
html_theme_options = {"page_width": "1180px", "sidebar_width": "230px", "font_size": "15px"}
html_theme_options |= {"description": "Generalized visual grounding on Detectron2"}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
# The front page has the address that a browser looks for.
html_additional_pages = {"index": "front.html"}
templates_path = ["templates"]


def add_modules(app, docname, source):
    """Every page of docs/api/ gets the modules of its room, also those added tomorrow."""
    folder, _, room = docname.rpartition("/")
    if folder != "docs/api":
        return
    package = ROOT / "igvg_d2"
    paths = package.glob("*.py") if room == "package" else (package / room).rglob("*.py")
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths]
    for name in sorted(name.removesuffix(".__init__") for name in names):
        source[0] += f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def unlink(app, docname, source):
    """Of links to folders and notebooks, which have no page, and to weights the text stays."""
    here = (ROOT / docname).parent

    def text_alone(link):
        target = here / link[2]
        return link[1] if target.is_dir() or target.suffix in (".safetensors", ".onnx", ".ipynb") else link[0]

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(([\w./-]+)\)", text_alone, source[0])


def show_notebook(app, docname, source):
    """The cells of the walkthrough and their outputs as one page."""
    if docname != "docs/walkthrough":
        return
    notebook = json.loads((ROOT / "demo/walkthrough.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        source[0] += f"\n{text}\n" if cell["cell_type"] == "markdown" else block("python", text)
        for output in cell.get("outputs", []):
            if "text" in output:
                source[0] += block("text", "".join(output["text"]))
            else:
                source[0] += f"\n![](data:image/png;base64,{output['data']['image/png']})\n"


def block(language, text):
    """A fenced block of Markdown."""
    return f"\n```{language}\n{text.rstrip()}\n```\n"


def find_by_short_name(app, env, node, text):
    """Docstrings name classes and functions as code does, without the module they are from."""
    if node.get("refdomain") != "py":
        return None
    ending = "." + node["reftarget"].lstrip("~.")
    objects = env.domains["py"].objects
    found = {entry for name, entry in objects.items() if name.endswith(ending)}
    if len(found) != 1:
        return None
    (entry,) = found
    place = entry.docname, entry.node_id
    return make_refnode(app.builder, node["refdoc"], *place, text, entry.node_id)


def setup(app):
    """Connect the functions above."""
    for change in (show_notebook, add_modules, unlink):
        app.connect("source-read", change)
    app.connect("missing-reference", find_by_short_name)
