"""Imports point down: cli -> {training, evaluation, visualization, tuning} -> {model, data} -> ops."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    ("cli",),
    ("training", "evaluation", "visualization", "tuning"),
    ("model", "data"),
    ("ops",),
    ("kernels",),
]
FLOOR_OF = {wing: floor for floor, wings in enumerate(reversed(FLOORS)) for wing in wings}
PACKAGE = "dca_triton"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package by its face, `__init__.py`."""
    files = {*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "kernels").rglob("*.py")}
    parts = {file: list(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    names = {file: p if p[0] == PACKAGE else [PACKAGE, *p] for file, p in parts.items()}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in names.items()}


def imports(name: str, file: Path, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in known else source for a in node.names}
    return {other for other in found if other in known and other != name}


def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(name, file, set(files)) for name, file in files.items() if name != PACKAGE}


def wing_of(name: str) -> str | None:
    """The wing that a module belongs to; None for the foundations, files right in the package."""
    wing = name.split(".")[1]
    return wing if wing in FLOOR_OF else None


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports that do not point down."""
    found = []
    for name, others in arrows.items():
        own = wing_of(name)
        for other in others:
            target = wing_of(other)
            if target is None or target == own:
                continue
            if own is None or FLOOR_OF[target] >= FLOOR_OF[own]:
                found.append(f"{name} imports {other}")
    return sorted(found)


def test_every_folder_is_a_wing_on_a_floor() -> None:
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    assert {name.split(".")[1] for name in packages - {PACKAGE}} == set(FLOOR_OF) - {"kernels"} | {"kernels"}


def test_imports_point_down() -> None:
    arrows = graph()
    assert sum(map(len, arrows.values())) > 50  # the walk sees them
    assert upward(arrows) == []


def test_no_import_circle() -> None:
    TopologicalSorter(graph()).prepare()


def test_upward_and_circular_imports_are_found() -> None:
    assert upward({"dca_triton.ops.checks": {"dca_triton.model.layouts"}})
    assert upward({"dca_triton.data.folder": {"dca_triton.model"}})
    assert upward({"dca_triton.arguments": {"dca_triton.ops"}})
    assert not upward({"dca_triton.model.layouts": {"dca_triton.ops", "dca_triton.arguments"}})
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
