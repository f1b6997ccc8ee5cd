"""JSON Web Tokens: what is admitted, what of it a function hears, and every known way to forge one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from faas.leases import InvocationResult
from faas.rules.auth import JwtRule
from gateway.edge.auth import jwt as jwt_method
from gateway.edge.auth.jwks import KeySets
from gateway.edge.auth.jwt import JwtMethod, as_texts, is_for, scopes_of
from gateway.edge.auth.method import WrongCredentials
from tests.support.control import Answered, Control, control, until
from tests.support.issuer import ISSUER, Issuer, claims, ec_key, forged, issuing, public, rsa_key, token
from tests.support.raw_http import talk

HOUR = 3600


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        running.keys = [public(rsa_key(), kid="one"), public(ec_key(), kid="ec", alg="ES256")]
        yield running


@pytest.fixture
async def server(tmp_path: Path, issuer: Issuer) -> AsyncIterator[Control]:
    async with control(tmp_path, private_key_sets=True) as running:
        await deploy(running, issuer)
        yield running


async def deploy(server: Control, issuer: Issuer, name: str = "hello", **changes: Any) -> None:
    rule = {"issuer": ISSUER, "audience": ["us"], "jwks": issuer.url, **changes}
    await server.deploy(name, public=False, auth={"jwt": rule})


async def ask(server: Control, given: str | None, name: str = "hello") -> Answered:
    headers = {"Authorization": f"Bearer {given}"} if given is not None else {}
    return await server.call("GET", f"/function/{name}/x?a=1", public=True, headers=headers)


async def test_a_right_token_comes_in_and_the_function_hears_its_claims_and_gets_it(server: Control) -> None:
    given = token()
    answered = await ask(server, given)
    assert answered.status == 200, answered.body
    event = answered.json()
    heard = event["requestContext"]["authorizer"]["jwt"]
    assert (heard["claims"]["sub"], heard["claims"]["iss"], heard["scopes"]) == ("alice", ISSUER, ["read", "write"])
    assert all(isinstance(value, str) for value in heard["claims"].values())
    assert event["headers"]["authorization"] == f"Bearer {given}", "it is the function whom the token is for"
    assert event["requestContext"]["accountId"] == "alice"


async def test_payload_format_1_has_the_claims_where_it_has_them(server: Control, issuer: Issuer) -> None:
    rule = {"issuer": ISSUER, "audience": ["us"], "jwks": issuer.url}
    await server.deploy("old", public=False, auth={"jwt": rule}, payload="1.0")
    server.worker.on_invoke = _proxied
    event = json.loads((await ask(server, token(), "old")).body)
    assert event["requestContext"]["authorizer"]["claims"]["sub"] == "alice"


async def _proxied(revision: Any, event: bytes) -> InvocationResult:
    return InvocationResult(json.dumps({"statusCode": 200, "body": event.decode()}).encode())


async def test_a_queued_request_keeps_what_was_known_of_its_caller(server: Control) -> None:
    heard: list[dict[str, Any]] = []

    async def listen(revision: Any, event: bytes) -> InvocationResult:
        heard.append(json.loads(event))
        return InvocationResult(b"{}")

    server.worker.on_invoke = listen
    headers = {"Authorization": f"Bearer {token()}"}
    assert (await server.call("POST", "/async-function/hello", b"", public=True, headers=headers)).status == 202
    await until(lambda: heard)
    assert heard[0]["requestContext"]["authorizer"]["jwt"]["claims"]["sub"] == "alice"


async def test_a_key_of_an_elliptic_curve_signs_as_well(server: Control) -> None:
    assert (await ask(server, token(key=ec_key(), algorithm="ES256", kid="ec"))).status == 200


async def test_kept_tokens_are_bounded_by_what_they_hold(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_method, "KEPT_CHARACTERS", 3 * len(token()))
    sets = KeySets(None, allow_private=True)
    await sets.start()
    method = JwtMethod(sets)
    rule = JwtRule(ISSUER, ("us",), issuer.url)
    for number in range(10):
        await method._claims(token({**claims(), "jti": f"{number:04}"}), rule, "default")
    await sets.stop()
    assert len(method._checked) == 2
    assert method._held == sum(one.size for one in method._checked.values())


def _tampered() -> str:
    head, body, signature = token().split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed["sub"] = "root"
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b'=').decode()}.{signature}"


def _public_pem() -> bytes:
    return rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _hs256_with_the_public_key() -> str:
    """The classic: RS256's public key as HS256's secret (by hand: a library refuses to)."""
    unsigned = forged({"alg": "HS256", "typ": "JWT", "kid": "one"}).rpartition(".")[0]
    signature = hmac.digest(_public_pem(), unsigned.encode(), hashlib.sha256)
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


NOW = time.time()
FORGED = {
    "alg none": lambda: forged({"alg": "none", "typ": "JWT", "kid": "one"}),
    "alg None in capitals": lambda: forged({"alg": "NONE", "kid": "one"}, signature=b"x"),
    "no alg": lambda: forged({"kid": "one"}, signature=b"x"),
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "two parts": lambda: token().rpartition(".")[0],
    "RS256's public key as a secret": _hs256_with_the_public_key,
    "an algorithm that the rule does not name": lambda: token(algorithm="RS512"),
    "another key": lambda: token(key=rsa_key(1)),
    "another claim under the same signature": _tampered,
    "kid is a path": lambda: token(kid="../../../../dev/null"),
    "kid is a statement": lambda: token(kid="x' UNION SELECT 'key"),
    "kid is a number": lambda: forged({"alg": "RS256", "kid": 1}, signature=b"x"),
    "kid is huge": lambda: token(kid="k" * 4000),
    "kid is unknown": lambda: token(kid="two"),
    "kid is the elliptic curve's": lambda: token(kid="ec"),
    "a key of its own": lambda: token(key=rsa_key(1), jwk=public(rsa_key(1), kid="one")),
    "a key set of its own": lambda: token(key=rsa_key(1), kid="mine", jku="http://127.0.0.1:9/keys.json"),
    "a certificate of its own": lambda: token(key=rsa_key(1), kid="mine", x5u="https://evil.example/c.pem"),
    "something critical": lambda: token(crit=["exp"], exp=1),
    "a body that is not encoded": lambda: token(crit=["b64"], b64=False),
    "no JSON": lambda: "x.y.z",
    "nothing": lambda: "..",
    "deep JSON": lambda: base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.x",
    "huge": lambda: "a" * 8300,
}
STALE: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 61},
    "expired for ever": {"exp": -1},
    "exp is a text": {"exp": "tomorrow"},
    "exp is infinite": {"exp": float("inf")},
    "no exp": {"exp": None},
    "of the future": {"nbf": NOW + HOUR},
    "issued in the future": {"iat": NOW + HOUR},
    "another issuer's": {"iss": "https://evil.example"},
    "an issuer of which ours is a part": {"iss": ISSUER + "/"},
    "no issuer": {"iss": None},
    "issuers as a list": {"iss": [ISSUER]},
    "another audience": {"aud": "them"},
    "an audience of which ours is a part": {"aud": "us2"},
    "other audiences": {"aud": ["them", "others"]},
    "no audience": {"aud": None},
    "an audience of another kind": {"aud": {"us": "us"}},
    "an audience beside a client id": {"aud": "them", "client_id": "us"},
}


async def _refused(answered: Answered, given: str) -> None:
    assert answered.status in (401, 429, 400), answered.body  # 400: no HTTP field is so long
    if answered.status == 401:
        assert answered.headers["WWW-Authenticate"] == 'Bearer realm="faas", error="invalid_token"'
        error = answered.json()["error"]
        assert (error["message"], error["hint"]) == ("these credentials open nothing", "")
    assert given.encode() not in answered.body


async def test_no_forged_token_comes_in(server: Control) -> None:
    statuses = {}
    for name, make in FORGED.items():
        given = make()
        answered = await ask(server, given)
        statuses[name] = answered.status
        await _refused(answered, given)
    assert list(statuses.values())[:4] == [401] * 4
    assert (await ask(server, token())).status == 200, "nobody is locked out by the guesses of others"


async def test_what_was_signed_once_for_others_or_another_time_is_refused_each_time(server: Control) -> None:
    for changes in STALE.values():
        given = token(claims(**changes))
        await _refused(await ask(server, given), given)  # never 429: this is no guessing


async def test_clocks_may_differ_by_a_minute_and_what_says_less_is_enough(server: Control) -> None:
    several: tuple[dict[str, Any], ...] = (
        {"exp": time.time() - 30}, {"nbf": time.time() + 30}, {"iat": time.time() + 30}, {"aud": ["them", "us"]},
        {"aud": None, "client_id": "us"}, {"sub": None}, {"sub": "\n"}, {"sub": 7},
    )  # fmt: skip
    for changes in several:
        assert (await ask(server, token(claims(**changes)))).status == 200, changes


async def test_forged_tokens_are_slowed_down_and_right_ones_are_not(server: Control) -> None:
    statuses = [(await ask(server, token(key=rsa_key(1)))).status for _ in range(8)]
    assert (statuses[0], statuses[-1]) == (401, 429)
    assert (await ask(server, token())).status == 200


async def test_without_a_token_it_asks_for_one(server: Control) -> None:
    answered = await ask(server, None)
    assert (answered.status, answered.headers["WWW-Authenticate"]) == (401, 'Bearer realm="faas"')
    basic = {"Authorization": "Basic " + base64.b64encode(f"admin:{server.token}".encode()).decode()}
    assert (await server.call("GET", "/function/hello", public=True, headers=basic)).status == 401
    assert (await ask(server, server.token)).status == 401, "a token of the server is none of the issuer's"


async def test_a_token_that_was_right_once_ends_with_its_time_and_with_its_key(issuer: Issuer) -> None:
    now = time.time()
    moments = {"wall": now, "steady": 0.0}
    sets = KeySets(None, allow_private=True, clock=lambda: moments["steady"])
    await sets.start()
    method = JwtMethod(sets, clock=lambda: moments["wall"])
    rule = JwtRule(ISSUER, ("us",), issuer.url)
    lasting, short = token(claims(exp=now + HOUR)), token(claims(exp=now - 55))
    assert await method._claims(lasting, rule, "default") is await method._claims(lasting, rule, "default"), "once"
    first = await method._claims(short, rule, "default")
    assert await method._claims(short, rule, "default") is first
    moments["wall"] = now + 10
    assert await method._claims(short, rule, "default") is not first, "looked at again"
    with pytest.raises(WrongCredentials):  # the rule is a part of what was checked
        await method._claims(lasting, JwtRule(ISSUER, ("us",), issuer.url, ("ES256",)), "default")
    issuer.keys = [public(rsa_key(1), kid="one")]
    moments["steady"] += 2 * HOUR
    await method._claims(lasting, rule, "default")  # stale, and fetched anew beside it

    async def refused() -> bool:
        try:
            await method._claims(lasting, rule, "default")
        except WrongCredentials:
            return True
        return False

    await until(refused)
    await sets.stop()


async def test_two_authorization_fields_are_refused(server: Control) -> None:
    right = token()
    head = f"GET /function/hello HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {right}\r\n"
    for other in (f"Authorization: Bearer {right}\r\n", "Authorization: Bearer x\r\n"):
        answered = await talk(
            int(server.public_url.rpartition(":")[2]), f"{head}{other}Connection: close\r\n\r\n".encode()
        )
        assert b" 401 " in answered.splitlines()[0]
    alone = await talk(int(server.public_url.rpartition(":")[2]), f"{head}Connection: close\r\n\r\n".encode())
    assert b" 200 " in alone.splitlines()[0]


async def test_one_of_the_scopes_is_enough_and_none_is_forbidden(server: Control, issuer: Issuer) -> None:
    await deploy(server, issuer, scopes=["admin", "write"])
    assert (await ask(server, token())).status == 200
    for changes in ({"scope": "read"}, {"scope": None}, {"scope": None, "scp": ["writer"]}):
        assert (await ask(server, token(claims(**changes)))).status == 403
    assert (await ask(server, token(claims(scope=None, scp=["admin"])))).status == 200


async def test_a_rule_may_name_other_algorithms_and_then_the_default_ones_do_not_count(
    server: Control, issuer: Issuer
) -> None:
    await deploy(server, issuer, algorithms=["PS256"])
    assert (await ask(server, token(algorithm="PS256"))).status == 200
    assert (await ask(server, token())).status == 401


async def test_a_token_without_a_key_id_fits_where_there_is_one_key_for_it(server: Control, issuer: Issuer) -> None:
    given = jwt.encode(claims(), rsa_key(), "RS256")
    assert (await ask(server, given)).status == 200
    issuer.keys.append(public(rsa_key(1), kid="two"))
    await deploy(server, issuer, "other", jwks=issuer.url + "?2")
    assert (await ask(server, given, "other")).status == 401


async def test_several_ways_in_and_each_is_enough(server: Control, issuer: Issuer) -> None:
    rule = {"issuer": ISSUER, "audience": ["us"], "jwks": issuer.url}
    await server.deploy("all", public=False, auth={"jwt": rule, "token": True, "key": True})
    key = (await server.call("POST", "/v1/keys", {"name": "partner"})).json()["key"]
    for headers in (
        {"Authorization": f"Bearer {token()}"},
        {"Authorization": f"Bearer {server.token}"},
        {"X-Api-Key": key},
        {"X-Api-Key": key, "Authorization": "Bearer wrong"},
        {"X-Api-Key": "wrong", "Authorization": f"Bearer {token()}"},
    ):
        answered = await server.call("GET", "/function/all", public=True, headers=headers)
        assert answered.status == 200, headers
        heard = answered.json()["headers"]
        assert "x-api-key" not in heard
        assert server.token not in heard.get("authorization", "")
    nothing = await server.call("GET", "/function/all", public=True)
    assert nothing.headers["WWW-Authenticate"] == 'Bearer realm="faas", ApiKey realm="faas"'


async def test_a_key_set_of_the_servers_folder_is_read_and_nothing_outside_it(tmp_path: Path, issuer: Issuer) -> None:
    (tmp_path / "jwks").mkdir()
    (tmp_path / "jwks" / "ours.json").write_text(json.dumps({"keys": issuer.keys}))
    async with control(tmp_path) as server:
        await deploy(server, issuer, jwks="ours.json")
        assert (await ask(server, token())).status == 200
        await deploy(server, issuer, jwks="none.json")
        assert (await ask(server, token())).status == 503, "who cannot check lets nobody in"
        for outside in ("../ours.json", "/etc/passwd", "jwks/ours.json", "file:///etc/passwd", ".json"):
            body = {"spec": {"name": "x", "auth": {"jwt": {"issuer": ISSUER, "audience": ["us"], "jwks": outside}}}}
            answered = await server.call("PUT", "/v1/functions/x", {**body, "image": "x@sha256:" + "a" * 64})
            assert (answered.status, "auth.jwt.jwks must be" in answered.json()["error"]["message"]) == (400, True)


def test_claims_become_texts_as_http_apis_hand_them_over() -> None:
    given = {"a": "x", "b": 7, "c": True, "d": ["x", 1], "e": None, "f": {"g": [1]}}
    assert as_texts(given) == {"a": "x", "b": "7", "c": "true", "d": "[x 1]", "e": "null", "f": '{"g":[1]}'}


def test_scopes_and_audiences_are_read_in_each_form_they_have() -> None:
    assert scopes_of({"scope": "a  b", "scp": ["c", 1]}) == {"a", "b", "c"}
    assert scopes_of({"scope": ["a"], "scp": "d"}) == {"a", "d"}
    assert is_for({"aud": ["x", "us"]}, ("us",))
    assert not is_for({"aud": []}, ("us",))
    assert not is_for({}, ("us",))
