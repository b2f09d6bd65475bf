"""The documentation site, for `make docs`: sphinx-build -c docs . build/docs (the sources are the repository's)."""

from bgpt_fast.version import __version__

project = "bgpt_fast"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinxcontrib.mermaid",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
root_doc = "docs/index"
# Pages lie where the repository has them, so that their links hold in both.
include_patterns = ["docs/**.md", "*.md", "examples/**/README.md", "benchmarks/README.md"]
exclude_patterns = [".*", "build", "demo", "runs"]
# The first page, which leads to docs/index.
html_extra_path = ["site"]
html_theme = "furo"
html_title = f"bgpt_fast {__version__}"
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_use_rtype = False
