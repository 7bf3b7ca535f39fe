"""The site, and a man page for each command: `make docs`."""

from ksmemu.cli import commands

project = "ksmemu"
author = "the ksmemu maintainers"
extensions = ["myst_parser", "sphinx_click"]
html_theme = "furo"
html_title = "ksmemu"
html_show_copyright = False
exclude_patterns = ["build"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]  # what is taken from a README links to files beside it

man_pages = [
    ("man/ksmemu", "ksmemu", "Kernel Samepage Merging in user space", author, 1),
    *(
        (f"man/ksmemu-{name}", f"ksmemu-{name}", command.short_help.rstrip("."), author, 1)
        for name, command in sorted(commands.commands.items())
    ),
]
man_show_urls = True
