"""The laws of the house (ARCHITECTURE.md, "Laws"): who may import whom, and one door per dependency."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("faas", "registry", "gateway", "worker")
COMPOSITION_ROOTS = ("faas.cli", "faas.server")
MAY_IMPORT = {
    "root": set(PACKAGES) | {"root"},
    "faas": {"faas"},
    "registry": {"registry", "faas"},
    "gateway": {"gateway", "faas"},
    "worker": {"worker", "faas"},
}
# module that is imported -> prefixes of the modules that may
DOORS = {
    "prometheus_client": ("faas.metrics",),
    "croniter": ("faas.cron",),
    "sqlalchemy": ("faas.state", "gateway.store", "registry.index"),
    "alembic": ("faas.state", "registry.index"),
    "docker": ("worker.drivers.docker.engine", "faas.build.dockerfile"),
    "argon2": ("faas.passwords",),
    "opentelemetry": ("gateway.edge.spans",),
    "jwt": ("gateway.edge.auth",),
    "aiosmtplib": ("gateway.notify.mail",),
    "subprocess": ("worker", "faas.build", *COMPOSITION_ROOTS),
    "pip": (),
}
HEAVY = {"sqlalchemy", "alembic", "aiohttp", "docker", "prometheus_client", "croniter", "watchfiles"}


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    yield
    modules.cache_clear()


@functools.cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    return tuple(_parsed())


def _parsed() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith("faas.runtimes."):  # runs inside function images: its own world
                yield name, ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def home(module: str) -> str:
    return "root" if within(module, COMPOSITION_ROOTS) else module.partition(".")[0]


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def test_siblings_do_not_import_each_other_and_the_kernel_imports_none_of_them() -> None:
    breaches = [
        f"{name}:{line} imports {imported}"
        for name, tree in modules()
        for imported, line in imports(tree)
        if imported.partition(".")[0] in PACKAGES and home(imported) not in MAY_IMPORT[home(name)]
    ]
    assert breaches == []


def test_the_worker_keeps_no_state() -> None:
    breaches = [
        n for n, tree in modules() if home(n) == "worker" for i, _ in imports(tree) if within(i, ("faas.state",))
    ]
    assert breaches == []


def test_each_dependency_has_one_door() -> None:
    breaches = [
        f"{name}:{line} imports {imported}"
        for name, tree in modules()
        for imported, line in imports(tree)
        if (door := DOORS.get(imported.partition(".")[0])) is not None and not within(name, door)
    ]
    assert breaches == []


def test_only_the_settings_read_the_environment() -> None:
    breaches = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        if name != "faas.settings"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert breaches == []


def test_processes_are_started_only_where_the_door_is() -> None:
    names = {"create_subprocess_exec", "create_subprocess_shell", "system", "popen"}
    breaches = [
        f"{name}:{node.lineno} {node.attr}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "asyncio")
        and (not within(name, DOORS["subprocess"]) or node.attr in ("create_subprocess_shell", "system", "popen"))
    ]
    assert breaches == []


def test_the_command_line_starts_without_heavy_imports() -> None:
    """Followed through top-level imports of our own modules, from `faas.cli`."""
    trees = dict(modules())
    seen: set[str] = set()
    todo = ["faas", "faas.cli"]
    heavy = []
    while todo:
        name = todo.pop()
        if name in seen or name not in trees:
            continue
        seen.add(name)
        for node in trees[name].body:
            for imported, line in imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if imported.partition(".")[0] in HEAVY:
                    heavy.append(f"{name}:{line} imports {imported}")
                todo.append(imported)
    assert heavy == []


def test_the_top_level_is_the_agreed_one() -> None:
    agreed = {*PACKAGES, "deploy", "tests", "pyproject.toml"}
    plain = {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    made = {"build", "dist"}  # by packaging tools, never committed
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and p.suffix != ".egg-info"}
    assert found - made == agreed | plain


def test_modules_stay_readable() -> None:
    """400 lines are one noun; what is longer is split by noun."""
    long = {
        str(path.relative_to(ROOT)): lines
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (lines := path.read_text().count("\n")) > 400
    }
    assert long == {}
