"""The layers: a file imports from its own room and from layers below it, and no files import each other in a circle.

Every import counts: those for type checkers only and those within functions, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A layer a row, lowest first: its rooms, which are folders or files, and why it stands where it does.  The rooms of one
# layer do not know each other.  Of two rooms that hold a file, the more exact one counts.
LAYERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("emu/addr.py", "emu/errors.py"), "words that everything else is said in"),
    (("emu/wholefile.py",), "files that have their old contents or their new ones, and nothing between"),
    (("emu/units.py",), "sizes, whole pages among them, and times as people write them"),
    (("emu/infile.py",), "input files that are read whole, with their limits"),
    (("emu/asm",), "text in, bytes out: knows no machine"),
    (("emu/devices",), "registers, interrupt lines and virtual time: a device knows no processor and no VM"),
    (("emu/engine",), "what stands on Unicorn and numba, and knows nothing of paging"),
    (("emu/boot",), "a guest's image and the CPU state it starts in: pages and registers, no VM"),
    (("emu/mmu",), "turns a gva into a machine address: reads P2M entries as numbers, never asks the DMM"),
    (("emu/cpu",), "what one processor does: exceptions, interrupts, system calls, time; reaches memory by paging"),
    (("emu/dmm",), "owns the mapping from gfn to mfn; tells paging what to forget"),
    (("emu/dmm/policies",), "decide through the DMM's interface; it calls them without knowing them"),
    (("emu/dmm/catalog.py",), "the policies and their options by name"),
    (("emu/audit",), "proves all of the above consistent, for a machine that asks for it"),
    (("emu/machine",), "puts a VM together from all of the above"),
    (("emu/observe",), "looks at a VM and never changes it"),
    (("emu/options.py",), "how to boot a guest, as data; stands on words alone"),
    (("emu/session.py",), "boots a guest by its options, and runs it to an outcome"),
    (("emu/__init__.py",), "the public names of all of the above"),
    # The tools.  Those of one layer are front ends of their own; only the command line knows several of them.
    (("emu/debug", "emu/fleet", "emu/bench", "emu/testing.py"), "cores of front ends, each on the session"),
    (("emu/pytest_plugin.py",), "the pytest front end of emu/testing.py"),
    (("emu/commands",), "one sub-command a file, on any core above"),
    (("emu/cli.py",), "finds the sub-command, and turns errors into exit statuses"),
    (("emu/__main__.py",), "the command line, for python -m emu"),
)

def files_of(root: Path) -> dict[str, Path]:
    """The files of ``root``/emu: path from there, with the place on disk."""
    return {path.relative_to(root).as_posix(): path for path in sorted((root / "emu").rglob("*.py"))}


def imports_of(root: Path) -> dict[str, set[str]]:
    """For each file of ``root``/emu the files of it that it imports."""
    files = files_of(root)
    modules = {_module(name): name for name in files}
    return {
        name: {modules[module] for module in _imported(path, _module(name), modules)} - {name}
        for name, path in files.items()
    }


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(path: Path, own: str, modules: Mapping[str, str]) -> Iterator[str]:
    """The modules among ``modules`` that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: relative imports are not used here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in modules)
            if node.module in modules and not all(name in modules for name in names):
                yield node.module


def room_of(file: str) -> tuple[int, str]:
    """The layer of a file, counted from the lowest, and its room there."""
    found = [
        (len(room), layer, room)
        for layer, (rooms, _) in enumerate(LAYERS)
        for room in rooms
        if file == room or file.startswith(f"{room}/")
    ]
    assert found, f"{file} is in no layer: add it to LAYERS in {__file__}"
    _, layer, room = max(found)
    return layer, room


def climbing(imports: Mapping[str, set[str]]) -> list[str]:
    """One line, with both file names, for each import that goes up, or to the side."""
    lines = []
    for file, targets in imports.items():
        layer, room = room_of(file)
        for target in sorted(targets):
            its_layer, its_room = room_of(target)
            if its_layer > layer:
                lines.append(f"{file} imports {target}, which is of a higher layer")
            elif its_layer == layer and its_room != room:
                lines.append(f"{file} imports {target}, which is another room of the same layer")
    return lines


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The sets of files that reach each other by imports, each sorted."""
    reached = {file: _reachable(file, imports) for file in imports}
    found = {tuple(sorted({other for other in reached[file] if file in reached[other]})) for file in imports}
    return sorted(list(circle) for circle in found if circle)


def _reachable(file: str, imports: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(imports[file])
    while waiting:
        target = waiting.pop()
        if target not in reached:
            reached.add(target)
            waiting += imports[target]
    return reached


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Those of emu."""
    return imports_of(ROOT)


def test_calls_go_down(imports: dict[str, set[str]]) -> None:
    wrong = climbing(imports)
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle(imports: dict[str, set[str]]) -> None:
    wrong = [", ".join(circle) for circle in circles(imports)]
    assert not wrong, "these files import each other: " + "; ".join(wrong)


def test_every_room_is_there() -> None:
    missing = [room for rooms, _ in LAYERS for room in rooms if not (ROOT / room).exists()]
    assert not missing


# --- the test of the test ---


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A made-up tree of these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "text",
    [
        "from emu.mmu.walk import walk\n",
        "from emu.mmu import walk\n",
        "import emu.mmu.walk\n",
        "def f():\n    from emu.mmu.walk import walk\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from emu.mmu import walk\n",
    ],
)
def test_an_import_that_climbs_is_caught_with_both_names(tmp_path: Path, text: str) -> None:
    walk = "from emu.addr import READ\n"
    root = tree(tmp_path, {"emu/engine/ram.py": text, "emu/mmu/walk.py": walk, "emu/addr.py": ""})
    assert climbing(imports_of(root)) == [
        "emu/engine/ram.py imports emu/mmu/walk.py, which is of a higher layer",
    ]


def test_an_import_of_a_neighbour_is_caught_with_both_names(tmp_path: Path) -> None:
    root = tree(tmp_path, {"emu/fleet/file.py": "import emu.debug.look\n", "emu/debug/look.py": ""})
    assert climbing(imports_of(root)) == [
        "emu/fleet/file.py imports emu/debug/look.py, which is another room of the same layer"
    ]


def test_a_circle_is_caught_with_its_files(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "emu/mmu/__init__.py": "",
            "emu/mmu/a.py": "from emu.mmu import b\n",
            "emu/mmu/b.py": "from emu.mmu.c import x\n",
            "emu/mmu/c.py": "def f():\n    import emu.mmu.a\n",
            "emu/mmu/d.py": "from emu.mmu import a\n",
        },
    )
    assert circles(imports_of(root)) == [["emu/mmu/a.py", "emu/mmu/b.py", "emu/mmu/c.py"]]


def test_a_file_without_a_layer_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="emu/new/thing.py is in no layer"):
        climbing(imports_of(tree(tmp_path, {"emu/new/thing.py": ""})))
