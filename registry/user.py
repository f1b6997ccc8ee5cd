"""`python -m registry user add|rm|ls`: who may log in at a registry that runs alone."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from faas.auth import ALL_NAMESPACES, Principal, Role
from faas.errors import FaasError, InvalidInput
from faas.passwords import Passwords, check_password
from registry.users import FILE, ROLES, User, changing, read


def main(words: Sequence[str]) -> int:
    """Change or list `DIR/users`; a registry that runs on DIR follows. The exit code."""
    arguments = _parser().parse_args(words)
    file = arguments.data / FILE
    try:
        if arguments.verb == "add":
            narrowed = tuple(arguments.repository)
            _add(file, Principal(arguments.name, Role(arguments.role), arguments.namespace, repositories=narrowed))
        elif arguments.verb == "rm":
            with changing(file) as users:
                if users.pop(arguments.name, None) is None:
                    raise InvalidInput(f"there is no user {arguments.name}", hint="python -m registry user ls")
        else:
            for name, known in sorted(read(file).items()):
                who = known.principal
                print(name, who.role.value, who.namespace, *who.repositories)  # noqa: T201
    except (FaasError, OSError) as error:
        complain(error)
        return 1
    return 0


def complain(error: Exception) -> None:
    """What failed, and one thing to do where there is one, on standard error."""
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    if isinstance(error, FaasError) and error.hint:
        print(f"  {error.hint}", file=sys.stderr)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m registry user", description="Who may log in with a password.")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, required=True, help="the registry's folder")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ls", parents=[data], help="list names, roles, and where they hold")
    verbs.add_parser("rm", parents=[data], help="nobody logs in by that name any more").add_argument("name")
    add = verbs.add_parser("add", parents=[data], help="add a user, or change one; the password is asked for, or read")
    add.add_argument("name")
    add.add_argument("--role", choices=[role.value for role in ROLES], default=Role.VIEWER.value, help="default viewer")
    add.add_argument("--namespace", default=ALL_NAMESPACES, help="only the repositories below it; default: all")
    add.add_argument(
        "--repository",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only these, such as 'team/*'; may be given several times",
    )
    return parser


def _add(file: Path, who: Principal) -> None:
    User(who, "").check()
    with closing(Passwords()) as passwords:
        hashed = asyncio.run(passwords.hash(check_password(_password())))
    with changing(file) as users:
        users[who.name] = User(who, hashed)


def _password() -> str:
    """Asked for twice at a terminal, else the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass()
    if password != getpass.getpass("Again: "):
        raise InvalidInput("the two differ")
    return password
