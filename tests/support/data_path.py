"""The gateway's data path around a `FakeWorker`, for tests."""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from faas.auth import Authenticator, TokenFile
from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from faas.state.session import Database
from faas.web import authorization, errors
from gateway.data_path import DataPath
from gateway.edge.doorman import Doorman
from gateway.edge.guards import Guards
from gateway.edge.observing import observing
from gateway.edge.passage import Passage, answering
from gateway.edge.witness import NOBODY, Witness
from gateway.lane.lane import Lane
from gateway.lane.plans import Place
from gateway.public import function_routes, strict
from gateway.router import FunctionState
from tests.support.fake_worker import FakeWorker
from tests.support.raw_http import LANE

TOKEN = "faas_the-administrators"
BY_THE_LANE = False  # the fixture `both_ways` tries both


def revision(
    name: str = "hello",
    number: int = 1,
    *,
    interface: Interface = Interface.LAMBDA,
    namespace: str = "default",
    spec_interface: str = "auto",
    **spec: Any,
) -> Revision:
    """A revision with `faas.toml`'s keys as keywords (`spec_interface` is its `interface`: what was declared, where
    `interface` is what is known); public unless said otherwise."""
    parsed = parse({"name": name, "public": True, "interface": spec_interface, **spec})
    return Revision(RevisionKey(namespace, name, number), parsed, f"{name}@sha256:{number:064}", interface)


def put(path: DataPath, *revisions: Revision) -> None:
    """Make the revisions of one function callable; the last one is live."""
    key = revisions[-1].key
    numbered = {r.key.number: r for r in revisions}
    path.router.put(FunctionState(key.namespace, key.function, {"live": key.number}, numbered))


def data_path(worker: FakeWorker) -> tuple[DataPath, Metrics]:
    metrics = Metrics("test")
    return DataPath.create(worker, metrics), metrics


def application(
    path: DataPath,
    *,
    api: bool = False,
    domain: str = "",
    authenticator: Authenticator | None = None,
    guards: Guards | None = None,
    witness: Witness | None = None,
) -> web.Application:
    """The functions' part of the public listener, or (`api`) of the API listener."""
    checker = authenticator or TokenFile(TOKEN)
    watching = [observing(witness, None, "public")] if witness is not None else []
    app = web.Application(middlewares=[*watching, errors, strict])
    if api:
        app.middlewares.append(cast("Middleware", authorization(checker)))
    app.on_response_prepare.append(answering)
    passage = passage_of(path, checker, api=api, guards=guards, witness=witness)
    app.add_routes(function_routes(passage, domain=domain))
    if BY_THE_LANE and not api:
        app[LANE] = Lane(path, Place(passage, domain))
    return app


def passage_of(
    path: DataPath,
    checker: Authenticator,
    *,
    api: bool = False,
    guards: Guards | None = None,
    witness: Witness | None = None,
) -> Passage:
    doorman, guards = Doorman(checker, api), guards or no_guards(path)
    return Passage(path.router, path.invoker, doorman, path.canaries, guards, witness or NOBODY)


def no_guards(path: DataPath) -> Guards:
    """Guards without a plan or maintenance: nothing is stored, and no database is ever opened."""
    return Guards.create(Database("sqlite+aiosqlite:////nowhere/at-all.db"), Metrics("test"), path.router.changed)


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """A metric's value; 0 where it has no such series."""
    return metrics.registry.get_sample_value(name, labels) or 0.0
