"""The few facts of structure that keep somebody's memory safe, and what must agree with what."""

import ast
import re

import pytest

from ksmemu import _core, wire
from ksmemu.control.files import LINUX, RFC_2009
from tests.support.cores import ROOT

CORE = ROOT / "ksmemu/core"


def code_of(path):
    """Return C source without comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)


def files_with(pattern):
    return {path.name for path in CORE.iterdir() if re.search(pattern, code_of(path))}


def python_files(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports_of(path):
    """Return the modules that a file imports, at the top or inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def calls_of(path):
    return {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}


def test_only_one_file_replaces_mappings():
    assert files_with(r"\bM(RE)?MAP_FIXED") == {"remap.c"}


def test_only_three_files_talk_to_the_kernels_memory_management():
    assert files_with(r"\bioctl\(") == {"uffd.c", "harvest.c", "mappings.c"}


def test_only_the_glue_knows_python():
    assert files_with(r"Python\.h|\bPy[A-Z_]") == {"module.c"}


def test_only_the_tests_can_take_a_step_out():
    assert files_with(r"KSMEMU_BREAKS") == {"core.h"}
    assert not any("KSMEMU_BREAK" in path.read_text() for path in python_files("ksmemu", "workers"))


def test_every_fixed_mapping_and_write_protect_says_why_it_is_safe():
    places = [
        ("remap.c", "map_fixed(start"),
        ("remap.c", "MREMAP_MAYMOVE |"),
        ("uffd.c", "UFFDIO_WRITEPROTECT, &arg"),
    ]
    for name, marker in places:
        text = (CORE / name).read_text()
        for found in re.finditer(re.escape(marker), text):
            function = text[text.rindex("\n{", 0, found.start()) : found.start()]
            assert "SAFE:" in function, text[: found.start()].count("\n")


@pytest.mark.parametrize(("folder", "other"), [("mm", "ksmd"), ("ksmd", "mm"), ("control", "mm")])
def test_worker_and_scanner_do_not_import_each_other(folder, other):
    for path in python_files(f"ksmemu/{folder}"):
        wrong = {name for name in imports_of(path) if name.startswith(f"ksmemu.{other}.")}
        assert not wrong, path


def test_only_the_command_line_prints():
    for path in python_files("ksmemu"):
        if path.parent.name != "cli":
            assert not calls_of(path) & {"print", "click.echo", "click.secho"}, path


def test_the_core_is_what_its_stub_says():
    names, methods = set(), {}
    for node in ast.parse((ROOT / "ksmemu/_core.pyi").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AnnAssign)):
            names.add(node.name if isinstance(node, ast.FunctionDef) else node.target.id)
        elif isinstance(node, ast.ClassDef):
            methods[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
    names = {name for name in names if not name.startswith("_")}
    assert names | {"Agent", "Memory"} == {name for name in dir(_core) if not name.startswith("_")}
    for kind in ("Agent", "Memory"):
        public = {name for name in methods[kind] if not name.startswith("_")}
        assert public == {name for name in dir(getattr(_core, kind)) if not name.startswith("_")}


@pytest.mark.parametrize(
    "name",
    sorted({name for f in (LINUX, RFC_2009) for name in (*f.tunables, *f.actions, *f.counters, *f.stats)}),
)
def test_every_file_of_the_control_directory_is_documented(name):
    text = "".join((ROOT / file).read_text() for file in ("README.md", "ksmemu/README.md"))
    assert f"`{name}`" in text


def test_both_ends_of_the_wire_have_one_version():
    said = re.search(r"KSMEMU_WIRE_VERSION (\d+)u", (CORE / "wire.h").read_text())
    assert int(said[1]) == wire.VERSION == _core.WIRE_VERSION
