"""Who may import whom: api -> actors -> runtime -> kernels, and actors that touch the world only through `ctx`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "runtime", "actors", "api", "loadtest")
ALLOWED = {
    "kernels": {"kernels"},
    "runtime": {"runtime", "kernels"},
    "actors": {"actors", "runtime"},
    "api": {"api", "actors", "runtime"},
    "loadtest": {"loadtest"},
}
COMPOSITION_ROOT = (Path("runtime/composition.py"), Path("runtime/cli"))
CARRIERS = tuple(Path("actors", name) for name in ("lane.py", "memory.py", "system.py"))
OUTSIDE_WORLD = {"anyio", "asyncio", "random", "time", "threading", "socket", "jax", "trio"}
TYPES_ONLY = {"actors/context.py": {"random.Random"}}


def imported(source: str) -> Iterator[str]:
    """Dotted names of everything that a module imports, wherever in the module it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def direction_violations(path: Path, source: str) -> list[str]:
    if any(path.is_relative_to(root) for root in COMPOSITION_ROOT):
        return []
    package = path.parts[0]
    names = [name for name in imported(source) if name.split(".")[0] in PACKAGES or name.startswith(".")]
    return [f"{path}: {name}" for name in names if name.startswith(".") or name.split(".")[0] not in ALLOWED[package]]


def seam_violations(path: Path, source: str) -> list[str]:
    if path in CARRIERS:
        return []
    permitted = TYPES_ONLY.get(path.as_posix(), set())
    return [
        f"{path}: {name}" for name in imported(source) if name.split(".")[0] in OUTSIDE_WORLD and name not in permitted
    ]


def modules(package: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_only_downwards(package: str) -> None:
    paths = modules(package)
    assert paths
    assert [v for path in paths for v in direction_violations(path, (ROOT / path).read_text())] == []


def test_actors_reach_the_world_through_their_context() -> None:
    assert [v for path in modules("actors") for v in seam_violations(path, (ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/attention/reference.py", "from runtime.engine import Engine"),
        ("runtime/pages.py", "def late():\n    import actors.messages"),
        ("runtime/composition_helper.py", "import api"),
        ("actors/gateway.py", "from api import app"),
        ("actors/worker.py", "from kernels.kv_pack import gather_pages"),
        ("api/app.py", "from kernels.kv_write import kv_write"),
        ("loadtest/client.py", "from runtime.errors import UsageError"),
        ("api/app.py", "from .model import ServedModel"),
    ],
)
def test_a_planted_import_against_the_direction_is_seen(path: str, source: str) -> None:
    assert len(direction_violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("actors/gateway.py", "import time"),
        ("actors/worker.py", "def run():\n    from anyio import sleep"),
        ("actors/scheduler.py", "import random"),
        ("actors/context.py", "from random import random"),
        ("actors/transfer.py", "import jax.numpy as jnp"),
    ],
)
def test_a_planted_way_around_the_context_is_seen(path: str, source: str) -> None:
    assert len(seam_violations(Path(path), source)) == 1


def test_the_composition_root_and_the_carriers_are_free() -> None:
    assert direction_violations(Path("runtime/composition.py"), "import api, actors, kernels") == []
    assert direction_violations(Path("runtime/cli/up.py"), "import actors.system") == []
    assert seam_violations(Path("actors/memory.py"), "import anyio, time") == []
    assert seam_violations(Path("actors/context.py"), "from random import Random") == []
