"""Examples run as printed: what they say in their docstring is what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCALED = {"shared_weights"}
"""Those that take a size, and measure the machine: see below."""
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.stem not in SCALED]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_docstring_says(example, tmp_path):
    docstring = example.read_text().split('"""')[1]
    expected = docstring.split(f"$ python examples/{example.name}\n")[1]
    assert run(tmp_path, example) == expected


def run(tmp_path, example, *args):
    ran = subprocess.run(
        [sys.executable, example, *args],
        env=os.environ | {"KSMEMU_DIR": str(tmp_path / "instance")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not (tmp_path / "instance").exists()
    return ran.stdout


def test_eight_workers_hold_their_weights_once(tmp_path):
    example = ROOT / "examples/shared_weights.py"
    docstring = example.read_text().split('"""')[1]
    printed = run(tmp_path, example, "16")
    assert without_figures(printed).strip() in without_figures(docstring)
    started, loaded, merged = (int(pss) for pss in re.findall(r"Pss +(\d+)", printed))
    assert loaded - started >= 8 * 16
    assert merged - started <= 3 * 16  # one copy, and what the workers need besides
    assert printed.endswith(f"pages_shared {16 * 256}, pages_sharing {7 * 16 * 256}\n")


def without_figures(text):
    return re.sub(r" +\d+", " N", text)


def test_the_first_program_of_the_readme_is_the_example():
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert (ROOT / "examples/two_twins.py").read_text().endswith('"""\n\n' + program)
