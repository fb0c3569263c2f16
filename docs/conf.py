"""The site: `make docs` builds it into build/docs. Warnings are errors, and so are references to nothing."""

from __future__ import annotations

from peer.version import VERSION

project = "peerd"
author = "the developers of peerd"
release = version = VERSION
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "peerd"
html_copy_source = html_show_sphinx = False
exclude_patterns: list[str] = []
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nitpicky = True  # a name that is referred to and documented nowhere
nitpick_ignore_regex = [  # types of others, and leaves that signatures name
    (r"py:.*", r"(torch|numpy|collections|typing|types|datetime|pathlib)\..*"),
    (r"py:.*", r"(Any|Literal|Self|Module|Optimizer|Tensor|Mapping|Path|Pace|optional)"),
    (r"py:.*", r"(SessionState|LinkState|tuple\[.*|peer\.learner\.(dial\.Attachment|attach\.Terms))"),
]
suppress_warnings: list[str] = []
