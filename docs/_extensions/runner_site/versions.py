"""Several versions beside each other: <site>/<version>/ for each, and a list of them that every page reads.

The list is a script and no JSON file: pages that are opened from a disk may load scripts, but fetch nothing.
"""

import json
from pathlib import Path

from packaging.version import InvalidVersion, Version
from sphinx.application import Sphinx

__all__ = ["connect"]

LIST = "versions.js"
FRONT = "index.html"
FRONT_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<title>runner</title>
</head>
<body>
<p>The documentation of runner:</p>
<ul>
{links}
</ul>
</body>
</html>
"""


def connect(app: Sphinx) -> None:
    """Write the list when pages are built; _templates/sidebar/versions.html loads it."""
    app.connect("build-finished", _write_list)


def _write_list(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.name != "html":
        return
    site = Path(app.outdir).parent
    versions = sorted((path.name for path in site.iterdir() if (path / FRONT).is_file()), key=_rank, reverse=True)
    pages = {version: _pages(site / version) for version in versions}
    (site / LIST).write_text(f"window.RUNNER_VERSIONS = {json.dumps(pages, indent=1)};\n", encoding="utf-8")
    links = "\n".join(f'<li><a href="{version}/index.html">{version}</a></li>' for version in versions)
    (site / FRONT).write_text(FRONT_PAGE.format(newest=versions[0], links=links), encoding="utf-8")


def _pages(directory: Path) -> list[str]:
    """The pages of a version, so that its list leads to the same page where there is one."""
    found = (path.relative_to(directory).with_suffix("").as_posix() for path in directory.rglob("*.html"))
    return sorted(name for name in found if not name.startswith("_"))


def _rank(name: str) -> tuple[bool, Version, str]:
    try:
        return True, Version(name), name
    except InvalidVersion:
        return False, Version("0"), name
