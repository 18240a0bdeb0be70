"""Puts drawings (pictures/*.svg) into the page itself, so that they have the colours of the page, light or dark."""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

__all__ = ["InlineDrawings", "connect"]

FOLDER = "pictures/"
ALONE = re.compile(r"\s*<style>.*?</style>", re.DOTALL)
"""The colours of a drawing that stands alone, as on a code host; on a page, those of _static/site.css hold."""


class InlineDrawings(SphinxPostTransform):
    """Replaces each image that is a drawing by its SVG, with the alternative text as its name for screen readers."""

    default_priority = 5  # before images are collected and copied

    def run(self, **kwargs: object) -> None:
        """Replace them."""
        for image in list(self.document.findall(nodes.image)):
            if image["uri"].startswith(FOLDER) and image["uri"].endswith(".svg"):
                drawing = ALONE.sub("", (Path(self.env.srcdir) / image["uri"]).read_text(encoding="utf-8"))
                labelled = drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(image["alt"])}" ', 1)
                image.replace_self(nodes.raw("", f'<div class="drawing">{labelled}</div>', format="html"))


def connect(app: Sphinx) -> None:
    """Let Sphinx call it."""
    app.add_post_transform(InlineDrawings)
