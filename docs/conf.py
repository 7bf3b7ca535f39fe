"""The site, and a man page for each command: `make docs`."""

project = "ksmemu"
author = "the ksmemu maintainers"
extensions = ["myst_parser", "sphinx_click"]
html_theme = "furo"
html_title = "ksmemu"
exclude_patterns = ["build"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]  # what is taken from a README links to files beside it

COMMANDS = (
    *("start", "status", "explain", "set", "exec", "stop", "check", "demo", "bench", "estimate", "metrics"),
)
man_pages = [
    ("man/ksmemu", "ksmemu", "Kernel Samepage Merging in user space", author, 1),
    *((f"man/ksmemu-{name}", f"ksmemu-{name}", f"ksmemu {name}", author, 1) for name in COMMANDS),
]
man_show_urls = True
