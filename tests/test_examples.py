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
EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.py")) if path.stem not in SCALED]
LONGEST = 60
LAB = ROOT / "examples/lab"
EXERCISE = re.compile(
    r"In `(?P<step>[^`]+)`, change `(?P<old>[^`]+)` to `(?P<new>[^`]+)`\..*?[Ii]t prints\s+`(?P<said>[^`]+)`",
    re.DOTALL,
)
EXERCISES = [found.groupdict() for found in EXERCISE.finditer((LAB / "README.md").read_text())]


def is_root(example):
    return "$ sudo " in example.read_text()


@pytest.fixture
def the_kernels_ksm_is_ours(request):
    """For an example that takes it."""
    if request.getfixturevalue("example") in filter(is_root, EXAMPLES):
        request.getfixturevalue("the_machine_may_be_changed")


@pytest.mark.usefixtures("the_kernels_ksm_is_ours")
@pytest.mark.parametrize(
    "example",
    [pytest.param(path, marks=[pytest.mark.root] * is_root(path), id=path.stem) for path in EXAMPLES],
)
def test_an_example_prints_what_its_docstring_says(example, tmp_path):
    docstring = example.read_text().split('"""')[1]
    command = f"python {example.relative_to(ROOT)}\n"
    expected = re.split(rf"\$ (?:sudo )?{re.escape(command)}", docstring)[1]
    assert output_of(example, tmp_path) == expected


def output_of(program, tmp_path, *args):
    ran = subprocess.run(
        [sys.executable, program, *args],
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
    printed = output_of(example, tmp_path, "16")
    assert without_figures(printed).strip() in without_figures(docstring)
    started, loaded, merged = (int(pss) for pss in re.findall(r"Pss +(\d+)", printed))
    assert loaded - started >= 8 * 16
    assert merged - started <= 3 * 16  # one copy, and what the workers need besides
    assert printed.endswith(f"pages_shared {16 * 256}, pages_sharing {7 * 16 * 256}\n")


def without_figures(text):
    return re.sub(r" +\d+", " N", text)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: f"{exercise['step']}, {exercise['new']}")
def test_an_exercise_of_the_lab_prints_what_the_handout_says(exercise, tmp_path):
    source = (LAB / exercise["step"]).read_text()
    program = tmp_path / "changed.py"
    program.write_text(source.replace(exercise["old"], exercise["new"]))
    assert exercise["said"] in output_of(program, tmp_path).splitlines()
    assert exercise["old"] in source
    assert exercise["new"] not in source


def test_every_step_of_the_lab_has_an_exercise():
    assert {exercise["step"] for exercise in EXERCISES} == {path.name for path in LAB.glob("*.py")}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) <= LONGEST


def test_the_first_program_of_the_readme_is_the_example():
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert (ROOT / "examples/two_twins.py").read_text().endswith('"""\n\n' + program)
