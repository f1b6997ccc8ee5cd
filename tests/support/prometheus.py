"""A real Prometheus, set up by the commands of deploy/README.md, and what it needs beside the server."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port
from tests.support.server import RunningServer

READY_SECONDS = 20.0

Rows = dict[tuple[tuple[str, str], ...], float]  # label set → value


@dataclass(frozen=True)
class Prometheus:
    url: str
    etc: Path  # what stands for /etc

    def query(self, expression: str, at: float) -> Rows:
        """An instant query."""
        parameters = urllib.parse.urlencode({"query": expression, "time": at})
        found = self.get(f"/api/v1/query?{parameters}")["result"]
        return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in found}

    def get(self, path: str) -> dict[str, list[dict]]:  # type: ignore[type-arg] # JSON
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            data: dict[str, list[dict]] = json.load(answer)["data"]  # type: ignore[type-arg]
        return data


def of(rows: Rows, **labels: str) -> float:
    """The one value of the row that has these labels."""
    found = [value for key, value in rows.items() if labels.items() <= dict(key).items()]
    assert len(found) == 1, (labels, rows)
    return found[0]


def quantile(share: float, values: Iterable[float], bounds: Sequence[float]) -> float:
    """What PromQL's `histogram_quantile` must make of `values` in buckets that end at `bounds`."""
    observed = list(values)
    rank, below = share * len(observed), 0
    for low, high in zip((0.0, *bounds), bounds, strict=False):
        inside = sum(low < value <= high for value in observed)
        if below + inside >= rank:
            return low + (high - low) * (rank - below) / inside
        below += inside
    return math.inf


@contextmanager
def other_address() -> Iterator[str]:
    """An address of this machine that is not loopback, on an interface of its own (from TEST-NET-2: nobody's)."""
    name, address = f"test{os.getpid()}", f"198.51.100.{os.getpid() % 254 + 1}"
    # A pair, which the server's own networks need too: kernels without "dummy" are about.
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    try:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield address
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


def as_documented(server: RunningServer, etc: Path) -> None:
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


@contextmanager
def scraping(server: RunningServer, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that has seen `server`."""
    etc = folder / "etc"
    as_documented(server, etc)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={etc}/prometheus/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}", etc)
        deadline = time.monotonic() + READY_SECONDS
        while not _sees(prometheus):
            told = (folder / "prometheus.log").read_text()[-1000:]
            assert time.monotonic() < deadline, f"Prometheus does not see the server: {told}"
            time.sleep(0.2)
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)


def _sees(prometheus: Prometheus) -> bool:
    try:
        return bool(prometheus.query('up{job="faas"} == 1', time.time()))
    except OSError:
        return False  # not started yet
