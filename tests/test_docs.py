"""What README and docs show is run: Python as a program, consoles as a shell; what they say is said."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ksmemu.cli import commands
from tests.support.cores import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WITH_BLOCKS = [path for path in DOCUMENTS if FENCED.search(path.read_text())]


def run(language, text, folder):
    """Run a block; return what it should have said, and what it said."""
    command, shown = [sys.executable, "-c", text], []
    if language == "console":
        lines = text.splitlines()
        script = "\n".join(line[2:] for line in lines if line.startswith("$ "))
        command = ["bash", "-e", "-c", script]
        shown = [line for line in lines if not line.startswith("$ ")]
    env = {
        **os.environ,
        "KSMEMU_DIR": str(folder / "instance"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ran = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    return shown, ran.stdout.splitlines()


def without_numbers(line):
    return re.sub(r"\d[\d,.]*", "N", " ".join(line.split()))


def is_said(shown, said):
    """Whether all lines are there in this order, whatever numbers they have."""
    lines = iter(map(without_numbers, said))
    return all(without_numbers(line) in lines for line in shown)


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=lambda path: os.fspath(path.relative_to(ROOT)))
def test_what_a_document_shows_runs(path, tmp_path):
    for language, text in FENCED.findall(path.read_text()):
        shown, said = run(language, text, tmp_path)
        assert is_said(shown, said), "\n".join(said)


@pytest.mark.parametrize("text", ["$ false\n", "$ echo 7 pages\n7 frames\n", "$ printf 'b\\na\\n'\na\nb\n"])
def test_a_block_that_is_wrong_is_noticed(text, tmp_path):
    with pytest.raises(AssertionError):
        assert is_said(*run("console", text, tmp_path))


def test_every_command_has_a_page():
    pages = {path.stem for path in (ROOT / "docs/man").glob("*.rst")}
    assert pages == {
        "ksmemu",
        *(f"ksmemu-{name}" for name in commands.list_commands(click.Context(commands))),
    }
    made = runpy.run_path(os.fspath(ROOT / "docs/conf.py"))["man_pages"]
    assert {(source, name) for source, name, *_ in made} == {(f"man/{page}", page) for page in pages}
    listed = (ROOT / "docs/commands.md").read_text()
    assert all(f"man/{page}\n" in listed for page in pages)


def test_a_man_page_shows_every_option_and_no_markup(tmp_path):
    options = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--builder", "man", "docs"]
    subprocess.run([sys.executable, *options, tmp_path], cwd=ROOT, check=True)
    for name, command in commands.commands.items():
        page = (tmp_path / f"ksmemu-{name}.1").read_text().replace("\\-", "-")
        assert f"ksmemu-{name} - {command.short_help[:-1]}\n" in page
        for parameter in command.params:
            is_option = isinstance(parameter, click.Option)
            assert (parameter.opts[0] if is_option else parameter.metavar or parameter.name.upper()) in page
        assert not re.search(r"\.\. [a-z-]+::|```", page)


def test_the_site_is_as_strict_as_it_says():
    """The build fails on a warning: lint runs it."""
    lint = re.search(r"^lint:.*?\n\n", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)[0]
    assert " docs " in lint
