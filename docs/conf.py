"""How Sphinx builds the documentation: `make docs`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]  # the checkout's runner, installed or not

from runner import __version__  # noqa: E402

project = "runner"
version = release = __version__
language = "en"
copyright = "the runner authors; Apache-2.0"  # noqa: A001  # Sphinx's own name for it
html_title = f"runner {__version__}"
html_last_updated_fmt = None  # two builds of one version are the same

extensions = ["myst_parser", "sphinx.ext.autodoc", "runner_site"]
root_doc = "index"
exclude_patterns = ["_extensions", "_templates", "_static"]
templates_path = ["_templates"]

# Every warning is an error (make docs), and so is a reference that leads nowhere.
nitpicky = True
nitpick_ignore_regex = [
    # Libraries whose own documentation would be needed to link to them, and it takes a network.
    (r"py:.*", r"(torch|numpy|collections|contextlib|pathlib|enum|types|argparse|os)\..*"),
    (r"py:.*", r"Tensor|dict\[.*|runner\.protocols\.state\.T|runner\.config\.run_dir\.RunDir"),  # in generic types
]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
smartquotes = False  # -- is part of a command
highlight_language = "text"
default_role = "code"  # `x` in a docstring

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
python_display_short_literal_types = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_use_index = False  # the search finds the same
html_domain_indices = False
html_theme_options = {"top_of_page_buttons": []}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}

# make docs-links, which needs a network.
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
