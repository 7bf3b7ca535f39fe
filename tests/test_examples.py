"""Examples run as printed: what they say in their docstring is what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_docstring_says(example, tmp_path):
    docstring = example.read_text().split('"""')[1]
    expected = docstring.split(f"$ python examples/{example.name}\n")[1]
    ran = subprocess.run(
        [sys.executable, example],
        env=os.environ | {"KSMEMU_DIR": str(tmp_path / "instance")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == expected
    assert not (tmp_path / "instance").exists()


def test_the_first_program_of_the_readme_is_the_example():
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert (ROOT / "examples/two_twins.py").read_text().endswith('"""\n\n' + program)
