"""docs/architecture.md: imports point down, and every room stands in the drawing."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ROOT / "llamaproxy"


def room_of(path: Path) -> str:
    """The folder or the module of the product that *path* stands in."""
    first = path.relative_to(PRODUCT).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The rooms that the module at *path* imports from, within functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llamaproxy"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("llamaproxy.")]
    return {name.split(".")[1] for name in names}


def rooms() -> dict[str, set[str]]:
    """Each room, and those that it imports from."""
    known = {room_of(path) for path in PRODUCT.rglob("*.py")}
    arrows: dict[str, set[str]] = {room: set() for room in known}
    for path in PRODUCT.rglob("*.py"):
        arrows[room_of(path)] |= (imports_of(path) & known) - {room_of(path)}
    return arrows


def test_imports_point_down_only() -> None:
    order = list(TopologicalSorter(rooms()).static_order())  # raises CycleError
    assert {"tap", "crew", "start", "worker"} == set(order[-4:])


def test_the_tool_loop_stands_without_the_front_door() -> None:
    arrows = rooms()
    assert not arrows["chat"] & {"server", "admin", "config", "routes"}
    assert not arrows["tools"] & {"chat", "server", "admin", "config", "routes"}
    assert not arrows["upstream"] & {"chat", "tools", "server", "admin", "config", "routes"}
    assert not arrows["admin"] & {"chat", "tools", "server", "upstream"}


def test_every_room_is_drawn() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawing = page.split("## The rooms")[1].split("## A request's way")[0]
    for room in rooms().keys() - {"__init__"}:
        assert f"{room}/" in drawing or f"{room}.py" in drawing, room


def test_every_module_that_is_named_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = {word.strip("`,.;") for word in page.split() if word.strip("`,.;").endswith(".py")}
    assert len(names) > 15
    for name in names:
        assert (PRODUCT / name).exists(), name
