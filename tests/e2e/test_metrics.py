"""A real Prometheus scrapes the server, and every panel of the dashboard shows what was really sent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faas.listener import bound, listen
from faas.settings import Address
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.prometheus]

WINDOW = 30  # seconds that the panels look back in this test ($__rate_interval)
CALLS, FAILURES, REFUSED = 40, 10, 4

CODE = """
import time

def handler(event, context):
    path = event["rawPath"]
    if path == "/fail":
        raise ValueError("as asked")
    if path == "/slow":
        time.sleep(2)
    time.sleep(0.02)
    return {"statusCode": 200, "body": "ok"}
"""


@dataclass
class Prometheus:
    url: str
    etc: Path  # what stands for /etc

    def query(self, expression: str, at: float) -> dict[tuple[tuple[str, str], ...], float]:
        """Label set → value of an instant query."""
        parameters = urllib.parse.urlencode({"query": expression, "time": at})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{parameters}", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in found}


def as_documented(server: RunningServer, etc: Path) -> Path:
    """The commands of deploy/README.md with `etc` for /etc, and then this server's address and a shorter interval."""
    root = Path(__file__).resolve().parent.parent.parent
    (commands,) = re.findall(r"```\n(.*?)```", (root / "deploy" / "README.md").read_text(), re.S)
    assert "faas token create" in commands
    for folder in ("prometheus", "grafana"):
        (etc / folder).mkdir(parents=True)
    script = commands.replace("/etc/", f"{etc}/").replace("faas token", f"{sys.executable} -m faas.cli token")
    env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token}
    subprocess.run(["sh", "-ec", script], cwd=root, env=env, check=True)
    configuration = etc / "prometheus" / "prometheus.yml"
    text = configuration.read_text()
    for shipped, here in (
        ("/etc/", f"{etc}/"),
        ("127.0.0.1:8081", server.api.removeprefix("http://")),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    configuration.write_text(text)
    return etc


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Prometheus]]:
    folder = tmp_path_factory.mktemp("metrics")
    with RunningServer(folder / "data", "--driver", "oci") as server:
        etc = as_documented(server, folder / "etc")
        with listen(Address("127.0.0.1", 0)) as free:
            address = bound(free)
        command = ["prometheus", f"--config.file={etc}/prometheus/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
        with open(folder / "prometheus.log", "wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://{address}", etc)
            for _ in range(100):
                try:
                    if prometheus.query('up{job="faas"} == 1', time.time()):
                        break
                except OSError:
                    pass
                time.sleep(0.2)
            else:
                pytest.fail("Prometheus does not see the server: " + (folder / "prometheus.log").read_text()[-1000:])
            yield server, prometheus
        finally:
            process.terminate()
            process.wait(20)


def panels(project_root: Path) -> dict[str, list[str]]:
    """Title → expressions, as the dashboard's file has them."""
    dashboard = json.loads((project_root / "deploy/grafana/dashboards/overview.json").read_text())
    drawn = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in drawn}


def filled_in(expression: str) -> str:
    return expression.replace("$__rate_interval", f"{WINDOW}s").replace("$function", ".*")


@pytest.mark.timeout(240)
def test_every_panel_shows_what_was_sent(
    watched: tuple[RunningServer, Prometheus], tmp_path: Path, project_root: Path
) -> None:
    server, prometheus = watched
    toml = 'timeout = 10\nqueue_timeout = 0\n[scale]\nmax = 1\n[async]\nretries = 0\non_failure = "dlq"'
    server.push_code(tmp_path, "panel", CODE, toml)
    schedule = '[[schedule]]\nname = "each-minute"\ncron = "* * * * *"'
    server.push_code(tmp_path, "cron", "def handler(event, context): ...\n", schedule)

    def traffic() -> dict[str, float]:
        """Every kind of thing that a panel counts, once around or as often as the constants say."""
        answered = 0.0
        for _ in range(CALLS):
            began = time.monotonic()
            assert server.get("/function/panel/").status == 200
            answered += time.monotonic() - began
        for _ in range(FAILURES):
            assert server.get("/function/panel/fail").status == 502
        slow = subprocess.Popen(["curl", "-s", "-o", "/dev/null", f"{server.public}/function/panel/slow"])
        time.sleep(0.7)
        for _ in range(REFUSED):
            assert server.get("/function/panel/").status == 429
        assert slow.wait(20) == 0
        assert server.request("POST", "/async-function/panel/fail", b"x").status == 202
        blob = tmp_path / "blob"
        blob.mkdir(exist_ok=True)
        (blob / "app.py").write_text("def handler(event, context): ...\n# " + str(time.time_ns()))
        (blob / "faas.toml").write_text('name = "blob"\nruntime = "python"\nhandler = "app.handler"\n')
        server.faas("push", blob)
        return {"mean": answered / CALLS}

    traffic()  # every series exists now, so that `rate` has a first value to count from
    time.sleep(WINDOW + 2)
    before = server.get("/metrics", api=True).text
    sent = traffic()
    time.sleep(3)
    now = time.time()
    after = server.get("/metrics", api=True).text
    shown = {
        title: [prometheus.query(filled_in(expression), now) for expression in expressions]
        for title, expressions in panels(project_root).items()
    }
    check(shown, sent, before, after)


def of(rows: dict[tuple[tuple[str, str], ...], float], **labels: str) -> float:
    found = [value for key, value in rows.items() if labels.items() <= dict(key).items()]
    assert len(found) == 1, (labels, rows)
    return found[0]


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples in an exposition, over the label sets that hold `labels`."""
    value = 0.0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            value += float(line.rpartition(" ")[2])
    return value


def check(shown: dict[str, list[dict[Any, float]]], sent: dict[str, float], before: str, after: str) -> None:
    """Each panel's value against what was sent, within 5 %."""

    def close(value: float) -> Any:
        return pytest.approx(value, rel=0.05)

    def one(title: str) -> dict[Any, float]:
        return shown.pop(title)[0]

    def rose(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    ran = CALLS + FAILURES + 2  # and the slow one, and the asynchronous one
    assert of(one("Invocations per second"), function="panel") * WINDOW == close(ran)
    failed = one("Failed invocations per second")
    assert of(failed, function="panel", kind="handled") * WINDOW == close(FAILURES + 1)
    assert sum(v for k, v in one("Refused requests per second").items() if dict(k)["function"] == "panel") * WINDOW == (
        close(REFUSED)
    )
    succeeded = of(one("Share of invocations that succeed"), function="panel")
    assert succeeded == close((CALLS + 1) / ran)
    mean = of(one("Duration, mean"), function="panel")
    expected = rose("faas_duration_seconds_sum", function="panel") / rose(
        "faas_duration_seconds_count", function="panel"
    )
    assert mean == close(expected)
    assert (CALLS * 0.02 + 2.02) / ran <= mean <= (CALLS * sent["mean"] + FAILURES * sent["mean"] + 3) / ran
    assert 0.02 <= of(one("Duration, 95th percentile"), function="panel") <= 0.1
    assert 0 <= of(one("Wait for an instance, 95th percentile"), function="panel") < 0.1
    assert 0 < of(one("Our overhead, 95th percentile")) < 0.5
    assert sum(v for k, v in one("Cold starts per second").items() if dict(k)["function"] == "blob") * WINDOW == close(
        1
    )
    phases = {dict(k)["phase"]: v for k, v in one("Cold start by phase, mean").items()}
    assert set(phases) == {"prepare", "create", "start", "init"}
    instances = one("Instances")
    assert sum(v for k, v in instances.items() if dict(k)["function"] == "panel") == 1
    running, limit = shown.pop("Running now, of the limit")
    assert of(running, function="panel") == 0
    assert of(limit, function="panel") == 1
    memory = of(one("Most memory used"), function="panel")
    assert 2e6 < memory < 128 * 2**20
    billed = of(one("Billed GB-seconds per second"), function="panel") * WINDOW
    assert billed == close(rose("faas_billed_gb_seconds_total", function="panel"))
    # 128 MB of 1,024 for at least the time that the handlers slept
    assert billed >= 0.125 * (CALLS * 0.02 + 2.02)
    assert of(one("Asynchronous invocations not ended"), function="panel") == 0
    assert of(one("Events run per second")) * WINDOW >= 0.95
    assert of(one("Dead letters"), function="panel") == close(1)
    fired = one("Schedules fired per second")
    assert of(fired) * WINDOW == pytest.approx(round(of(fired) * WINDOW), rel=0.06)
    assert all(v == 0 for v in one("Fire times missed").values())
    pushed = one("Registry requests per second")
    puts = sum(v for k, v in pushed.items() if dict(k)["method"] == "PUT")
    assert puts * WINDOW == close(rose("faas_registry_requests_total", method="PUT"))
    incoming = of(one("Blob bytes per second"), direction="in") * WINDOW
    assert incoming == close(rose("faas_registry_bytes_total", direction="in"))
    assert incoming > 0
    stored = of(one("Stored bytes"))
    assert stored > 1e6  # the runtime base alone is megabytes
    assert shown == {}, "a panel without a check"


def test_grafana_finds_the_dashboard_where_the_readme_puts_it(
    watched: tuple[RunningServer, Prometheus], project_root: Path
) -> None:
    _, prometheus = watched
    provisioning = prometheus.etc / "grafana" / "provisioning"
    (path,) = re.findall(r"path: (\S+)", (provisioning / "dashboards" / "faas.yml").read_text())
    dashboard = json.loads((prometheus.etc / path.removeprefix("/etc/") / "overview.json").read_text())
    (uid,) = re.findall(r"uid: (\S+)", (provisioning / "datasources" / "prometheus.yml").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"} == {uid}


def test_every_alert_is_loaded_and_none_fires_without_a_reason(watched: tuple[RunningServer, Prometheus]) -> None:
    _, prometheus = watched
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/rules", timeout=10) as answer:
        (group,) = json.load(answer)["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert next(rule for rule in group["rules"] if rule["name"] == "FaasDown")["state"] == "inactive"


def test_the_scrapers_token_opens_nothing_but_the_metrics(watched: tuple[RunningServer, Prometheus]) -> None:
    server, _ = watched
    token = server.faas("token", "create", "only-metrics", "--role", "scraper").stdout.strip()
    assert server.get("/metrics", api=True, token=token).status == 200
    assert server.get("/v1/functions", api=True, token=token).status == 403
