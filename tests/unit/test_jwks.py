"""Issuers' key sets: fetched once for all, kept, refreshed, and never from where they should not be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faas.errors import InvalidInput, Unavailable
from gateway.edge.auth import jwks
from gateway.edge.auth.jwks import KeySet, KeySets, fresh_seconds
from tests.support.control import until
from tests.support.issuer import Issuer, ec_key, issuing, public, rsa_key


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def key_sets(*, private: bool = True, folder: Path | None = None) -> AsyncIterator[tuple[KeySets, Clock]]:
    clock = Clock()
    sets = KeySets(folder, allow_private=private, clock=clock)
    await sets.start()
    try:
        yield sets, clock
    finally:
        await sets.stop()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


async def test_many_who_wait_cause_one_fetch_and_later_ones_none(issuer: Issuer) -> None:
    async with key_sets() as (sets, _):
        found = await asyncio.gather(*(sets.key(issuer.url, "one", "RS256") for _ in range(50)))
        assert all(key is found[0] for key in found)
        assert found[0] is not None
        await sets.key(issuer.url, "one", "RS256")
        assert issuer.fetched == 1


async def test_an_unknown_key_id_refreshes_once_a_minute_whatever_is_asked(issuer: Issuer) -> None:
    async with key_sets() as (sets, clock):
        await sets.key(issuer.url, "one", "RS256")
        for number in range(50):
            assert await sets.key(issuer.url, f"guess-{number}", "RS256") is None
        assert issuer.fetched == 1, "there was a fetch just now"
        clock.now += jwks.RETRY_SECONDS
        issuer.keys.append(public(rsa_key(1), kid="two"))
        assert await sets.key(issuer.url, "two", "RS256") is not None
        assert await sets.key(issuer.url, "three", "RS256") is None
        assert issuer.fetched == 2


async def test_stale_keys_serve_while_the_issuer_is_away_and_not_for_ever(
    issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    async with key_sets() as (sets, clock):
        await sets.key(issuer.url, "one", "RS256")
        issuer.status = 503
        clock.now += jwks.USUAL_SECONDS
        for _ in range(3):
            assert await sets.key(issuer.url, "one", "RS256") is not None
            await until(lambda: issuer.fetched == 2)
            await asyncio.sleep(0.02)
        assert issuer.fetched == 2, "tried again beside it, and not at once again"
        clock.now += jwks.RETRY_SECONDS
        assert await sets.key(issuer.url, "one", "RS256") is not None
        clock.now += jwks.STALE_SECONDS
        with pytest.raises(Unavailable):
            await sets.key(issuer.url, "one", "RS256")
        issuer.status = 200
        clock.now += jwks.FIRST_RETRY_SECONDS
        assert await sets.key(issuer.url, "one", "RS256") is not None
    assert caplog.text.count("cannot be read") == 1


async def test_an_issuer_that_hangs_holds_up_nobody_else_and_is_given_up(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 3.0)
    async with key_sets() as (sets, _), issuing() as other:
        issuer.hangs = True
        waiting = [asyncio.create_task(sets.key(issuer.url, "one", "RS256")) for _ in range(20)]
        await until(lambda: issuer.fetched)
        assert await sets.key(other.url, "one", "RS256") is not None
        assert not any(task.done() for task in waiting)
        failed = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in failed)
        with pytest.raises(Unavailable):  # at once: nobody waits again for what has just failed
            await sets.key(issuer.url, "one", "RS256")
        assert issuer.fetched == 1


async def test_nothing_of_this_machine_is_fetched_unless_the_server_says_so(issuer: Issuer) -> None:
    async with key_sets(private=False) as (sets, _):
        port = issuer.url.partition("127.0.0.1:")[2]
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "[::1]", "2130706433", "127.1", "0.0.0.0"):
            with pytest.raises(Unavailable):
                await sets.key(f"http://{host}:{port}", "one", "RS256")
        assert issuer.fetched == 0


@pytest.mark.parametrize(
    "answer",
    [{"body": b""}, {"body": b"[]"}, {"body": b'{"keys": {}}'}, {"body": b"[" * 9000}, {"status": 404}, {"status": 204},
     {"body": json.dumps({"keys": [{"kty": "RSA"}] * 101}).encode()}, {"body": b" " * (jwks.SET_BYTES + 1)},
     {"status": 302, "headers": {"Location": "/keys.json?again"}},
     {"headers": {"Content-Encoding": "gzip"}, "body": b"\x1f\x8b"}],
    ids=lambda answer: str(answer)[:60],
)  # fmt: skip
async def test_what_is_no_key_set_is_not_taken_for_one(issuer: Issuer, answer: dict[str, Any]) -> None:
    for name, value in answer.items():
        setattr(issuer, name, value)
    async with key_sets() as (sets, _):
        with pytest.raises(Unavailable):
            await sets.key(issuer.url, "one", "RS256")
        assert issuer.fetched == 1, "and no redirect is followed"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("", 3600), ("max-age=600", 600), ("public, max-age=600", 600), ("max-age=1", 300), ("max-age=999999999", 86_400),
     ("no-store, max-age=600", 300), ("s-maxage=9999", 3600), ("max-age=-1", 3600), ('max-age="700"', 700)],
)  # fmt: skip
def test_an_issuer_says_how_long_within_bounds(said: str, seconds: float) -> None:
    assert fresh_seconds(said) == seconds


def a_set(*keys: Any) -> KeySet:
    return KeySet(json.dumps({"keys": keys}).encode())


def test_a_key_is_for_the_algorithms_of_its_kind_alone() -> None:
    keys = a_set(
        public(rsa_key(), kid="rsa"), public(ec_key(), kid="ec"), public(rsa_key(1), kid="pinned", alg="RS512")
    )
    fits = {
        (kid, algorithm)
        for kid in ("rsa", "ec", "pinned", "none")
        for algorithm in ("RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA")
        if keys.find(kid, algorithm)
    }
    assert fits == {("rsa", "RS256"), ("rsa", "RS512"), ("rsa", "PS256"), ("ec", "ES256"), ("pinned", "RS512")}
    assert keys.find(None, "ES256") is not None, "the only one for it"
    assert keys.find(None, "RS512") is None, "there are two"


@pytest.mark.parametrize(
    "key",
    [
        7, {}, {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}, {"kty": "RSA", "kid": "x"},
        {"kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB"}, {"kty": "RSA", "kid": "x", "n": "!", "e": "AQAB"},
        {"kty": "RSA", "kid": "x", "n": 7, "e": "AQAB"}, {"kty": "RSA", "kid": ["x"], "n": "AQAB", "e": "AQAB"},
        {**public(rsa_key(), kid="x"), "use": "enc"}, {**public(rsa_key(), kid="x"), "key_ops": ["sign"]},
        {**public(rsa_key(), kid="x"), "d": "AQAB"}, public(rsa_key(0, 1024), kid="x"),
        {"kty": "EC", "kid": "x", "crv": "P-256", "x": "AA", "y": "AA"},
    ],
    ids=lambda key: str(key)[:50],
)  # fmt: skip
def test_what_checks_no_signature_is_not_used_and_harms_no_other(key: Any) -> None:
    keys = a_set(key, public(rsa_key(), kid="one"))
    assert all(keys.find("x", algorithm) is None for algorithm in ("RS256", "PS256", "ES256", "EdDSA"))
    assert keys.find("one", "RS256") is not None


def test_a_key_id_that_two_keys_have_is_nobodys() -> None:
    assert a_set(public(rsa_key(), kid="one"), public(rsa_key(1), kid="one")).find("one", "RS256") is None


async def test_a_file_is_read_again_after_a_while_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    file.write_text(json.dumps({"keys": []}))
    async with key_sets(folder=tmp_path) as (sets, clock):
        assert await sets.key("ours.json", "one", "RS256") is None
        file.write_text(json.dumps({"keys": [public(rsa_key(), kid="one")]}))
        clock.now += jwks.FILE_SECONDS
        assert await sets.key("ours.json", "one", "RS256") is not None
        (tmp_path / "large.json").write_bytes(b" " * (jwks.SET_BYTES + 1))
        with pytest.raises(Unavailable):
            await sets.key("large.json", "one", "RS256")


async def test_the_number_of_sets_is_bounded(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setattr(jwks, "SETS", 2)
    async with key_sets() as (sets, _):
        for number in (1, 2, 1, 3, 1, 2):
            await sets.key(f"{issuer.url}?{number}", "one", "RS256")
    assert issuer.fetched == 4, "the longest unused was forgotten"


async def test_sets_cost_no_more_memory_than_they_may_together(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setattr(jwks, "SETS_BYTES", 5 * len(json.dumps({"keys": issuer.keys})) // 2)
    async with key_sets() as (sets, _):
        for number in (1, 2, 1, 3, 1, 2):
            await sets.key(f"{issuer.url}?{number}", "one", "RS256")
    assert issuer.fetched == 4, "the longest unused was forgotten"


async def test_a_namespace_with_many_sets_costs_others_none(monkeypatch: pytest.MonkeyPatch, issuer: Issuer) -> None:
    monkeypatch.setattr(jwks, "SETS", 4)
    monkeypatch.setattr(jwks, "SETS_BYTES", 9 * len(json.dumps({"keys": issuer.keys})) // 2)
    async with key_sets() as (sets, _):
        await sets.key(issuer.url, "one", "RS256", namespace="quiet")
        for number in range(10):
            await sets.key(f"{issuer.url}?{number}", "one", "RS256", namespace="greedy")
        assert issuer.fetched == 11
        await sets.key(issuer.url, "one", "RS256", namespace="quiet")
        assert issuer.fetched == 11, "it is still known"
        await sets.key(issuer.url, "one", "RS256", namespace="greedy")
        assert issuer.fetched == 12, "a namespace knows nothing of another one's"


async def test_an_issuers_keys_are_found_by_its_metadata_and_kept(issuer: Issuer) -> None:
    async with key_sets() as (sets, clock):
        where = jwks.DISCOVERED + issuer.name
        for _ in range(5):
            assert await sets.key(where, "one", "RS256") is not None
        assert (issuer.asked, issuer.fetched) == (1, 1)
        moved = issuer.url + "?moved"
        issuer.metadata = {"issuer": issuer.name, "jwks_uri": moved}
        clock.now += jwks.USUAL_SECONDS
        assert await sets.key(where, "one", "RS256") is not None
        await until(lambda: issuer.fetched == 2)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [({"issuer": "http://other.example", "jwks_uri": "http://127.0.0.1/"}, "another issuer"),
     ({"jwks_uri": "http://127.0.0.1/"}, "another issuer"), ({}, "another issuer"),
     ({"issuer": "NAME"}, "no jwks_uri"), ({"issuer": "NAME", "jwks_uri": ["x"]}, "no jwks_uri"),
     ({"issuer": "NAME", "jwks_uri": "file:///etc/passwd"}, "no jwks_uri"),
     ({"issuer": "NAME", "jwks_uri": "http://keys.example/"}, "no jwks_uri"),
     ({"issuer": "NAME", "jwks_uri": "ours.json"}, "no jwks_uri"),
     ({"issuer": "NAME", "jwks_uri": "https://user@keys.example/"}, "no jwks_uri"),
     ({"issuer": "NAME", "more": "x" * jwks.SET_BYTES}, "more than")],
)  # fmt: skip
async def test_metadata_that_lead_elsewhere_or_nowhere_are_not_followed(
    issuer: Issuer, caplog: pytest.LogCaptureFixture, metadata: dict[str, object], said: str
) -> None:
    name = {"issuer": issuer.name} if metadata.get("issuer") == "NAME" else {}
    issuer.metadata = {**metadata, **name, "padding": 1}
    async with key_sets() as (sets, _):
        with pytest.raises(Unavailable):
            await sets.key(jwks.DISCOVERED + issuer.name, "one", "RS256")
    assert said in caplog.text
    assert issuer.fetched == 0


async def test_metadata_of_a_private_address_are_not_asked_for(issuer: Issuer) -> None:
    async with key_sets(private=False) as (sets, _):
        with pytest.raises(Unavailable):
            await sets.key(jwks.DISCOVERED + issuer.name, "one", "RS256")
    assert issuer.asked == 0


def test_of_a_key_only_what_checks_signatures_is_kept() -> None:
    key = public(rsa_key(), kid="one")
    found = KeySet(json.dumps({"keys": [{**key, "x5c": ["a" * 1000], "more": [[[]]] * 1000}]}).encode())
    assert found.find("one", "RS256") is not None
    assert len(repr(vars(found))) < 3000


def test_no_document_breaks_the_reading() -> None:
    for document in (b"\xff", b"null", b'{"keys": 1}', b'{"keys": null}'):
        with pytest.raises(InvalidInput):
            KeySet(document)
