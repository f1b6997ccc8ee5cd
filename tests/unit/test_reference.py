"""`faas/reference.md` has everything that it is there for, and nothing else; what pages show of commands is there."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from faas import spec
from faas.cli.root import cli
from faas.errors import FaasError, SpecError
from faas.rules.rules import KEYS as RULES
from registry.errors import CODES
from tests.support.reference import OTHERS, PAGE, renewed
from tests.unit.test_cli_docs import commands as all_commands
from tests.unit.test_docs import commands, pages

PACKAGES = ("faas", "gateway", "worker", "registry")
ELSEWHERE = (".migrations", "faas.runtimes", "__main__")  # what is run, and not imported
AIOHTTPS = {"MethodNotAllowed"}  # `faas.web` gives its refusals a code
ERROR_TYPE = re.compile(r"""["']((?:Runtime|Sandbox|Function|Route|Extension)\.[A-Z]\w+)["']""")


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def modules() -> list[ModuleType]:
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found.append(package)
        names = [one.name for one in pkgutil.walk_packages(package.__path__, f"{name}.")]
        found += [importlib.import_module(one) for one in names if not any(part in one for part in ELSEWHERE)]
    return found


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_column(text: str) -> list[str]:
    """The names in the first cells of its tables."""
    return [name for row in re.findall(r"^\| (`[^|]*) \|", text, re.M) for name in re.findall(r"`([^`]+)`", row)]


def subclasses(kind: type[FaasError]) -> Iterator[type[FaasError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def test_the_tables_of_settings_metrics_operations_and_actions_are_the_codes(text: str) -> None:
    assert renewed(text) == text, "python -m tests.support.reference"


@pytest.mark.usefixtures("modules")
def test_every_error_has_a_row_with_its_status_and_every_row_an_error(text: str) -> None:
    ours = {one for one in subclasses(FaasError) if one.__module__.partition(".")[0] in PACKAGES}
    rows = first_column(section(text, "Errors"))
    assert sorted(rows) == sorted({one.code for one in ours} | AIOHTTPS)
    statuses = dict(re.findall(r"^\| `([\w.]+)` \| (\d+) \|", section(text, "Errors"), re.M))
    for one in ours:
        assert statuses.get(one.code, str(one.status)) == str(one.status), one


def test_every_name_that_x_error_type_may_have_of_ours_has_a_row(text: str, project_root: Path) -> None:
    sources = [path for name in PACKAGES for end in ("py", "js") for path in (project_root / name).rglob(f"*.{end}")]
    used = {name for path in sources for name in ERROR_TYPE.findall(path.read_text())}
    assert len(used) > 10
    listed = set(first_column(section(text, "Names in X-Error-Type"))) | set(first_column(section(text, "Errors")))
    assert used - listed == set()
    assert set(first_column(section(text, "Names in X-Error-Type"))) - used == set()


def test_every_reason_of_a_refusal_has_a_row(text: str, modules: list[ModuleType]) -> None:
    used = set()
    for module in modules:
        if module.__file__ is None or "reason=" not in (source := Path(module.__file__).read_text()):
            continue
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Throttled":
                used |= {name for word in call.keywords if word.arg == "reason" for name in values(word.value, module)}
    assert len(used) > 8
    assert used - set(first_column(section(text, "Reasons of 429 and 503"))) == set()


def values(node: ast.expr, module: ModuleType) -> Iterator[str]:
    """What an argument may be: a text, a constant of the module, or one of two."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from (*values(node.body, module), *values(node.orelse, module))
    elif isinstance(node, ast.Name) and isinstance(found := getattr(module, node.id, None), str):
        yield found


def test_every_code_of_the_registry_has_a_row(text: str) -> None:
    assert {name for name in first_column(text) if re.fullmatch(r"[A-Z_]+", name)} == CODES.keys()


def test_every_action_that_is_written_out_in_the_code_has_a_row(project_root: Path) -> None:
    sources = [path for name in ("gateway", "registry") for path in (project_root / name).rglob("*.py")]
    written = {
        name for path in sources for name in re.findall(r'\baction="(\w[\w-]*\.[\w.-]+|login)"', path.read_text())
    }
    made = {f"{noun}.{verb}" for noun, verb in re.findall(r'f?"(images|blobs)\.(\w+)"', _registrys(project_root))}
    assert written
    assert (written | made) - OTHERS.keys() == set()


def _registrys(root: Path) -> str:
    return (root / "registry" / "audit.py").read_text()


def test_conditions_and_events_of_a_function_are_named_in_the_gateways_page(project_root: Path) -> None:
    page = (project_root / "gateway" / "README.md").read_text()
    source = ast.parse((project_root / "gateway" / "conditions.py").read_text())
    calls = [one for one in ast.walk(source) if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "_bad"]
    reasons = {str(call.args[1].value) for call in calls if isinstance(call.args[1], ast.Constant)}
    assert len(reasons) > 8
    assert {reason for reason in reasons if f"`{reason}`" not in page} == set()


def test_every_command_that_a_page_shows_is_there_with_its_options(project_root: Path) -> None:
    there = dict(all_commands(cli, "faas"))
    groups = {path.rpartition(" ")[0] for path in there}
    wrong = []
    for page in pages(project_root):
        if page.name == "CHANGELOG.md":  # it tells what was
            continue
        shown_there = re.findall(r"`faas ([a-z][^`\n|]*)", page.read_text())
        shown_there += re.findall(r"(?:^|[|] |\$\()faas ([a-z][^\n|)<>]*)", commands(page), re.M)
        for shown in shown_there:
            words = re.sub(r"[…,.]", " ", shown.partition("$(")[0]).split()
            if not words or words[0] not in {path.split()[1] for path in there}:
                wrong.append((page.name, shown))
                continue
            path = next((p for n in (3, 2, 1) if (p := " ".join(["faas", *words[:n]])) in there or p in groups), "faas")
            wrong += [(page.name, shown) for word in words if not known(word, there.get(path))]
    assert wrong == [], "\n".join(map(str, wrong))


def known(word: str, command: click.Command | None) -> bool:
    """Whether a word can be: an option must be one of the command's; of a group of commands none is asked."""
    if isinstance(command, click.Group | None) or not re.fullmatch(r"--?[a-z][a-z-]*", word.partition("=")[0]):
        return True
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "--debug"}
    return word.partition("=")[0] in options


def test_the_dashboard_asks_for_metrics_that_the_page_has(text: str, project_root: Path) -> None:
    known_metrics = set(first_column(section(text, "Metrics")))
    for dashboard in (project_root / "deploy" / "grafana").rglob("*.json"):
        written = json.dumps(json.loads(dashboard.read_text()))
        for name in set(re.findall(r"\bfaas_\w+", written)):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in known_metrics, name


TABLES = (
    "", "scale", "async", "auth", "auth.key", "auth.jwt", "auth.authorizer", "schedule", "trigger", "cors", "throttle",
    "circuit", "websocket", "route",
)  # fmt: skip


def keys_of(table: str) -> set[str]:
    """As the refusal of an unknown key lists them."""
    value: object = {"zzzzzzzz": 1}
    if table in ("schedule", "trigger", "route"):
        value = [value]
    for part in reversed(table.split(".") if table else []):
        value = {part: value}
    assert isinstance(value, dict)
    with pytest.raises(SpecError) as refused:
        spec.parse({"name": "one", "runtime": "python", "handler": "a.b", **value})
    return set(refused.value.hint.removeprefix("known keys: ").split(", "))


def test_every_key_of_faas_toml_has_a_row_and_every_row_a_key(project_root: Path) -> None:
    page = (project_root / "faas" / "README.md").read_text().partition("\n## ")[0]
    written: dict[str, set[str]] = {table: set() for table in TABLES}
    for cell in re.findall(r"^\| (`[^|]*) \|", page, re.M):
        table = ""
        for name in re.findall(r"`([^`]+)`", cell.partition(" with ")[0]):
            prefix, _, rest = name.rpartition(" ")
            table = prefix.strip("[]") or table
            written.setdefault(table, set()).add(rest.strip("[]"))
    for table in TABLES:
        known_keys = keys_of(table)
        if table == "":
            known_keys -= {name for name in TABLES if name} - written[""]  # a row of each of their own keys
        elif table == "auth":
            known_keys -= {"jwt", "authorizer"}
        elif table == "route":
            known_keys -= {*RULES}  # as the function's
        elif table == "auth.key":
            assert all(f"`{name}`" in page for name in known_keys)
            continue
        assert written[table] - {"env", "secrets"} == known_keys - {"env", "secrets"}, table
    assert "`[env]`" in page
    assert "`[secrets]`" in page
