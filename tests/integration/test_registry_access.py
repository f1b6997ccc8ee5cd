"""Who may do what at the registry: every verb × route × caller against a table written from the contract, not from the
code; what is public; what narrows; users with passwords; and how failed logins are slowed down.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession
from yarl import URL

from faas.auth import Principal, Role
from faas.errors import InvalidInput
from faas.metrics import Metrics
from faas.oci.digest import Digest
from faas.state.session import Database
from gateway.credentials import TokenStore
from registry import user
from registry.access import TOKEN_SECONDS, Caller, Signer
from registry.app import OWN, create_app
from registry.routes import ROUTES
from registry.service import Registry
from registry.users import LOOK_SECONDS, read
from tests.support.commands import run
from tests.support.control import serving
from tests.support.registry import ROOT, RegistryProcess, Reply, registry_process

DIGEST = "sha256:" + "0" * 64
EMPTY = str(Digest.of(b""))
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
REPOSITORIES = ("free/app", "team/app", "other/app", "app", "runtime/base")  # the first one is public

# What each caller may do with images: {"": everywhere else}. Contract §2: a viewer pulls; a deployer pushes and deletes
# too; everybody who may pull may pull the runtime bases, which are the administrator's alone to change; the others have
# nothing here but what is public.
PULL, ALL = {"pull"}, {"pull", "push", "delete"}
CALLERS: dict[str, tuple[Principal | None, dict[str, set[str]]]] = {
    "anonymous": (None, {"": set()}),
    "caller": (Principal("caller", Role.CALLER), {"": set()}),
    "scraper": (Principal("scraper", Role.SCRAPER), {"": set()}),
    "viewer": (Principal("viewer", Role.VIEWER), {"": PULL}),
    "deployer": (Principal("deployer", Role.DEPLOYER), {"": ALL, "runtime/base": PULL}),
    "admin": (Principal("root", Role.ADMIN), {"": ALL}),
    "team's viewer": (
        Principal("team-viewer", Role.VIEWER, "team"),
        {"": set(), "team/app": PULL, "runtime/base": PULL},
    ),
    "team's deployer": (
        Principal("team-deployer", Role.DEPLOYER, "team"),
        {"": set(), "team/app": ALL, "runtime/base": PULL},
    ),
    "team's admin": (
        Principal("team-admin", Role.ADMIN, "team"),
        {"": set(), "team/app": ALL, "runtime/base": PULL},
    ),
    "narrowed viewer": (
        Principal("narrow-viewer", Role.VIEWER, repositories=("team/*",)),
        {"": set(), "team/app": PULL, "runtime/base": PULL},
    ),
    "narrowed deployer": (
        Principal("narrow-deployer", Role.DEPLOYER, repositories=("team/*", "none")),
        {"": set(), "team/app": ALL, "runtime/base": PULL},
    ),
}
# A path behind /v2/<repository> → verb → what it takes. A verb that is not here is nobody's.
SPEC: dict[str, dict[str, str]] = {
    "/blobs/uploads/": {"POST": "push"},
    "/blobs/uploads": {"POST": "push"},
    "/blobs/uploads/none": {"GET": "push", "PATCH": "push", "PUT": "push", "DELETE": "push"},
    f"/blobs/{DIGEST}": {"GET": "pull", "HEAD": "pull", "DELETE": "delete"},
    "/manifests/v1": {"GET": "pull", "HEAD": "pull", "PUT": "push", "DELETE": "delete"},
    f"/manifests/{DIGEST}": {"GET": "pull", "HEAD": "pull", "PUT": "push", "DELETE": "delete"},
    "/tags/list": {"GET": "pull"},
    f"/referrers/{DIGEST}": {"GET": "pull"},
}
EVERYBODY, KNOWN = set(CALLERS), set(CALLERS) - {"anonymous"}
READERS = KNOWN - {"caller", "scraper"}
# Whole paths → verb → who may. The catalog has something for everybody, since something is public.
OTHERS: dict[str, dict[str, set[str]]] = {
    "/v2/": {"GET": KNOWN, "HEAD": KNOWN},
    "/v2": {"GET": KNOWN, "HEAD": KNOWN},
    "/v2/_catalog": {"GET": EVERYBODY, "HEAD": EVERYBODY},
    "/v2/_oci/ext/discover": {"GET": READERS, "HEAD": READERS},
    "/v2/nothing": {},
}
# Our own endpoints are an administrator's of everything; these of others too.
OUR_OWN: dict[tuple[str, str], set[str]] = {
    ("GET", "/v2/_faas/policies"): {"admin", "team's admin"},  # each sees what it administers
    ("GET", "/v2/_faas/retention"): {"admin", "team's admin"},
    ("POST", "/v2/_faas/retention/team/*"): {"admin", "team's admin"},
    ("GET", "/v2/_faas/images/team/app/v1"): READERS,
    **{
        (verb, f"/v2/_faas/{noun}/team/*"): {"admin", "team's admin"}
        for verb in ("PUT", "DELETE")
        for noun in ("policies", "retention")
    },
}
PARTS = {"pattern": "team/*", "namespace": "team", "repository": "team/app", "reference": "v1"}


@dataclass
class Door:
    """A registry with one repository of each kind, and everybody's credentials."""

    registry: Registry
    url: str
    session: ClientSession
    tokens: dict[str, str]

    async def call(
        self, verb: str, path: str, who: str = "anonymous", bearer: str = "", body: bytes | None = None
    ) -> Reply:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else self.basic(who)
        url = URL(self.url + path, encoded=True)
        async with self.session.request(verb, url, headers=headers, data=body) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    def basic(self, who: str) -> dict[str, str]:
        principal = CALLERS[who][0]
        if principal is None:
            return {}
        pair = f"{principal.name}:{self.tokens[who]}".encode()
        return {"Authorization": "Basic " + base64.b64encode(pair).decode()}

    async def token(self, who: str, *scopes: str) -> str:
        query = urlencode([("service", "faas"), *(("scope", scope) for scope in scopes)])
        reply = await self.call("GET", f"/token?{query}", who)
        assert reply.status == 200, reply.body
        return str(reply.json()["token"])


@asynccontextmanager
async def door_of(folder: Path, *, token_flow: bool = False) -> AsyncIterator[Door]:
    database = await Database.open(f"sqlite+aiosqlite:///{folder / 'faas.db'}")
    store = TokenStore(database)
    url = f"sqlite+aiosqlite:///{folder / 'registry.db'}"
    registry = await Registry.open(folder, url, accounts=store, metrics=Metrics("1"), token_flow=token_flow)
    try:
        async with serving(create_app(registry)) as address, ClientSession() as session:
            tokens = {who: (await store.create(one))[1] for who, (one, _) in CALLERS.items() if one}
            door = Door(registry, address, session, tokens)
            for repository in REPOSITORIES:
                begun = await door.call("POST", f"/v2/{repository}/blobs/uploads/", "admin", body=b"")
                path = f"{begun.headers['Location']}?digest={EMPTY}"
                assert (await door.call("PUT", path, "admin", body=b"")).status == 201
            put = await door.call("PUT", "/v2/_faas/policies/free/*", "admin", body=b'{"public": true}')
            assert put.status == 204
            yield door
    finally:
        await registry.close()
        await database.close()


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with door_of(tmp_path) as opened:
        yield opened


def rights(who: str, repository: str) -> set[str]:
    may = CALLERS[who][1]
    return may.get(repository, may[""]) | (PULL if repository == "free/app" else set())


def concrete(path: str) -> str:
    return re.sub(r"{(\w+)(:[^}]*)?}", lambda part: PARTS[part[1]], path)


def as_expected(status: int, may: bool | None, who: str) -> bool:
    """`may` None: nobody may, since the route has no such verb."""
    if may:
        return status not in (401, 403, 405) and status < 500
    if who == "anonymous":
        return status == 401
    return status == (405 if may is None else 403)


def test_every_route_of_the_spec_is_in_the_table() -> None:
    served: dict[str, set[str]] = {}
    for path, verbs in SPEC.items():
        route = next(route for route in ROUTES if route.pattern.fullmatch(f"app{path}"))
        served.setdefault(route.pattern.pattern, set()).update(verbs)
    assert served == {route.pattern.pattern: set(route.endpoints) for route in ROUTES}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("flow", ["basic", "token"])
async def test_every_verb_of_every_route_admits_exactly_who_the_contract_says(tmp_path: Path, flow: str) -> None:
    wrong = []
    async with door_of(tmp_path, token_flow=flow == "token") as door:
        for who, repository in itertools.product(CALLERS, REPOSITORIES):
            bearer = await door.token(who, f"repository:{repository}:pull,push,delete") if flow == "token" else ""
            for (path, verbs), verb in itertools.product(SPEC.items(), VERBS):
                needed = verbs.get(verb)
                may = None if needed is None else needed in rights(who, repository)
                reply = await door.call(verb, f"/v2/{repository}{path}", who, bearer, b"{}" if verb == "PUT" else None)
                # A token that does not say enough is to be made anew; it has been, and says no more.
                status = 403 if bearer and who != "anonymous" and reply.status == 401 else reply.status
                if not as_expected(status, may, who):
                    wrong.append((who, verb, repository, path, reply.status))
                if bearer and reply.status == 401:
                    assert 'error="insufficient_scope"' in reply.headers["WWW-Authenticate"] or who == "anonymous"
    assert wrong == []


async def test_every_verb_of_every_other_route_admits_exactly_who_the_contract_says(door: Door) -> None:
    table: dict[str, dict[str, set[str]]] = {path: dict(verbs) for path, verbs in OTHERS.items()}
    for verb, path, _ in OWN:
        where = concrete(path)
        table.setdefault(where, {})[verb] = OUR_OWN.get((verb, where), {"admin"})
    assert {key for key in OUR_OWN if key[0] not in table.get(key[1], {})} == set()
    wrong = []
    for (path, verbs), verb, who in itertools.product(table.items(), VERBS, CALLERS):
        may = who in verbs[verb] if verb in verbs else None
        body = b'{"public": true}' if verb in ("PUT", "POST") else None
        reply = await door.call(verb, path, who, body=body)
        nowhere = path == "/v2/nothing" and reply.status == 404 and who != "anonymous"
        no_verb = path == "/v2/_catalog" and reply.status == 405 and may is None  # a stranger is let in there
        if not as_expected(reply.status, may, who) and not nowhere and not no_verb:
            wrong.append((who, verb, path, reply.status))
    assert wrong == []


async def test_a_token_administers_nothing_whoever_it_was_made_for(door: Door) -> None:
    bearer = await door.token("admin", "repository:team/app:*", "registry:catalog:*")
    for verb, path, _ in OWN:
        if "/images/" not in path:
            assert (await door.call(verb, concrete(path), bearer=bearer)).status == 401, (verb, path)


async def test_a_token_is_not_exchanged_for_another_one(door: Door) -> None:
    """Else the smallest of tokens would be as good as the password, and for ever."""
    bearer = await door.token("deployer", "repository:team/app:pull")
    assert (await door.call("GET", "/token?scope=repository:other/app:push", bearer=bearer)).status == 401
    form = {"grant_type": "password", "password": bearer, "scope": "repository:other/app:push"}
    async with door.session.post(f"{door.url}/token", data=form) as answer:
        assert answer.status == 401
    async with door.session.post(f"{door.url}/token", data={**form, "username": "deployer"}) as answer:
        assert answer.status == 401


async def catalog(door: Door, who: str, query: str = "", bearer: str = "") -> Any:
    reply = await door.call("GET", f"/v2/_catalog{query}", who, bearer)
    return reply.json()["repositories"] if reply.status == 200 else reply.status


async def test_the_catalog_lists_what_its_reader_may_pull(door: Door) -> None:
    for who in CALLERS:
        seen = [name for name in sorted(REPOSITORIES) if "pull" in rights(who, name)]
        assert await catalog(door, who) == seen, who
        bearer = await door.token(who, "registry:catalog:*")
        assert await catalog(door, who, bearer=bearer) == seen, who
        assert await catalog(door, who, bearer=await door.token(who, "repository:free/app:pull")) == 401
    first = await door.call("GET", "/v2/_catalog?n=1", "narrowed viewer")
    assert first.json() == {"repositories": ["free/app"]}
    assert first.headers["Link"] == '</v2/_catalog?n=1&last=free%2Fapp>; rel="next"'
    assert await catalog(door, "narrowed viewer", "?n=1&last=free/app") == ["runtime/base"]
    assert "Link" not in (await door.call("GET", "/v2/_catalog?n=1&last=runtime/base", "narrowed viewer")).headers
    assert (await door.call("DELETE", "/v2/_faas/policies/free/*", "admin")).status == 204
    assert await catalog(door, "anonymous") == 401
    assert await catalog(door, "caller") == 403


async def test_the_most_telling_policy_holds_alone(door: Door) -> None:
    await door.call("PUT", "/v2/_faas/policies/*", "admin", body=b'{"public": true}')
    await door.call("PUT", "/v2/_faas/policies/other/*", "admin", body=b'{"sparse": true}')
    assert await catalog(door, "anonymous") == ["app", "free/app", "runtime/base", "team/app"]
    assert (await door.call("GET", "/v2/other/app/tags/list")).status == 401
    assert (await door.call("GET", "/v2/team/app/tags/list")).status == 200
    assert (await door.call("POST", "/v2/team/app/blobs/uploads/")).status == 401
    assert (await door.call("GET", "/v2/team/none/tags/list")).status == 404


async def mounted(door: Door, who: str, target: str, source: str, digest: str, scope: bool = False) -> int:
    query = f"mount={digest}" + (f"&from={source}" if source else "")
    wanted = [f"repository:{target}:pull,push", *([f"repository:{source}:pull"] if source else [])]
    bearer = await door.token(who, *wanted) if scope else ""
    return (await door.call("POST", f"/v2/{target}/blobs/uploads/?{query}", who, bearer)).status


@pytest.mark.parametrize("scope", [False, True], ids=["basic", "token"])
async def test_a_blob_is_mounted_only_from_where_the_caller_may_pull(door: Door, scope: bool) -> None:
    async def pushed(repository: str, data: bytes) -> str:
        digest = str(Digest.of(data))
        reply = await door.call("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", "admin", body=data)
        assert reply.status == 201
        return digest

    secret, public = await pushed("other/app", b"secret"), await pushed("free/app", b"free")
    for who in ("team's deployer", "narrowed deployer"):
        for source in ("other/app", ""):
            assert await mounted(door, who, "team/app", source, secret, scope) == 202, (who, source)
        assert await mounted(door, who, "team/app", "nowhere/none", secret, scope) == 202
        assert await mounted(door, who, f"team/{who[:4]}", "free/app", public, scope) == 201
        assert await mounted(door, who, f"team/{who[:4]}2", "", public, scope) == 201
    assert await mounted(door, "deployer", "team/app", "other/app", secret, scope) == 201


async def test_tokens_say_what_was_asked_for_and_allowed_and_are_offered_more_where_pull_was(door: Door) -> None:
    async def scopes(who: str, *asked: str) -> set[tuple[str, str]]:
        caller = door.registry.access.signer.read(await door.token(who, *asked))
        assert caller is not None
        assert caller.scopes is not None
        return set(caller.scopes)

    everything = {("team/app", action) for action in ("pull", "push", "delete")}
    assert await scopes("deployer", "repository:team/app:pull") == everything
    assert await scopes("deployer", "repository:team/app:push") == {("team/app", "push")}
    assert await scopes("deployer", "repository:team/app:delete") == {("team/app", "delete")}
    assert await scopes("deployer", "repository:team/app:pull repository:app:push") == everything | {("app", "push")}
    assert await scopes("viewer", "repository:team/app:pull,push", "repository:app:pull") == {
        ("team/app", "pull"),
        ("app", "pull"),
    }
    assert await scopes("narrowed deployer", "repository:team/app:pull", "repository:other/app:*") == everything
    assert await scopes("anonymous", "repository:free/app:pull,push", "repository:team/app:pull") == {
        ("free/app", "pull")
    }
    assert await scopes("anonymous") == await scopes("deployer") == set()


async def test_a_token_too_long_for_a_header_is_refused_with_words(door: Door) -> None:
    names = ["a" * 250 + str(number) for number in range(30)]
    query = urlencode([("scope", f"repository:{name}:*") for name in names])
    reply = await door.call("GET", f"/token?{query}", "admin")
    assert (reply.status, reply.code) == (400, "UNSUPPORTED")
    many = urlencode([("scope", "repository:a:pull")] * 33)
    assert (await door.call("GET", f"/token?{many}", "admin")).status == 400


async def test_a_form_with_blank_joined_scopes_is_answered_and_another_grant_refused_by_name(door: Door) -> None:
    form = {"username": "deployer", "password": door.tokens["deployer"], "service": "faas", "client_id": "containerd"}
    scope = "repository:team/app:pull,push repository:app:pull"
    async with door.session.post(
        f"{door.url}/token", data={**form, "grant_type": "password", "scope": scope}
    ) as answer:
        assert answer.status == 200
        body = await answer.json()
    assert "refresh_token" not in body
    assert (await door.call("POST", "/v2/team/app/blobs/uploads/", bearer=body["access_token"])).status == 202
    assert (await door.call("GET", "/v2/app/tags/list", bearer=body["access_token"])).status == 200
    async with door.session.post(
        f"{door.url}/token", data={**form, "grant_type": "refresh_token", "refresh_token": "x"}
    ) as answer:
        assert answer.status == 400
        refused = await answer.json()
    assert refused["error"] == "unsupported_grant_type"
    assert refused["errors"][0]["code"] == "UNSUPPORTED"
    login = await door.call(
        "GET", "/token?account=deployer&client_id=docker&offline_token=true&service=faas", "deployer"
    )
    assert login.status == 200
    assert "refresh_token" not in login.json()
    assert login.json()["expires_in"] >= 60


async def test_after_five_wrong_logins_the_address_waits_but_a_right_token_opens(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(door.registry.access.attempts, "_clock", lambda: now)

    async def guess(path: str, form: bool = False) -> tuple[int, str]:
        pair = base64.b64encode(b"deployer:wrong").decode()
        fields = {"grant_type": "password", "username": "deployer", "password": "wrong"}
        method, options = (
            ("POST", {"data": fields}) if form else ("GET", {"headers": {"Authorization": f"Basic {pair}"}})
        )
        async with door.session.request(method, door.url + path, **options) as answer:  # type: ignore[arg-type]
            body = await answer.json()
            assert ("Retry-After" in answer.headers) == (answer.status == 429)
            return answer.status, body["errors"][0]["code"]

    wrong, locked = (401, "UNAUTHORIZED"), (429, "TOOMANYREQUESTS")
    assert [await guess("/v2/"), await guess("/token"), await guess("/token", form=True)] == [wrong] * 3
    assert [await guess("/v2/team/app/tags/list"), await guess("/v2/_faas/policies")] == [wrong] * 2
    assert [await guess("/v2/"), await guess("/token"), await guess("/token", form=True)] == [locked] * 3
    assert (await door.call("GET", "/v2/", "deployer")).status == 200
    assert (await door.call("GET", "/v2/", "viewer")).status == 200
    assert (await door.call("GET", "/v2/")).status == 401  # nobody's login is no failed one


async def test_a_token_that_is_over_is_no_failed_login(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients hear of it by a 401, several at once, and of a restart as well."""
    now = time.monotonic()
    monkeypatch.setattr(door.registry.access.attempts, "_clock", lambda: now)
    scopes = frozenset({("team/app", "pull")})
    caller = Caller(Principal("deployer", Role.DEPLOYER), scopes)
    over = door.registry.access.signer.issue(caller, scopes, now=time.time() - TOKEN_SECONDS - 1)
    for bearer in (over, Signer().issue(caller, scopes)):
        for _ in range(8):
            reply = await door.call("GET", "/v2/team/app/tags/list", bearer=bearer)
            assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
    assert [(await door.call("GET", "/v2/", bearer="faas_wrong")).status for _ in range(6)] == [401] * 5 + [429]


# A registry that runs alone


def users(data: Path, *words: str, password: str = "") -> str:
    """`python -m registry user …`, which must succeed; what it printed."""
    return run(sys.executable, "-m", "registry", "user", *words, "--data", data, stdin=password, cwd=ROOT)


@dataclass
class UserCommand:
    """The same without a process of its own."""

    data: Path
    patch: pytest.MonkeyPatch
    output: pytest.CaptureFixture[str]

    def __call__(self, *words: str, password: str = "") -> tuple[int, str]:
        """Exit code, and what it printed."""
        self.patch.setattr(sys, "stdin", io.StringIO(password))
        try:
            code = user.main([*words, "--data", str(self.data)])
        except SystemExit as usage:
            code = int(usage.code or 0)
        return code, "".join(self.output.readouterr())


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> UserCommand:
    return UserCommand(tmp_path, monkeypatch, capsys)


def as_user(registry: RegistryProcess, name: str, password: str, path: str = "/v2/", method: str = "GET") -> Reply:
    pair = base64.b64encode(f"{name}:{password}".encode()).decode()
    return registry.call(method, path, headers={"Authorization": f"Basic {pair}"}, login=False)


SEEN_SECONDS = LOOK_SECONDS + 0.1  # to ask more often would be a failed login each time


def within(seconds: float, look: Any) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_users_are_added_changed_and_removed_while_the_registry_runs(tmp_path: Path, command: UserCommand) -> None:
    data = command.data = tmp_path / "registry"
    with registry_process(data, "basic") as registry:
        registry.push_image("team/app", "v1")
        registry.push_image("other/app", "v1")
        assert as_user(registry, "vera", "correct horse").status == 401
        narrowed = ("--role", "deployer", "--repository", "team/*")
        users(data, "add", "vera", *narrowed, password="correct horse\n")
        time.sleep(SEEN_SECONDS)
        assert as_user(registry, "vera", "correct horse").status == 200
        assert as_user(registry, "vera", "correct horse", "/v2/team/app/blobs/uploads/", "POST").status == 202
        assert as_user(registry, "vera", "correct horse", "/v2/other/app/tags/list").status == 403
        assert command("ls") == (0, "vera deployer * team/*\n")
        assert command("add", "vera", password="another horse\n") == (0, "")
        time.sleep(SEEN_SECONDS)
        assert as_user(registry, "vera", "another horse").status == 200
        assert as_user(registry, "vera", "correct horse").status == 401  # what was remembered is forgotten
        assert as_user(registry, "vera", "another horse", "/v2/other/app/tags/list").status == 200
        (data / "users").write_text("not what it was")  # somebody's editor: the users stay as they were
        time.sleep(SEEN_SECONDS)
        assert as_user(registry, "vera", "another horse").status == 200
        (data / "users").unlink()
        time.sleep(SEEN_SECONDS)
        assert as_user(registry, "vera", "another horse").status == 401
        assert registry.call("GET", "/v2/").status == 200  # the administrator


def test_the_users_file_holds_no_password_and_is_its_owners_alone(tmp_path: Path, command: UserCommand) -> None:
    for name in ("b", "a"):
        assert command("add", name, password="correct horse\n") == (0, "")
    assert stat.S_IMODE((tmp_path / "users").stat().st_mode) == 0o600
    text = (tmp_path / "users").read_text()
    assert "correct" not in text
    assert text.count("$argon2id$v=19$m=65536,t=3,p=4$") == 2
    assert [row["name"] for row in json.loads(text)["users"]] == ["a", "b"]
    assert command("rm", "a") == (0, "")
    assert command("rm", "a") == (1, "error: there is no user a\n  python -m registry user ls\n")
    assert command("ls") == (0, "b viewer *\n")
    assert {path.name for path in tmp_path.iterdir()} == {"users", "users.lock"}


@pytest.mark.parametrize(
    ("words", "password", "said"),
    [
        (("add", "admin"), "correct horse", "admin-token"),
        (("add", "Vera"), "correct horse", "a user's name"),
        (("add", "vera"), "short", "8 to 1024"),
        (("add", "vera", "--role", "admin", "--repository", "team/*"), "correct horse", "narrow"),
        (("add", "vera", "--namespace", "team", "--repository", "other/*"), "correct horse", "reaches nothing"),
        (("add", "vera", "--namespace", "runtime"), "correct horse", "namespace"),
        (("add", "vera", "--role", "caller"), "correct horse", "invalid choice"),
        (("add", "vera", "--password", "x"), "correct horse", "unrecognized"),
    ],
)
def test_a_user_that_cannot_be_is_refused_with_words(
    tmp_path: Path, command: UserCommand, words: tuple[str, ...], password: str, said: str
) -> None:
    code, printed = command(*words, password=password + "\n")
    assert code in (1, 2)
    assert said in printed
    assert not (tmp_path / "users").exists()


VERA = {"name": "vera", "role": "viewer", "namespace": "*", "repositories": [], "password": ""}
NO_USERS = (
    {"name": 1}, {"name": "admin"}, {"role": []}, {"role": "caller"}, {"namespace": 1}, {"repositories": "team"},
    {"repositories": [1]}, {"repositories": ["?"]}, {"password": None}, {"more": 1},
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"users": 1}', '{"users": [{"name": "x"}]}', '{"users": [1]}', "[" * 100_000]
    + [json.dumps({"users": [{**VERA, **change}]}) for change in NO_USERS],
)
def test_a_users_file_that_makes_no_sense_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "users").write_text(text)
    with pytest.raises(InvalidInput, match=str(tmp_path / "users")):
        read(tmp_path / "users")


def test_a_registry_does_not_start_on_a_users_file_that_makes_no_sense(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("not what it was")
    command = [sys.executable, "-m", "registry", "--data", str(tmp_path), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'users'}")


def test_a_guessed_password_is_locked_for_its_name_alone(tmp_path: Path, command: UserCommand) -> None:
    for name in ("vera", "vic"):
        assert command("add", name, password="correct horse\n") == (0, "")
    with registry_process(tmp_path, "basic") as registry:
        within(5, lambda: as_user(registry, "vic", "correct horse").status == 200)
        # An unknown name is answered as a known one is, in its status and in what it costs.
        for name in ("vera", "nobody"):
            answers = [as_user(registry, name, "wrong") for _ in range(5)]
            assert {answer.status for answer in answers} == {401}
            while (locked := as_user(registry, name, "wrong")).status == 401:  # the lock was over: it grows
                answers.append(locked)
                assert len(answers) < 10
            assert (locked.status, locked.code) == (429, "TOOMANYREQUESTS")
            assert 1 <= int(locked.headers["Retry-After"]) <= 60
        assert as_user(registry, "vic", "correct horse").status == 200
        assert registry.call("GET", "/v2/").status == 200
        within(65, lambda: as_user(registry, "vera", "correct horse").status == 200)
