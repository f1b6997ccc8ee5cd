"""The `faas` command itself: which commands there are, where they live, and how one of them is run."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from faas import __version__
from faas.cli.namespaces import OWN, with_namespace
from faas.cli.session import Session

# section -> command -> (module in faas.cli, what it does). The help is here: `faas --help` imports none of them.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Functions": {
        "new": ("new", "Start a function from a template."),
        "push": ("push", "Build, push and deploy a folder or an image; print its URL."),
        "invoke": ("invoke", "Invoke a function and print its answer."),
        "ls": ("functions", "List functions."),
        "describe": ("functions", "Show everything about a function."),
        "logs": ("logs", "Print what a function wrote."),
        "rm": ("functions", "Delete a function."),
        "scale": ("functions", "Set the number of instances now."),
        "debug": ("debug", "Open a shell in a throw-away instance."),
        "top": ("top", "Show what functions use now, live."),
        "dev": ("dev", "Run a folder's function for yourself, its new code at each save."),
        "event": ("event", "Print a sample event of AWS's services."),
    },
    "Revisions": {
        "versions": ("revisions", "List a function's revisions."),
        "rollback": ("revisions", "Move `live` back to an earlier revision."),
        "rebase": ("rebase", "Put functions on the runtime base as it is now, without their source."),
        "alias": ("revisions", "Names for revisions: ls, set, rm."),
    },
    "APIs": {
        "api": ("api", "Hosts, base paths and stages in front of functions: ls, describe, put, rm, import, export."),
        "route": ("route", "Methods and paths that lead to functions: ls, add, rm."),
    },
    "Events": {
        "schedule": ("schedule", "Schedules and what became of their fire times: ls, history."),
        "trigger": ("trigger", "Watched folders: ls."),
        "dlq": ("dlq", "Events that were given up: ls, show, retry, rm."),
        "websocket": ("websocket", "WebSocket APIs and who is connected: ls, put, rm, connections, send, close."),
    },
    "Usage": {
        "usage": ("usage", "Show what functions used, and what that would cost."),
        "budget": ("budget", "How much may be used in a month: ls, set, rm."),
        "notify": ("notify", "Who is told of what goes wrong, by web hook or e-mail: add, ls, rm, test."),
        "plan": ("plan", "How often and how much API keys may call: ls, set, rm, usage."),
    },
    "Images": {
        "image": ("image", "Images: ls, describe, rm, export, import, policy, retention, quota, scrub, gc."),
    },
    "Server": {
        "serve": ("serve", "Run the server."),
        "backup": ("backup", "Write everything the server keeps to a folder or a .tar file, while it serves."),
        "restore": ("restore", "Make a data folder of a backup."),
        "tls": ("tls", "Serve other machines: set, off, renew, show."),
        "login": ("login", "Remember a server and its token, for Docker too."),
        "logout": ("logout", "Forget what faas login remembered."),
        "whoami": ("whoami", "Show who you are on the server, and what you may."),
        "secret": ("secret", "Secrets of functions: set, ls, rm, rotate-key."),
        "key": ("key", "API keys of those who call functions: create, ls, rotate, revoke."),
        "user": ("user", "People and machines, and what they are where: create, ls, show, set-role, rm."),
        "token": ("token", "What opens, for you and for others: create, ls, rotate, revoke."),
        "audit": ("audit", "Who changed what: ls, export, verify."),
        "maintenance": ("maintenance", "Answer requests with 503 for a while: ls, on, off."),
        "config": ("config", "Show each setting and where it came from."),
        "doctor": ("doctor", "Check this machine and the connection."),
        "completion": ("completion", "Print the shell's completion script."),
    },
}
NOT_BUILT: dict[str, str] = {}
_TABLE = {name: entry for section in COMMANDS.values() for name, entry in section.items()}


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


def _with_debug(command: click.Command) -> click.Command:
    """`--debug` works behind every command, not only before it."""
    if not any(p.name == "debug" for p in command.params):
        command.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, hidden=True, is_eager=True, callback=_debug)
        )
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _with_debug(child)
    return command


class ReaderGone(Exception):
    """Whoever read our output has had enough (`faas logs x | head`): that is no failure."""


class Root(click.Group):
    """Commands are looked up in the table and imported when they are used."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_TABLE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _TABLE:
            return None
        module = importlib.import_module(f"faas.cli.{_TABLE[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return _with_debug(command if cmd_name in OWN else with_namespace(command))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in NOT_BUILT:
            raise click.UsageError(f"faas {name} is not built yet ({NOT_BUILT[name]})", ctx)
        if name not in _TABLE and not name.startswith("-"):
            near = difflib.get_close_matches(name, _TABLE, 1)
            known = f"did you mean faas {near[0]}?" if near else f"known: {', '.join(_TABLE)}"
            raise click.UsageError(f"there is no command {name!r}; {known}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(version)s")
@click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show tracebacks of errors."
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Functions, a registry and a gateway on a machine you own.

    The server is found by FAAS_URL and FAAS_TOKEN, else by what `faas login` wrote, else, on the server's own host, by
    its data folder.
    """
    if ctx.ensure_object(Session).settings.no_color:
        ctx.color = False


def run(args: Sequence[str] | None) -> int:
    """One command, with every error turned into a message and an exit code."""
    from faas.cli import failures

    session = Session()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its number
    argv = sys.argv[1:] if args is None else list(args)
    try:
        result = cli.main(argv, prog_name="faas", standalone_mode=False, obj=session)
    except ReaderGone:
        # What is still buffered has nowhere to go, and Python would complain about that at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as ended:  # click ends so after a shell's completion
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except (KeyboardInterrupt, EOFError, click.Abort):
        return failures.INTERRUPTED
    except Exception as error:
        return failures.report(error, session)
    return result if isinstance(result, int) else 0
