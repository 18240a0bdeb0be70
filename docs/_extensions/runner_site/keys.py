"""Makes the keys of options known to the search: a part of a key's name then leads to the key itself."""

from docutils import nodes
from sphinx.application import Sphinx

from runner_site.options import KEY

__all__ = ["connect"]


def connect(app: Sphinx) -> None:
    """Look through each page when it has been read."""
    app.add_object_type("key", "key", objname="key")
    app.connect("doctree-read", _note_keys)


def _note_keys(app: Sphinx, doctree: nodes.document) -> None:
    domain = app.env.domains.standard_domain
    for definitions in doctree.findall(nodes.definition_list):
        anchor = next((one for one in definitions["ids"] if one.startswith(KEY)), None)
        if anchor is not None:
            name = definitions[0][0].astext().partition(" = ")[0]
            option = definitions.parent[definitions.parent.first_child_matching_class(nodes.title)].astext()
            domain.note_object("key", f"{name} ({option})", anchor, location=definitions)
