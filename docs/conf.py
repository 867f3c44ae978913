"""How Sphinx builds the documentation: python -m sphinx -W -b html docs build/docs"""

import sherl

project = "sherl"
author = "The sherl developers"
copyright = author
release = version = sherl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["pictures/*.py"]
html_theme = "furo"
html_title = f"sherl {release}"
html_copy_source = False

myst_heading_anchors = 3  # "method.md#the-adapter" finds its heading, as on a page of the repository
highlight_language = "none"  # blocks without a language hold equations and commands

default_role = "py:obj"  # `SideNetwork` in a docstring is a link
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the docstrings
numpydoc_show_class_members = False

# Files of the repository that are pages here, under other names than the links in the repository have.
PAGES = {
    "../benchmarks/README.md": "benchmarks.md",
    "../benchmarks/RESULTS.md": "results-benchmarks.md",
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../examples": "examples.md",
}
# The same, and files that are no pages, in those that are included from benchmarks/.
PAGES_OF_BENCHMARKS = {"README.md": "benchmarks.md", "flops.py": "../benchmarks/flops.py"}


def _with_links(text, pages):
    for link, page in pages.items():
        text = text.replace(f"]({link})", f"]({page})")
    return text


def setup(app):
    def read(app, name, content):
        content[0] = _with_links(content[0], PAGES)

    def include(app, path, name, content):
        if path.parent.name == "benchmarks":
            content[0] = _with_links(content[0], PAGES_OF_BENCHMARKS)
        else:  # a file of the repository's root
            content[0] = content[0].replace("](docs/", "](")

    app.connect("source-read", read)
    app.connect("include-read", include)
