"""The reference of the command line is complete, and says nothing that is not so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from faas.cli import failures
from faas.cli.root import NOT_BUILT, cli

SHARED = {"--help", "--debug"}


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    with click.Context(group, info_name=path) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            if isinstance(command, click.Group) and name != "event":  # a table of kinds: tests/unit/test_cli_event.py
                yield from commands(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command


@pytest.fixture(scope="module")
def sections(project_root: Path) -> dict[str, str]:
    """Command → its section, in the order of the page."""
    text = (project_root / "faas/cli/README.md").read_text()
    parts = re.split(r"^### `(faas [^`]+)`\n", text.partition("\n## Not built yet")[0], flags=re.M)
    return {title: body.partition("\n## ")[0] for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def section_of(path: str, sections: dict[str, str]) -> tuple[str, str]:
    found = [(t, body) for t, body in sections.items() if t == path or t.startswith(path + " ")]
    assert len(found) == 1, f"{path} has {len(found)} sections"
    return found[0]


def test_every_command_has_a_section_and_every_section_a_command(sections: dict[str, str]) -> None:
    paths = [path for path, _ in commands(cli, "faas")]
    titles = [section_of(path, sections)[0] for path in paths]
    assert sorted(titles) == sorted(sections)


def test_a_sections_options_are_the_commands(sections: dict[str, str]) -> None:
    for path, command in commands(cli, "faas"):
        title, body = section_of(path, sections)
        options = {o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
        long = {o for o in options if o.startswith("--")} - SHARED
        if path == "faas dev":  # flags that it has as a push has them stand there
            long -= {o for p in dict(commands(cli, "faas"))["faas push"].params for o in p.opts + p.secondary_opts} - {
                "--namespace"
            }
        written = set(re.findall(r"(?<!\w)--[a-z][a-z-]+", title + body)) - SHARED
        if path == "faas new":
            assert {"python", "node", "web", "cron", "container", "shell", "provided"} <= set(
                re.findall(r"`(\w+)`", body)
            )
        assert written <= long | _examples(body), f"{path}: unknown {written - long}"
        missing = {o for o in long - written if not (o.startswith("--no-") and path != "faas push")}
        assert missing == set(), f"{path}: {missing} not in faas/cli/README.md"


def _examples(body: str) -> set[str]:
    """Options inside a whole example command, which belong to that command."""
    return {option for example in re.findall(r"`faas [^`]+`", body) for option in re.findall(r"--[a-z-]+", example)}


def test_every_command_and_option_has_a_help_text() -> None:
    for path, command in commands(cli, "faas"):
        assert command.help or command.short_help, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, (path, parameter.name)


def test_read_commands_take_the_output_option() -> None:
    reading = {path for path, c in commands(cli, "faas") if any("--output" in p.opts for p in c.params)}
    assert reading == {
        "faas ls", "faas describe", "faas logs", "faas top", "faas versions", "faas alias ls", "faas schedule ls",
        "faas schedule history", "faas trigger ls", "faas api ls", "faas api describe", "faas route ls",
        "faas dlq ls", "faas dlq show", "faas websocket ls", "faas websocket connections",
        "faas image ls", "faas image describe", "faas image gc",
        "faas image quota ls", "faas image scrub",
        "faas image retention ls", "faas image retention preview", "faas image retention run",
        "faas image policy ls", "faas usage", "faas budget ls", "faas plan ls", "faas plan usage",
        "faas secret ls", "faas notify ls",
        "faas user ls", "faas user show", "faas whoami", "faas audit ls", "faas maintenance ls",
        "faas token ls", "faas key ls", "faas config", "faas tls show", "faas doctor", "faas rebase",
    }  # fmt: skip


def test_no_command_takes_a_token_as_an_argument() -> None:
    for path, command in commands(cli, "faas"):
        for parameter in command.params:
            assert not {"--token", "--password", "--secret", "--value"} & set(parameter.opts) or _names(parameter), path


def _names(parameter: click.Parameter) -> bool:
    """Whether it takes a stored secret's name, and not a value."""
    return isinstance(parameter, click.Option) and parameter.metavar == "VARIABLE=NAME"


def test_what_is_not_built_and_the_exit_codes_are_listed(project_root: Path) -> None:
    text = (project_root / "faas/cli/README.md").read_text()
    listed = re.findall(r"`(\w+)`", text.partition("## Not built yet")[2])
    assert sorted(listed) == sorted(NOT_BUILT)
    codes = {int(row) for row in re.findall(r"^\| (\d+) \|", text, flags=re.M)}
    known = {v for k, v in vars(failures).items() if k.isupper() and isinstance(v, int)}
    assert codes == known | {0}
