"""What each role is told by every page of the control API, beside what it may not know: canaries in environment values,
payloads, passwords, keys and addresses, looked for in every answer, in the metrics, in errors and in the log."""

from __future__ import annotations

import base64
import logging
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import FunctionError
from faas.leases import InvocationResult
from faas.protocol import Revision
from tests.support.control import Control, control, until
from tests.unit.test_roles import CONTRACT, PARTS

ROLES = ("anonymous", "caller", "scraper", "viewer", "deployer", "admin")
PAGES = [path for path, verbs in CONTRACT.items() if "GET" in verbs]
ENV, SECRET, PAYLOAD, HEADER, QUERY, EVENT, INPUT, STACK, PASSWORD, HOOK = (
    f"canary-{number}-5f21" for number in range(10)
)
# Who may see what, where: the pages of the contract, by canary. All else is nobody's.
READERS = ("viewer", "deployer", "admin")
LETTER = {(role, "/v1/dead-letters/{id}") for role in READERS}
ALLOWED: dict[str, set[tuple[str, str]]] = {
    ENV: {("admin", "/v1/functions/{name}")},
    INPUT: {(role, "/v1/functions/{name}") for role in READERS},
    **dict.fromkeys((EVENT, QUERY), LETTER),  # of an event that was given up
}


async def on_invoke(revision: Revision, event: bytes) -> InvocationResult:
    if EVENT.encode() in event or STACK.encode() in event:
        raise FunctionError("it failed", error_type="Sandbox.Failed")
    return InvocationResult(b"{}")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        running.worker.on_invoke = on_invoke
        assert (await running.call("PUT", "/v1/secrets/hello", {"value": SECRET})).status == 201
        schedule = {"name": "nightly", "cron": "0 3 * * *", "input": {"note": INPUT}}
        spec = {"env": {"KEY": ENV}, "secrets": {"SECRET": "hello"}, "schedule": [schedule]}
        await running.deploy(**spec, **{"async": {"retries": 0}})
        hook = {"webhook": {"url": f"https://hooks.example.com/services/{HOOK}"}}
        assert (await running.call("PUT", "/v1/notifications/hello", hook)).status == 201
        yield running


async def used(server: Control) -> dict[str, str]:
    """Call the function in each way, well and badly; other canaries: the tokens, keys and passwords that were made."""
    headers = {"Content-Type": "text/plain", "X-Note": HEADER, "Cookie": f"session={HEADER}"}
    for body in (PAYLOAD.encode(), STACK.encode()):
        await server.call("POST", f"/function/hello/a?q={QUERY}", body, headers=headers, public=True)
        await server.call("POST", "/v1/functions/hello/invocations", b'"%b"' % body, headers=headers)
    await server.call("POST", f"/async-function/hello?q={QUERY}", EVENT.encode(), headers=headers, public=True)
    letters = await until(lambda: letter_ids(server))
    basic = base64.b64encode(f"somebody:{PASSWORD}".encode()).decode()
    for authorization in (f"Basic {basic}", f"Bearer {PASSWORD}", PASSWORD):
        for path in ("/v1/functions", "/v1/whoami", f"/v1/functions/none?token={PASSWORD}"):
            refused = await server.call("GET", path, token="", headers={"Authorization": authorization})
            assert refused.status == 401
            assert PASSWORD.encode() not in refused.body
    key = (await server.call("POST", "/v1/keys", {"name": "hello"})).json()["key"]
    tokens = {role: await server.a_token(role) for role in ROLES if role != "anonymous"}
    return {**{f"{role}'s token": token for role, token in tokens.items()}, "key": key, "letter": letters[0]}


async def letter_ids(server: Control) -> list[str]:
    return [letter["id"] for letter in (await server.call("GET", "/v1/dead-letters")).json()["dead_letters"]]


def concrete(path: str, letter: str) -> str:
    for part, value in {**PARTS, "{id}": letter}.items():
        path = path.replace(part, value)
    return path


async def test_no_page_no_error_and_no_line_of_the_log_tells_what_its_reader_may_not_know(
    server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "faas")
    made = await used(server)
    letter = made.pop("letter")
    canaries = [ENV, SECRET, PAYLOAD, HEADER, QUERY, EVENT, INPUT, STACK, PASSWORD, HOOK, *made.values()]
    found = defaultdict(set)
    for role in ROLES:
        token = made.get(f"{role}'s token", "")
        for page in PAGES:
            path = concrete(page, letter)
            if page == "/v1/functions/{name}/logs":
                path += "?limit=1000"
            verbs = (
                ("GET", "PUT", "POST", "DELETE") if role in ("anonymous", "caller", "scraper", "viewer") else ("GET",)
            )
            for verb in verbs:  # these are refused there: errors are answers too
                answered = await server.call(verb, path, token=token)
                told = answered.body + repr(dict(answered.headers)).encode()
                told += decoded(answered.body)
                for canary in canaries:
                    if canary.encode() in told:
                        found[canary].add((role, page))
    names = {secret: name for name, secret in made.items()}
    beyond = {names.get(canary, canary): pages - ALLOWED.get(canary, set()) for canary, pages in found.items()}
    assert {canary: pages for canary, pages in beyond.items() if pages} == {}
    for canary in ALLOWED:
        assert found[canary] == ALLOWED[canary], "who may does, and this test can see it"
    assert [names.get(canary, canary) for canary in canaries if canary in caplog.text] == []


def decoded(body: bytes) -> bytes:
    """What it has in base64, of payloads that are kept whole."""
    found = b""
    for word in body.split(b'"'):
        if len(word) >= 16:
            try:
                found += base64.b64decode(word, validate=True)
            except ValueError:
                continue
    return found
