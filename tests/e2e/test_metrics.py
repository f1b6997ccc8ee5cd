"""A real Prometheus scrapes the server, and every panel of the dashboard shows what was really sent.

What a panel must show comes from the traffic itself, from the function's own log (REPORT lines), or from the disk;
never from the page that Prometheus reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.keepalive import Pattern, windows
from tests.support.database import edited
from tests.support.prometheus import Prometheus, Rows, of, other_address, quantile, scraping
from tests.support.server import Answer, RunningServer
from tests.support.websocket_client import handshake

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.prometheus]

# The panels look back this far ($__rate_interval), from some second of a minute to one of the next, so that exactly one
# fire time of "each minute" is inside. Traffic begins after its begin, and what is running is seen at its end.
WINDOW = 45
FIRST, LAST = 22, 57  # seconds at which traffic may begin: the fire time is then 6 s or more before the end
LATE = 5.0  # before the end
CALLS, FAILURES, REFUSED, DEAD, RUNNING, PAIRS = 20, 10, 4, 3, 2, 4
SLEEP, SLOW = 0.3, 2.0  # seconds in the handler: 0.3 is far from the bounds of its bucket, 0.25 and 0.5
HELD = 100  # MiB
ROUTED_SLEEP = 0.1
BLOBS, BLOB_BYTES = 4, 1_500_000
PLANNED = 5
ROUTED = 10  # through an API's route, to an alias whose second revision has everything
STEMS = 2  # the setting's default
BUDGET = 1000  # requests of `panel`

CODE = """
import time

held = []

def handler(event, context):
    _, what, amount = event["rawPath"].split("/")
    if what == "hold":
        held.append(b"x" * (int(amount) << 20))
        time.sleep(0.3)  # memory is looked at every 50 ms
    else:
        time.sleep(float(amount))
    if what == "fail":
        raise ValueError("as asked")
    return "ok"
"""
FUNCTIONS = {  # name → (code, faas.toml)
    "panel": (CODE, "timeout = 10\nqueue_timeout = 0\n[scale]\nmax = 1"),
    "queued": (CODE, "[scale]\nmax = 1"),
    "cold": ("import time\ntime.sleep(1.5)\n" + CODE, ""),
    "hold": (CODE, "memory = 256"),
    "dead": (CODE, '[async]\nretries = 0\non_failure = "dlq"\n[scale]\nmax = 1'),  # no second one starts in the window
    "late": (CODE, "[scale]\nmax = 3"),
    "routed": (CODE, '[[route]]\npath = "/sleep/{amount}"'),
}


def miss_one_fire_time(server: RunningServer, folder: Path) -> None:
    """Have the server find at its start that a fire time passed two minutes ago, when it last looked before that; and
    that `expected` is called every four hours, nearly so long ago for the last time."""
    pattern = Pattern()
    for _ in range(5):
        pattern.record(13_800.0)
    ended = time.time() - windows(pattern, 600.0).prewarm - 5
    server.push_code(folder, "expected", "def handler(event, context): ...\n", '[scale]\nidle = "learn"')
    passed = int(time.time()) // 60 * 60 - 120
    when = time.gmtime(passed)
    schedules = '[[schedule]]\nname = "each-minute"\ncron = "* * * * *"\n'
    schedules += f'[[schedule]]\nname = "missed"\ncron = "{when.tm_min} {when.tm_hour} * * *"\nmissed = "skip"'
    server.push_code(folder, "cron", "def handler(event, context): ...\n", schedules)
    assert server.stop() == 0
    with edited(server.data / "faas.db") as database:
        database.execute("UPDATE schedules SET considered_until = ? WHERE name = 'missed'", (passed - 1,))
        database.execute("UPDATE idle_patterns SET pattern = ?, ended_at = ?", (pattern.dump(), ended))
    server.start()
    for _ in range(100):
        if server.get("/v1/functions/expected", api=True).json()["instances"]["idle"]:
            break
        time.sleep(0.1)
    assert server.get("/function/expected").status == 200
    assert server.get("/function/cron").status == 200  # its cold start is not the schedule's


def planned(server: RunningServer, folder: Path) -> str:
    """A key with the usage plan `gold`, for a function that asks for one."""
    target = folder / "planned"
    target.mkdir()
    (target / "app.py").write_text(CODE)
    toml = 'name = "planned"\nruntime = "python"\nhandler = "app.handler"\n[auth]\nkey = true\n[circuit]\nleast = 9\n'
    (target / "faas.toml").write_text(toml)
    server.faas("push", target)
    server.faas("plan", "set", "gold", "--rate", "100", "--quota", "1000")
    return server.faas("key", "create", "planned", "--plan", "gold").stdout.strip()


def connected(server: RunningServer) -> list[socket.socket]:
    """Two connections of the WebSocket API `talk`."""
    server.faas("websocket", "put", "talk", "--public", "--route=$default=panel")
    host, _, port = server.public.removeprefix("http://").rpartition(":")
    clients = []
    for _ in range(2):
        clients.append(socket.create_connection((host, int(port)), 30))
        clients[-1].sendall(handshake("/ws/talk"))
        assert clients[-1].recv(4096).startswith(b"HTTP/1.1 101 ")
    return clients


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Prometheus]]:
    folder = tmp_path_factory.mktemp("metrics")
    with other_address() as address:
        flags = ("--driver", "oci", "--api-listen", f"{address}:0", "--insecure")
        with RunningServer(folder / "data", *flags) as server:
            miss_one_fire_time(server, folder)
            with scraping(server, folder) as prometheus:
                yield server, prometheus


@dataclass
class Traffic:
    """Sends, and remembers what the panels must show of it."""

    server: RunningServer
    pool: ThreadPoolExecutor
    began: float = field(default_factory=time.time)
    answered: list[tuple[float, float]] = field(default_factory=list)  # (slept, seen by the client), of `panel`
    key: str = ""  # with the usage plan `gold`
    routed: list[float] = field(default_factory=list)  # seconds of each request by a route
    cold: float = 0.0  # seconds of the request that found no instance
    once: bool = False  # one of each kind, for their series to be there

    def times(self, count: int) -> range:
        return range(1 if self.once else count)

    def send(self) -> None:
        for _ in self.times(CALLS):
            self.call("panel", "sleep", SLEEP)
        for _ in self.times(FAILURES):
            self.call("panel", "fail", SLEEP, status=502)
        slow = self.pool.submit(self.call, "panel", "sleep", SLOW)
        time.sleep(SLOW / 4)
        for _ in self.times(REFUSED):
            assert self.server.get("/function/panel/sleep/0").status == 429
        slow.result()
        for _ in self.times(PAIRS):  # the second waits until the first has ended
            first = self.pool.submit(self.call, "queued", "sleep", 0.8)
            time.sleep(0.1)
            self.call("queued", "sleep", 0.0)
            first.result()
        for _ in self.times(DEAD):
            self.queue("dead", "fail", 0.0)
        for _ in self.times(ROUTED):
            began = time.monotonic()
            assert self.server.get(f"/sleep/{ROUTED_SLEEP:g}").status == 200
            self.routed.append(time.monotonic() - began)
        for _ in self.times(PLANNED):
            assert self.server.get("/function/planned/sleep/0", headers={"X-Api-Key": self.key}).status == 200
        self.call_cold()
        for _ in self.times(BLOBS):
            self.move_blob()

    def call(self, function: str, what: str, amount: float, status: int = 200) -> float:
        began = time.monotonic()
        assert self.server.get(f"/function/{function}/{what}/{amount:g}").status == status
        elapsed = time.monotonic() - began
        if function == "panel":
            self.answered.append((amount, elapsed))
        return elapsed

    def queue(self, function: str, what: str, amount: float) -> None:
        assert self.server.request("POST", f"/async-function/{function}/{what}/{amount:g}").status == 202

    def call_cold(self) -> None:
        self.server.faas("scale", "cold", "0")
        for _ in range(100):
            if not self.server.get("/v1/functions/cold/instances", api=True).json()["instances"]:
                break
            time.sleep(0.1)
        self.cold = self.call("cold", "sleep", 0.0)

    def move_blob(self) -> None:
        """One POST, PUT and GET of bytes that the registry has never seen."""
        content = os.urandom(BLOB_BYTES)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = self.registry("POST", "/v2/blobs/blobs/uploads/")
        assert begun.status == 202
        place = urllib.parse.urlsplit(begun.headers["Location"])
        query = f"{place.query}&digest={digest}".lstrip("&")
        assert self.registry("PUT", f"{place.path}?{query}", content).status == 201
        assert self.registry("GET", f"/v2/blobs/blobs/{digest}").body == content

    def registry(self, method: str, path: str, body: bytes | None = None) -> Answer:
        login = base64.b64encode(f"admin:{self.server.token}".encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.server.registry + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Answer(answer.status, answer.headers, answer.read())

    def reports(self, function: str, since: float) -> list[dict[str, float]]:
        """The REPORT lines of the function's log: name of the figure → its number, in ms or MB."""
        log = self.server.get(f"/v1/functions/{function}/logs?since={since}", api=True).text
        lines = [json.loads(line)["message"] for line in log.splitlines()]
        figures = [re.findall(r"\t([A-Z][A-Za-z ]+): ([0-9.]+) m?", line, re.I) for line in lines if "REPORT " in line]
        return [{name: float(number) for name, number in line} for line in figures]


def panels(project_root: Path) -> dict[str, list[str]]:
    """Title → expressions, as the dashboard's file has them."""
    dashboard = json.loads((project_root / "deploy/grafana/dashboards/overview.json").read_text())
    drawn = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in drawn}


def begin() -> float:
    """Sleep until the clock shows a second from which the window may begin; Unix seconds."""
    if not FIRST <= time.time() % 60 < LAST:
        time.sleep((FIRST - time.time()) % 60)
    return time.time()


@pytest.mark.timeout(420)
def test_every_panel_shows_what_was_sent(
    watched: tuple[RunningServer, Prometheus], tmp_path: Path, project_root: Path
) -> None:
    server, prometheus = watched
    for name, (code, toml) in FUNCTIONS.items():
        server.push_code(tmp_path, name, code, toml)
    clients, key = connected(server), planned(server, tmp_path)
    server.push_code(tmp_path, "routed", CODE, "memory = 160\n" + FUNCTIONS["routed"][1])
    server.faas("alias", "routed", "live", "v1", "--weight", "v2=100", "--rollback", "errors=50%")
    server.faas("budget", "set", "most", "--requests", str(BUDGET), "--function", "panel")
    expressions = panels(project_root)

    def shown(title: str, at: float, function: str = ".*") -> list[Rows]:
        filled = (
            e.replace("$__rate_interval", f"{WINDOW}s").replace("$function", function) for e in expressions[title]
        )
        return [prometheus.query(expression, at) for expression in filled]

    with ThreadPoolExecutor(4) as pool:
        # Every series exists after this, so that `rate` has a first value to count from.
        Traffic(server, pool, key=key, once=True).send()
        for one in [pool.submit(Traffic(server, pool).call, "late", "sleep", 1.5) for _ in range(RUNNING)]:
            one.result()
        Traffic(server, pool).queue("late", "sleep", 0.0)
        Traffic(server, pool).call("hold", "hold", 0)
        time.sleep(3)  # nothing of it falls into the window

        began = begin()
        end = began + WINDOW - 1
        sent = Traffic(server, pool, began, key=key)
        sent.send()
        sent.call("hold", "hold", HELD)
        assert time.time() < end - LATE, "this machine is too slow for the window"
        time.sleep(end - LATE - time.time())
        for _ in range(RUNNING):  # these run still when the panels are looked at
            sent.queue("late", "sleep", 12)
        time.sleep(max(0.0, end - time.time()))
        now = end  # whenever this process is woken: Prometheus is asked how things stood then
        time.sleep(1.5)  # the last scrape
    for client in clients:
        client.close()
    checks = Panels({title: shown(title, now) for title in expressions}, sent)
    (checks.shown["Our overhead, 95th percentile"],) = [shown("Our overhead, 95th percentile", now, "panel")]
    (checks.shown["Cold start by phase, mean"],) = [shown("Cold start by phase, mean", now, "cold")]
    page = server.get("/metrics", api=True).text
    checks.invocations()
    checks.times(bounds(page, "faas_duration_seconds"), bounds(page, "faas_overhead_seconds"))
    checks.instances()
    checks.budgets()
    checks.events()
    checks.edge()
    checks.registry(stored_before=of(shown("Stored bytes", began)[0]))
    assert checks.shown == {}, "a panel without a check"


def bounds(page: str, histogram: str) -> list[float]:
    """Where the buckets of a histogram end."""
    found = re.findall(rf'^{histogram}_bucket{{.*le="([0-9.e+-]+)"', page, re.M)
    return sorted({float(bound) for bound in found})


def close(value: float) -> Any:
    return pytest.approx(value, rel=0.05)


@dataclass
class Panels:
    """Each panel's value against what was sent, within 5 %. What has been checked is taken away."""

    shown: dict[str, list[Rows]]
    sent: Traffic

    def one(self, title: str) -> Rows:
        (rows,) = self.shown.pop(title)
        return rows

    def counted(self, title: str, **labels: str) -> float:
        """How much the rate of a panel makes in the window, over all rows with these labels."""
        rows = self.one(title) if title in self.shown else {}
        assert rows, f"{title} shows nothing"
        return sum(v for k, v in rows.items() if labels.items() <= dict(k).items()) * WINDOW

    def invocations(self) -> None:
        ran = CALLS + FAILURES + 1  # and the slow one
        assert self.counted("Invocations per second", function="panel") == close(ran)
        failed = self.one("Failed invocations per second")
        assert of(failed, function="panel", kind="handled") * WINDOW == close(FAILURES)
        assert of(failed, function="dead", kind="handled") * WINDOW == close(DEAD)
        assert sum(failed.values()) * WINDOW == close(FAILURES + DEAD)
        assert self.counted("Refused requests per second") == close(REFUSED)
        assert of(self.one("Share of invocations that succeed"), function="panel") == close((CALLS + 1) / ran)

    def times(self, durations: list[float], overheads: list[float]) -> None:
        ran = [report["Duration"] / 1000 for report in self.sent.reports("panel", self.sent.began)]
        for (slept, elapsed), seconds in zip(self.sent.answered, ran, strict=True):
            assert slept <= seconds <= elapsed
        assert of(self.one("Duration, mean"), function="panel") == close(sum(ran) / len(ran))
        p95 = of(self.one("Duration, 95th percentile"), function="panel")
        assert p95 == close(quantile(0.95, ran, durations))
        waited = [1e-6, 0.7] * PAIRS
        p95 = of(self.one("Wait for an instance, 95th percentile"), function="queued")
        assert p95 == close(quantile(0.95, waited, durations))
        # Nobody can send a known overhead. It is at most what the clients saw beyond the function's own time.
        beyond = [elapsed - amount for amount, elapsed in self.sent.answered]
        assert 0 < of(self.one("Our overhead, 95th percentile")) <= quantile(0.95, beyond, overheads)

    def instances(self) -> None:
        expected = self.one("Expected calls since the start")
        assert expected == {(("function", "expected"), ("outcome", "used")): 1}
        started = self.one("Cold starts per second")
        assert sum(v for k, v in started.items() if dict(k)["function"] == "cold") * WINDOW == close(1)
        assert sum(started.values()) * WINDOW == close(1), started
        phases = {dict(k)["phase"]: v for k, v in self.one("Cold start by phase, mean").items()}
        assert set(phases) == {"prepare", "create", "start", "init"}
        assert self.sent.cold - 0.5 < sum(phases.values()) <= self.sent.cold  # the rest is the call itself
        (report,) = self.sent.reports("cold", self.sent.began)
        assert phases["init"] == close(report["Init Duration"] / 1000)
        instances = self.one("Instances")
        for function, count in {"panel": 1, "cold": 1, "late": RUNNING}.items():
            assert sum(v for k, v in instances.items() if dict(k)["function"] == function) == count, function
        passed, of_apis = self.shown.pop("WebSocket connections")
        assert (passed, of_apis) == ({}, {(("api", "talk"),): 2})  # no http function is here
        running, limit = self.shown.pop("Running now, of the limit")
        assert (of(running, function="panel"), of(running, function="late")) == (0, RUNNING)
        assert (of(limit, function="panel"), of(limit, function="late")) == (1, 3)
        charged, budget = self.shown.pop("Memory charged, of the budget")
        functions = self.sent.server.get("/v1/functions", api=True).json()["functions"]
        limits = sum(f["memory"] * sum(f["instances"].values()) for f in functions)
        told = self.sent.server.get("/v1/top", api=True).json()["memory"]["charged_bytes"]["invoked"]
        assert of(charged, kind="invoked") == close(told)
        assert told < limits * 2**20  # idle ones are charged what they have
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert of(budget) == close(machine - max(machine / 10, 512 * 2**20))
        assert set(self.one("Idle instances evicted per second").values()) == {0}  # there is room for all
        stems, made_ahead = self.shown.pop("Ready before they are needed")
        assert {dict(k)["runtime"].partition(":")[0]: v <= STEMS for k, v in stems.items()} == {"python": True}
        assert made_ahead == {(): 0}  # what stems serve needs none
        base = self.sent.reports("hold", 0)[0]["Max Memory Used"]  # before it held anything
        assert of(self.one("Most memory used"), function="hold") == close((base + HELD) * 2**20)
        ran = self.sent.reports("panel", self.sent.began)
        assert all(-0.01 < report["Billed Duration"] - report["Duration"] < 1.01 for report in ran), "whole ms, up"
        billed = sum(report["Billed Duration"] for report in ran) / 1000
        assert self.counted("Billed GB-seconds per second", function="panel") == close(billed * 128 / 1024)

    def budgets(self) -> None:
        ran = len(self.sent.reports("panel", 0))
        assert of(self.one("Budget used this month"), budget="most") == close(ran / BUDGET)

    def events(self) -> None:
        backlog = self.one("Asynchronous invocations not ended")
        assert (of(backlog, function="late"), of(backlog, function="dead")) == (RUNNING, 0)
        assert self.counted("Events run per second") == close(DEAD + RUNNING + 1)  # and the schedule's
        assert of(self.one("Dead letters"), function="dead") == close(DEAD)
        assert self.counted("Schedules fired per second") == close(1)
        assert self.one("Fire times missed since the start") == {(("schedule", "cron/missed"),): 1}

    def edge(self) -> None:
        requests = self.one("API requests per second")
        route = {"api": "default", "route": "ANY /sleep/{amount}", "status": "2xx"}
        assert of(requests, **route) * WINDOW == close(ROUTED)
        assert sum(requests.values()) * WINDOW == close(ROUTED)
        mean = of(self.one("API duration, mean"), api="default")
        assert ROUTED_SLEEP < mean <= sum(self.sent.routed) / ROUTED  # what clients saw is a little more
        calls = self.one("Canary calls per second")
        assert of(calls, function="routed", side="canary", status="success") * WINDOW == close(ROUTED)
        assert sum(calls.values()) * WINDOW == close(ROUTED)
        assert self.one("Canaries taken back since the start") == {(("function", "routed"),): 0}
        assert of(self.one("Requests without a line in the access log")) == 0
        plans = self.one("Requests of usage plans per second")
        assert of(plans, plan="gold", outcome="admitted") * WINDOW == close(PLANNED)
        assert sum(plans.values()) * WINDOW == close(PLANNED)
        assert self.one("Time until certificates end") == {}  # it has none; tests/e2e/test_other_machines.py has
        assert set(self.one("Notifications per second").values()) == {0}  # nobody is to be told
        assert self.one("Requests in lane processes per second") == {}  # tests/e2e/test_processes.py has some
        assert (of(self.one("Slots lent to lane processes")), of(self.one("Lane processes"))) == (0, 0)
        assert self.one("Circuit breakers: 1 half-open, 2 open") == {(("function", "planned"),): 0}

    def registry(self, stored_before: float) -> None:
        requests = self.one("Registry requests per second")
        for method, status in (("POST", "202"), ("PUT", "201"), ("GET", "200")):
            assert of(requests, method=method, status=status) * WINDOW == close(BLOBS)
        assert sum(requests.values()) * WINDOW == close(3 * BLOBS)
        moved = self.one("Blob bytes per second")
        for direction in ("in", "out"):
            assert of(moved, direction=direction) * WINDOW == close(BLOBS * BLOB_BYTES)
        stored = of(self.one("Stored bytes"))
        assert stored - stored_before == close(BLOBS * BLOB_BYTES)
        files = (self.sent.server.data / "blobs").rglob("*")
        assert stored == close(sum(file.stat().st_size for file in files if file.is_file()))
        assert of(self.one("Damaged blobs and manifests")) == 0
        assert of(self.one("Bytes freed by garbage collections")) == 0
        assert 0 <= of(self.one("Time since the last garbage collection")) < 3600


def test_the_page_is_for_those_who_hold_the_scrapers_token(watched: tuple[RunningServer, Prometheus]) -> None:
    server, prometheus = watched
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.api + "/metrics", timeout=10)
    with refused.value:
        assert refused.value.code == 401
    token = (prometheus.etc / "prometheus" / "faas-token").read_text().strip()
    assert token != server.token
    assert server.get("/metrics", api=True, token=token).status == 200
    assert server.get("/v1/functions", api=True, token=token).status == 403


def test_grafana_finds_the_dashboard_where_the_readme_puts_it(watched: tuple[RunningServer, Prometheus]) -> None:
    _, prometheus = watched
    provisioning = prometheus.etc / "grafana" / "provisioning"
    (path,) = re.findall(r"path: (\S+)", (provisioning / "dashboards" / "faas.yml").read_text())
    dashboard = json.loads((prometheus.etc / path.removeprefix("/etc/") / "overview.json").read_text())
    (uid,) = re.findall(r"uid: (\S+)", (provisioning / "datasources" / "prometheus.yml").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"} == {uid}


def test_every_alert_is_loaded_and_none_fires_without_a_reason(watched: tuple[RunningServer, Prometheus]) -> None:
    _, prometheus = watched
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert next(rule for rule in group["rules"] if rule["name"] == "FaasDown")["state"] == "inactive"
