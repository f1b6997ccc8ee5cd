"""Who may call, over the real server: API keys from first to last, and a function that says who comes in."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.server import RunningServer

PRIVATE = """
def handler(event, context):
    return {"headers": event["headers"], "authorizer": event["requestContext"].get("authorizer"), "who": "e2e-auth"}
"""
GATE = """
def handler(event, context):
    (token,) = event["identitySource"]
    if token == "broken":
        raise ValueError("a secret of the gate")
    return {"isAuthorized": token == "open", "context": {"tenant": "acme", "arn": event["routeArn"]}}
"""


def push(server: RunningServer, folder: Path, name: str, code: str, toml: str = "") -> None:
    target = folder / name
    target.mkdir()
    (target / "app.py").write_text(code)
    (target / "faas.toml").write_text(f'name = "{name}"\nruntime = "python"\nhandler = "app.handler"\n{toml}\n')
    server.faas("push", target)


def test_keys_are_made_rotated_and_revoked_and_a_function_lets_others_in(server: RunningServer, folder: Path) -> None:
    push(server, folder, "auth-gate", GATE)
    push(server, folder, "auth-keyed", PRIVATE, "[auth]\nkey = true\n")
    push(server, folder, "auth-guarded", PRIVATE + "\n", '[auth.authorizer]\nfunction = "auth-gate"\n')

    def keyed(key: str) -> int:
        return server.get("/function/auth-keyed", headers={"X-Api-Key": key} if key else {}).status

    first = server.faas("key", "create", "partner", "--function", "auth-keyed", "--expires", "1d").stdout.strip()
    assert (keyed(""), keyed("faask_0_0"), keyed(first)) == (401, 401, 200)
    answered = server.get("/function/auth-keyed", headers={"X-Api-Key": first})
    assert first not in answered.text
    second = server.faas("key", "rotate", "partner", "--overlap", "1h").stdout.strip()
    assert (keyed(first), keyed(second)) == (200, 200)
    third = server.faas("key", "rotate", "partner", "--overlap", "0s").stdout.strip()
    assert (keyed(first), keyed(second), keyed(third)) == (401, 401, 200)
    (listed,) = json.loads(server.faas("key", "ls", "-o", "json").stdout)
    assert (listed["name"], listed["functions"], listed["state"]) == ("partner", ["auth-keyed"], "active")
    assert server.faas("key", "revoke", "partner").stdout.strip() == "partner"
    assert keyed(third) == 401

    def guarded(token: str) -> tuple[int, str]:
        answer = server.get("/function/auth-guarded/x", headers={"Authorization": token} if token else {})
        return answer.status, answer.text

    status, text = guarded("open")
    assert status == 200, text
    assert json.loads(text)["authorizer"]["lambda"] == {
        "tenant": "acme", "arn": "arn:aws:execute-api:local:000000000000:auth-guarded/$default/GET/x",
    }  # fmt: skip
    assert [guarded(token)[0] for token in ("", "closed", "broken")] == [401, 403, 500]
    assert "secret" not in guarded("broken")[1]
    assert server.get("/function/auth-guarded", api=True).status == 200, "an administrator logs in at the API"
    log = server.log_file.read_text(errors="replace")
    for key in (first, second, third):
        assert key not in log
