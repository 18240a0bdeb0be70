"""What the documentation of runner needs of Sphinx: generated pages, drawings, and a list of versions."""

from sphinx.application import Sphinx

from runner_site import docstrings, keys, pages, pictures, versions

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect everything; Sphinx calls it."""
    app.connect("builder-inited", pages.write)
    docstrings.connect(app)
    keys.connect(app)
    pictures.connect(app)
    versions.connect(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
