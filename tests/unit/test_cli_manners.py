"""How the command line behaves as a process: streams, exit codes, colours, interruptions, what it imports."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faas.cli.root import NOT_BUILT
from tests.support.cli import CommandLine
from tests.support.fake_api import HELLO, REQUEST_ID, FakeApi, Reply, refusal

HEAVY = ("aiohttp", "sqlalchemy", "docker", "prometheus_client", "croniter", "watchfiles", "asyncio")


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_help_imports_nothing_heavy(faas: CommandLine) -> None:
    script = (
        "import sys; from faas.cli import main; code = main(['--help']); "
        f"print(code, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "0 []"
    assert "Functions:" in done.stdout


def test_the_contracts_exit_codes(faas: CommandLine) -> None:
    replies = faas.api.replies
    replies["GET", "/v1/functions"] = Reply({"functions": []})
    replies["GET", "/v1/functions/broken"] = refusal(500, "InternalError", "our fault")
    replies["GET", "/v1/functions/secret"] = refusal(403, "Forbidden", "the role viewer may not read")
    replies["GET", "/v1/functions/slow"] = refusal(504, "Sandbox.Timedout", "it took too long")
    replies["GET", "/v1/functions/later"] = refusal(501, "NotOffered", "not offered yet")
    replies["POST", "/v1/functions/bad/invocations"] = Reply({}, headers={"X-Error-Type": "KeyError"})
    for code, args in {
        0: ["ls"], 1: ["describe", "broken"], 2: ["ls", "--nonsense"], 3: ["describe", "nobody"],
        4: ["describe", "secret"], 6: ["describe", "slow"], 7: ["invoke", "bad"],
    }.items():  # fmt: skip
        done = faas(*args, code=code)
        assert "Traceback" not in done.err
        assert (done.out == "") == (code != 0)
    faas("describe", "later", code=1)
    assert faas.process("ls", FAAS_TOKEN="wrong").code == 4
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = faas.process("ls", FAAS_URL=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert gone.code == 5
    assert "cannot reach the server" in gone.err
    assert "faas doctor" in gone.err


def test_an_error_says_what_failed_what_to_do_and_where_its_log_is(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions/hello"] = refusal(409, "Conflict", "it is being deleted", "wait a moment")
    assert faas("describe", "hello", code=1).err == (
        f"error: it is being deleted\n  wait a moment\n  request id {REQUEST_ID}\n"
    )
    faas.api.replies["GET", "/v1/functions"] = refusal(500, "InternalError", "our fault")
    assert faas("ls", code=1).err.endswith(f"  request id {REQUEST_ID} (in the server's log)\n")
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = refusal(502, "Runtime.ExitError", "it exited")
    assert faas("invoke", "hello", code=7).err == (
        f"error: Runtime.ExitError: it exited\n  request id {REQUEST_ID}: faas logs hello --request-id {REQUEST_ID}\n"
    )


def test_debug_shows_the_traceback_before_and_behind_the_command(faas: CommandLine) -> None:
    for args in (("--debug", "describe", "nobody"), ("describe", "nobody", "--debug"), ("dlq", "show", "x", "--debug")):
        done = faas(*args, code=3)
        assert "Traceback" in done.err
        assert "error: there is no" in done.err


def test_an_error_of_our_own_is_one_line_without_debug(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": [{"name": "x", "instances": {"idle": "many"}}]})
    done = faas("ls", code=1)
    assert done.err.startswith("error: our fault: ValueError")
    assert "--debug" in done.err


def test_a_command_that_is_not_built_yet_says_so_by_name(faas: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_BUILT, "fly", "flying")
    for args in (["fly"], ["fly", "ls", "--all"]):
        assert "faas fly is not built yet (flying)" in faas(*args, code=2).err


def test_an_unknown_command_asks_did_you_mean(faas: CommandLine) -> None:
    assert "did you mean faas describe?" in faas("descibe", code=2).err
    assert "known: new, push" in faas("xyzzy", code=2).err


def test_without_any_server_it_says_how_to_find_one(faas: CommandLine) -> None:
    faas.env.pop("FAAS_URL")
    done = faas("ls", code=5)
    assert "no server is known here" in done.err
    assert "faas login" in done.err


def in_terminal(faas: CommandLine, *args: object, **env: str) -> str:
    """What a terminal shows of a command."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        faas.command(*args), stdin=terminal, stdout=terminal, stderr=terminal,
        env=faas.environment({"TERM": "xterm", **env}),
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += (chunk := os.read(controller, 65_536))
        except OSError:  # the terminal's other end is closed
            break
        if not chunk:
            break
    os.close(controller)
    process.wait(30)
    return shown.decode()


def test_colours_are_for_terminals_and_not_for_no_color(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": [HELLO]})
    assert "\x1b[1m" in in_terminal(faas, "ls")
    assert "\x1b" not in in_terminal(faas, "ls", NO_COLOR="1")
    assert "\x1b[31m" in in_terminal(faas, "describe", "nobody")
    assert "\x1b" not in faas("ls").out


def test_what_a_function_wrote_cannot_steer_the_terminal(faas: CommandLine) -> None:
    record = b'{"time": 1, "stream": "stdout", "message": "\\u001b]0;owned\\u0007 fine\\ttab"}\n'
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(record)
    shown = in_terminal(faas, "logs", "hello", NO_COLOR="1")
    assert "\\x1b]0;owned\\x07 fine" in shown
    assert "\x1b" not in shown
    assert "\x1b]0;owned" in faas.process("logs", "hello").out  # a pipe gets the bytes as they are


def test_deleting_asks_at_a_terminal(faas: CommandLine) -> None:
    faas.api.replies["DELETE", "/v1/functions/hello"] = Reply(status=204)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        faas.command("rm", "hello"), stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, env=faas.environment()
    )
    os.close(terminal)
    os.write(controller, b"n\n")
    assert process.wait(30) == 130
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    os.close(controller)
    assert faas.api.seen == []
    in_terminal(faas, "rm", "hello", "--yes")
    assert faas.api.seen[-1].method == "DELETE"


def test_an_interrupt_ends_with_130(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(b"", delay=30)
    process = subprocess.Popen(
        faas.command("logs", "hello", "-f"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=faas.environment(),
    )
    deadline = time.monotonic() + 20
    while not faas.api.seen and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


def test_an_interruption_in_the_moment_in_which_a_command_begins_is_one_too(
    faas: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sent = signal.signal, []

    def then_interrupted(number: int, handler: Any) -> Any:
        before = original(number, handler)
        if not sent:
            sent.append(number)
            signal.raise_signal(signal.SIGINT)
        return before

    monkeypatch.setattr("asyncio.runners.signal.signal", then_interrupted)
    assert faas("ls", code=130).err.strip() == ""
    assert sent == [signal.SIGINT]


def test_a_reader_that_has_had_enough_is_no_failure(faas: CommandLine) -> None:
    line = b'{"time": 1, "message": "%s"}\n' % (b"x" * 1000)
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(line * 2000)
    process = subprocess.Popen(
        faas.command("logs", "hello"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=faas.environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 0


def test_names_are_completed_from_the_server_and_silently_not_at_all_without_one(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": [HELLO, {**HELLO, "name": "other"}]})
    completing = {"_FAAS_COMPLETE": "bash_complete", "COMP_WORDS": "faas describe h", "COMP_CWORD": "2"}
    assert faas.process(**completing).out == "plain,hello\n"
    done = faas.process(**completing, FAAS_URL="http://127.0.0.1:1")
    assert (done.out.strip(), done.err) == ("", "")
    commands = {**completing, "COMP_WORDS": "faas des", "COMP_CWORD": "1"}
    assert faas.process(**commands).out == "plain,describe\n"
