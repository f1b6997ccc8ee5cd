"""Each command against a real HTTP server: what it asks for, what it prints on stdout, what on stderr."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import HELLO, REQUEST_ID, FakeApi, Reply, refusal

REVISIONS = [
    {"number": 1, "image": "hello@sha256:1", "created_at": "2030-01-01T00:00:00Z", "interface": "lambda",
     "aliases": [], "created_by": "admin"},
    {"number": 2, "image": "hello@sha256:2", "created_at": "2030-01-01T00:00:00Z", "interface": "lambda",
     "aliases": ["live"], "created_by": "ci"},
]  # fmt: skip
LETTER = {
    "id": "d1",
    "function": "hello",
    "namespace": "team",
    "error_type": "ValueError",
    "error_message": "no",
    "attempts": 3,
    "created_at": 1_700_000_000,
    "died_at": 1_700_000_100,
    "size": 2048,
}


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_ls_prints_a_row_per_function(faas: CommandLine) -> None:
    other = {**HELLO, "name": "other", "namespace": "team", "runtime": "", "instances": {}, "state": "failed"}
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": [HELLO, other]})
    header, first, second = faas("ls", "--namespace", "team").out.splitlines()
    assert header.split() == [
        "NAME",
        "REVISION",
        "READY",
        "REASON",
        "INSTANCES",
        "MEMORY",
        "IMAGE/RUNTIME",
        "AGE",
        "URL",
    ]
    assert first.split()[:3] == ["hello", "v7", "yes"]
    assert "3 (1 starting)" in first
    assert "python3.11" in first
    assert first.endswith("http://127.0.0.1:8080/function/hello")
    assert second.startswith("other.team")
    assert "hello@abababababab " in second
    assert faas.api.last("GET").query == {"namespace": "team"}


def test_ls_of_nothing_says_on_stderr_how_to_begin(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": []})
    done = faas("ls")
    assert done.out.split()[0] == "NAME"
    assert "faas new" in done.err
    assert faas("ls", "-o", "json").out == "[]\n"


@pytest.mark.parametrize("output", ["json", "name"])
def test_lists_have_a_form_for_scripts(faas: CommandLine, output: str) -> None:
    replies = {
        "/v1/functions": {"functions": [HELLO]},
        "/v1/functions/hello": HELLO,
        "/v1/functions/hello/revisions": {"revisions": REVISIONS},
        "/v1/schedules": {"schedules": [{"function": "hello", "namespace": "default", "name": "tick", "next": []}]},
        "/v1/functions/hello/schedules/tick/history": {"fires": [{"fire_time": "2030-01-01T00:00:00Z"}]},
        "/v1/triggers": {"triggers": [{"function": "hello", "namespace": "default", "watch": "/srv", "pattern": "*"}]},
        "/v1/dead-letters": {"dead_letters": [LETTER]},
        "/v1/tokens": {"tokens": [{"name": "ci", "role": "deployer", "namespace": "*", "functions": []}]},
    }
    for path, body in replies.items():
        faas.api.replies["GET", path] = Reply(body)
    names = {
        ("ls",): "hello", ("describe", "hello"): "hello", ("versions", "hello"): "v2\nv1",
        ("alias", "ls", "hello"): "beta\nlive", ("schedule", "ls"): "hello/tick",
        ("schedule", "history", "hello", "tick"): "2030-01-01T00:00:00Z", ("trigger", "ls"): "hello:/srv",
        ("dlq", "ls"): "d1", ("token", "ls"): "ci",
    }  # fmt: skip
    for command, name in names.items():
        done = faas(*command, "-o", output)
        if output == "name":
            assert done.out == name + "\n"
        else:
            assert isinstance(json.loads(done.out), dict if command[0] == "describe" else list)
        assert done.err == ""


def test_describe_is_a_page_with_limits_aliases_schedules_and_hidden_values(faas: CommandLine) -> None:
    known = {**HELLO, "spec": {**HELLO["spec"], "env": {"LEVEL": "the-value"}}}
    faas.api.replies["GET", "/v1/functions/hello"] = Reply(known)
    page = faas("describe", "hello").out
    assert "the-value" not in page
    assert "the-value" in faas("describe", "hello", "-o", "json").out
    for words in ("v7  (beta v6, live v7)", "128 MB memory, 30 s", "0 to 50, idle 5m", "LEVEL=***",
                  "tick: * * * * * UTC", "/srv/photos/*.jpg", "GET /photos/{id}",
                  "i-1  idle", "python3.11  app.handler"):  # fmt: skip
        assert words in page


def test_describe_says_what_became_of_the_last_push_of_a_followed_tag(faas: CommandLine) -> None:
    follow = {"tag": "prod", "state": "waiting"}
    faas.api.replies["GET", "/v1/functions/hello"] = Reply({**HELLO, "follow": follow})
    assert "  Follows      prod: waiting\n" in faas("describe", "hello").out
    follow |= {"state": "failed", "digest": "sha256:" + "0123456789ab" * 5 + "cdef", "at": "2020-01-01T00:00:00Z",
               "error": "no \x1b[31mentry point"}  # fmt: skip
    page = faas("describe", "hello").out
    assert re.search(r"Follows +prod: failed \w+ ago, sha256:0123456789ab: no \\x1b\[31mentry point\n", page)


@pytest.mark.parametrize(
    ("prewarm", "keep", "words"),
    [(3516.0, 202.6, "leaves 1m00s after a call, is back after 58m36s, until 1h01m: why"),
     (0.0, 600.0, "leaves 10m00s after a call: why"), (0.0, 30.0, "leaves 1m00s after a call: why")],
)  # fmt: skip
def test_describe_says_what_was_learned_of_the_calls(
    faas: CommandLine, prewarm: float, keep: float, words: str
) -> None:
    learned = {"linger_seconds": 60.0, "prewarm_seconds": prewarm, "keep_seconds": keep, "seen": 5, "reason": "why"}
    faas.api.replies["GET", "/v1/functions/hello"] = Reply({**HELLO, "learned": learned})
    assert f"  Learned      {words}\n" in faas("describe", "hello").out


def test_rm_needs_no_answer_where_nobody_is_there_to_give_one(faas: CommandLine) -> None:
    faas.api.replies["DELETE", "/v1/functions/hello"] = Reply(status=204)
    assert faas("rm", "hello").out == "hello\n"
    assert faas.api.last("DELETE").path == "/v1/functions/hello"


def test_scale_prints_the_number(faas: CommandLine) -> None:
    faas.api.replies["POST", "/v1/functions/hello/scale"] = Reply({"instances": 3})
    assert faas("scale", "hello", 3).out == "3\n"
    assert faas.api.last("POST").json() == {"instances": 3}
    faas("scale", "hello", "-1", code=2)


def test_versions_lists_the_newest_first(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions/hello/revisions"] = Reply({"revisions": REVISIONS})
    rows = faas("versions", "hello").out.splitlines()
    assert [row.split()[0] for row in rows] == ["REVISION", "v2", "v1"]
    assert "live" in rows[1]
    assert [r["number"] for r in json.loads(faas("versions", "hello", "-o", "json").out)] == [2, 1]


def test_rollback_moves_to_the_revision_before_or_to_the_one_named(faas: CommandLine) -> None:
    faas.api.replies["POST", "/v1/functions/hello/rollback"] = Reply({**HELLO, "revision": 6})
    assert faas("rollback", "hello").last_line == "v6"
    assert faas.api.last("POST").json() == {"to": None}
    faas("rollback", "hello", "v3")
    assert faas.api.last("POST").json() == {"to": 3}
    assert "no revision" in faas("rollback", "hello", "latest", code=2).err


def test_aliases_are_set_and_removed(faas: CommandLine) -> None:
    faas.api.replies["PUT", "/v1/functions/hello/aliases/beta"] = Reply({})
    faas.api.replies["DELETE", "/v1/functions/hello/aliases/beta"] = Reply(status=204)
    assert faas("alias", "set", "hello", "beta", "v2").last_line == "hello:beta"
    assert faas.api.last("PUT").json() == {"revision": 2}
    assert faas("alias", "rm", "hello", "beta").out == "hello:beta\n"


def test_invoke_prints_the_payload_as_it_is_and_the_log_on_stderr(faas: CommandLine) -> None:
    tail = base64.b64encode(b"START\nREPORT RequestId: x\tDuration: 1.00 ms\n").decode()
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = Reply(
        b'{"n": 42}', headers={"X-Faas-Log-Result": tail}
    )
    done = faas("invoke", "hello", "--data", '{"n": 21}', "--log")
    assert done.out == '{"n": 42}'
    assert "REPORT RequestId: x\tDuration: 1.00 ms\n" in done.err
    assert faas.api.last("POST").body == b'{"n": 21}'
    faas("invoke", "hello")
    assert faas.api.last("POST").body == b"{}"


def test_invoke_reads_a_file_and_takes_a_qualifier(faas: CommandLine, tmp_path: Path) -> None:
    faas.api.replies["POST", "/v1/functions/hello:v2/invocations"] = Reply(b"ok")
    (tmp_path / "event").write_bytes(b"[1]")
    faas("invoke", "hello:v2", "--file", tmp_path / "event")
    assert faas.api.last("POST").body == b"[1]"
    faas("invoke", "hello", "--qualifier", "v2")
    assert "exclude each other" in faas("invoke", "hello", "--data", "1", "--file", tmp_path / "event", code=2).err


def test_a_function_that_raises_ends_with_7_and_its_error_on_stderr(faas: CommandLine) -> None:
    body = {"errorType": "KeyError", "errorMessage": "'lost'", "stackTrace": ['  File "/var/task/app.py", line 2\n']}
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = Reply(body, headers={"X-Error-Type": "KeyError"})
    done = faas("invoke", "hello", code=7)
    assert done.out == ""
    assert "  File \"/var/task/app.py\", line 2\nKeyError: 'lost'\n" in done.err
    assert f"faas logs hello --request-id {REQUEST_ID}" in done.err


@pytest.mark.parametrize(
    ("status", "code", "exits"),
    [
        (502, "Runtime.ExitError", 7),
        (502, "Runtime.OutOfMemory", 7),
        (504, "Sandbox.Timedout", 6),
        (429, "Throttled", 1),
    ],
)
def test_an_invocation_that_was_killed_or_refused(faas: CommandLine, status: int, code: str, exits: int) -> None:
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = refusal(status, code, "it went wrong", "a hint")
    done = faas("invoke", "hello", code=exits)
    assert "it went wrong" in done.err
    assert "a hint" in done.err
    assert f"request id {REQUEST_ID}" in done.err
    ran = status != 429
    assert (f"faas logs hello --request-id {REQUEST_ID}" in done.err) == ran


def test_an_asynchronous_invocation_prints_its_id(faas: CommandLine) -> None:
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = Reply({"id": "e-1"}, 202)
    assert faas("invoke", "hello", "--async").last_line == "e-1"
    assert faas.api.last("POST").headers["x-faas-invocation-type"] == "Event"
    faas("invoke", "hello", "--async", "--log", code=2)
    faas("invoke", "hello", "--wait", code=2)


@pytest.mark.parametrize(("status", "code"), [("success", 0), ("error", 7)])
def test_an_asynchronous_invocation_can_be_waited_for_with_its_log(faas: CommandLine, status: str, code: int) -> None:
    told = {"id": "e-1", "status": status, "attempts": 3, "error_type": "ValueError", "error_message": "no"}
    faas.api.replies["POST", "/v1/functions/hello/invocations"] = Reply({"id": "e-1"}, 202)
    faas.api.replies["GET", "/v1/invocations/e-1"] = Reply(told)
    record = {"time": 1_700_000_000, "stream": "system", "message": "REPORT RequestId: e-1", "request_id": "e-1"}
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(json.dumps(record).encode() + b"\n")
    done = faas("invoke", "hello", "--async", "--wait", "--log", code=code)
    assert done.last_line == "e-1"
    assert "REPORT RequestId: e-1" in done.err
    assert faas.api.last("GET").query["request_id"] == "e-1"
    if code:
        assert "after 3 tries: ValueError: no" in done.err
        assert "faas logs hello --request-id e-1" in done.err


def test_logs_are_one_line_per_record(faas: CommandLine) -> None:
    records = [
        {"time": 1_700_000_000.25, "stream": "stdout", "message": "RAN n12", "request_id": "r1"},
        {"time": 1_700_000_001, "stream": "stderr", "message": "oh\tno\n", "request_id": "r1"},
        {"time": 1_700_000_002, "stream": "system", "message": "END", "request_id": "r2"},
    ]
    body = b"".join(json.dumps(r).encode() + b"\n" for r in records)
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(body)
    lines = faas("logs", "hello", "--since", "10m", "--filter", "x", "-n", "5").out.splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["RAN n12", "oh\tno", "END"]
    assert lines[0].startswith("2023-11-1")
    query = faas.api.last("GET").query
    assert (query["filter"], query["limit"], "since" in query, "follow" in query) == ("x", "5", True, False)
    as_json = faas("logs", "hello", "-o", "json").out.splitlines()
    assert [json.loads(line) for line in as_json] == records
    assert faas("logs", "hello", "-o", "name").out == "r1\nr2\n"


def test_logs_are_narrowed_and_long_lines_say_whose_they_are(faas: CommandLine) -> None:
    body = b'{"time": 1.5, "message": "hi", "stream": "stderr", "instance": "i1", "request_id": ""}\n'
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(body)
    asked = ("--since", "1900000000", "--until", "1900000060.5", "--instance", "i1", "--stream", "stderr", "--long")
    assert faas("logs", "hello", *asked).out.endswith(" stderr i1 - hi\n")
    assert faas.api.last("GET").query == {
        "since": "1900000000.000000", "until": "1900000060.500000", "instance": "i1", "stream": "stderr",
    }  # fmt: skip
    assert "leave --until out" in faas("logs", "hello", "-f", "--until", "5m", code=2).err


def test_logs_since_takes_a_time_and_refuses_nonsense(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions/hello/logs"] = Reply(b"")
    faas("logs", "hello", "--since", "2030-01-01T00:00:00Z")
    assert faas.api.last("GET").query["since"] == "1893456000.000000"
    assert "neither a duration" in faas("logs", "hello", "--since", "yesterday", code=2).err


def test_a_dead_letter_is_shown_with_its_event(faas: CommandLine) -> None:
    event = {"body": "payload"}
    letter = {**LETTER, "payload": base64.b64encode(json.dumps(event).encode()).decode()}
    faas.api.replies["GET", "/v1/dead-letters/d1"] = Reply(letter)
    done = faas("dlq", "show", "d1")
    assert json.loads(done.out) == event
    assert "hello.team: ValueError: no" in done.err
    assert json.loads(faas("dlq", "show", "d1", "-o", "json").out)["event"] == event


def test_dead_letters_are_listed_retried_and_removed(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/dead-letters"] = Reply({"dead_letters": [LETTER]})
    faas.api.replies["POST", "/v1/dead-letters/d1/retry"] = Reply({}, 202)
    faas.api.replies["DELETE", "/v1/dead-letters/d1"] = Reply(status=204)
    assert "2.0 KB" in faas("dlq", "ls", "--function", "hello").out
    assert faas.api.last("GET").query == {"function": "hello"}
    assert faas("dlq", "retry", "d1").out == "d1\n"
    assert faas("dlq", "rm", "d1").out == "d1\n"


def test_a_new_token_is_the_only_thing_on_stdout(faas: CommandLine) -> None:
    faas.api.replies["POST", "/v1/tokens"] = Reply({"name": "ci", "token": "faas_abc"}, 201)
    done = faas("token", "create", "ci", "--role", "caller", "--function", "hello", "--namespace", "team")
    assert done.out == "faas_abc\n"
    assert "not shown again" in done.err
    assert faas.api.last("POST").json() == {
        "name": "ci", "role": "caller", "namespace": "team", "functions": ["hello"],
    }  # fmt: skip
    faas("token", "create", "ci", "--role", "viewer", "--repository", "team/*", "--repository", "app")
    assert faas.api.last("POST").json() == {
        "name": "ci", "role": "viewer", "namespace": "*", "repositories": ["team/*", "app"],
    }  # fmt: skip
    faas("token", "create", "ci", "--role", "king", code=2)
    faas.api.replies["DELETE", "/v1/tokens/ci"] = Reply(status=204)
    assert faas("token", "revoke", "ci").out == "ci\n"


def test_a_new_key_is_the_only_thing_on_stdout_and_its_names_are_completed(faas: CommandLine) -> None:
    made = {"id": "0a1b", "name": "partner", "namespace": "team", "key": "faask_0a1b_x"}
    faas.api.replies["POST", "/v1/keys"] = Reply(made, 201)
    done = faas("key", "create", "partner", "--function", "hello", "--namespace", "team", "--expires", "90d")
    assert (done.out, "not shown again" in done.err) == ("faask_0a1b_x\n", True)
    assert faas.api.last("POST").json() == {
        "name": "partner", "namespace": "team", "functions": ["hello"], "expires": "90d",
    }  # fmt: skip
    faas.api.replies["POST", "/v1/keys/partner.team/rotate"] = Reply({**made, "previous_expires_at": None})
    done = faas("key", "rotate", "partner.team", "--overlap", "0s")
    assert (done.out, done.err) == ("faask_0a1b_x\n", "the old one opens nothing any more\n")
    assert faas.api.last("POST").json() == {"overlap": "0s"}
    listed = {**made, "functions": [], "state": "active", "secrets": [{}, {}], "plan": None, "last_used_at": None}
    faas.api.replies["GET", "/v1/keys"] = Reply({"keys": [listed]})
    assert faas("key", "ls", "-o", "name").out == "partner.team\n"
    assert re.search(r"partner.team +0a1b +all .* active +2 +never +never", faas("key", "ls").out)
    completing = {"_FAAS_COMPLETE": "bash_complete", "COMP_WORDS": "faas key revoke p", "COMP_CWORD": "3"}
    assert faas.process(**completing).out == "plain,partner.team\n"
    for words, sent, plan in ((["gold"], "gold", "gold"), (["--none"], "", None)):
        faas.api.replies["PATCH", "/v1/keys/partner.team"] = Reply({**listed, "plan": plan})
        done = faas("key", "plan", "partner.team", *words)
        assert (done.out, faas.api.last("PATCH").json()) == ("partner.team\n", {"plan": sent})
        assert f"against {plan or 'no plan'}" in done.err
    faas("key", "plan", "partner.team", code=2)
    faas("key", "plan", "partner.team", "gold", "--none", code=2)
    faas.api.replies["DELETE", "/v1/keys/partner.team"] = Reply(status=204)
    assert faas("key", "revoke", "partner.team").out == "partner.team\n"


def test_config_shows_every_setting_with_its_source_and_no_token(faas: CommandLine) -> None:
    faas.env["FAAS_DRIVER"] = "docker"
    done = faas("config")
    rows = {line.split()[0]: line.split()[1:] for line in done.out.splitlines()[1:]}
    assert rows["driver"] == ["docker", "FAAS_DRIVER"]
    assert rows["listen"] == ["127.0.0.1:8080", "default"]
    assert rows["data"] == [str(faas.home / "data"), "FAAS_DATA"]
    assert rows["client.token"] == ["(hidden)", "FAAS_TOKEN"]
    assert "faas_test-token" not in done.out
    faas.env["FAAS_REGISTRY_UPSTREAMS"] = "hub.example=https://user:geheim@hub.example,auth=https://geheim@auth.example"
    written = faas("config").out
    assert "geheim" not in written, "the server refuses this; but that is how it is noticed"
    assert "hub.example=https://(hidden)@hub.example,auth=https://(hidden)@auth.example" in written
    faas.api.replies["GET", "/v1/settings"] = Reply({"driver": {"value": "oci", "source": "flag"}})
    assert json.loads(faas("config", "--running", "-o", "json").out) == [
        {"name": "driver", "value": "oci", "source": "flag"}
    ]


def test_serve_hands_its_flags_to_the_settings_which_refuse_what_must_not_start(faas: CommandLine) -> None:
    assert "beyond loopback" in faas("serve", "--listen", "0.0.0.0:0", code=2).err
    assert "processes must be 1 to" in faas("serve", "--processes", "9999", code=2).err
    assert "driver must be" in faas("serve", "--driver", "podman", code=2).err


def test_completion_prints_a_script_per_shell(faas: CommandLine) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_FAAS_COMPLETE" in faas("completion", shell).out
    faas("completion", "tcsh", code=2)
