"""Cold start: from a client's connect to the first whole answer of a function that never had an instance."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.client import address_of, first_answer
from tests.benchmarks.measure import Report, Row, interleaved, ratio
from tests.benchmarks.partners import Engine, Runc
from tests.support.server import RunningServer

ROUNDS = 15
PAUSE_SECONDS = 0.4  # after each measurement: removals and pools that are filled again must not run into the next
METHOD = (
    "Every method once per round, each round beginning with another. Ours: a new function per round from an image"
    " whose layers are unpacked, its interface declared, network outbound, 128 MB; connect → whole answer. oci: with"
    " --stems 0 --precreated 0; stem: with a stem ready, and taken; pre-created: with --stems 0, the second instance,"
    " when the first has gone and a sandbox is made ahead; docker: with containers ready that hold a network."
    " Docker: the same image with a bare-socket server of the same language; `docker run -d -p`, then asked every ms."
    " One request at a time."
)
PYTHON = {"runtime": "python", "handler": "app.handler"}
NODE = {"runtime": "node", "handler": "index.handler"}


class Functions:
    """First answers of new functions of one server."""

    def __init__(self, running: RunningServer, mark: str) -> None:
        self._running = running
        self._mark = mark
        self._numbers = itertools.count(1)

    def push(self, folder: Path, *flags: str) -> str:
        """Returns `repository@digest`."""
        self._running.faas("push", folder, *flags, "--no-check")
        return str(machine.described(self._running, folder.name)["image"])

    def first(self, image: str, path: str = "cold", **spec: Any) -> float:
        """Fails where the instance did not start on this path."""
        name = self._deployed(image, spec)
        taken = self._answer(name, path)
        machine.delete(self._running, name)
        return taken

    def precreated(self, image: str, **spec: Any) -> float:
        """The first answer of the second instance of a new function, the first one having gone."""
        name = self._deployed(image, spec)
        self._answer(name, "cold")
        self._until(lambda: "\nfaas_precreated 1.0" in self._metrics(), "nothing was made ahead")
        self._running.request("POST", f"/v1/functions/{name}/scale", b'{"instances": 0}', api=True)
        machine.ready(self._running, name, 0)
        time.sleep(PAUSE_SECONDS)
        taken = self._answer(name, "precreated")
        machine.delete(self._running, name)
        self._until(lambda: "\nfaas_precreated 0.0" in self._metrics(), "what was made ahead stays")
        return taken

    def _deployed(self, image: str, spec: dict[str, Any]) -> str:
        name = f"{self._mark}-{next(self._numbers)}"
        machine.deploy(self._running, name, image, spec)
        return name

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + machine.READY_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(otherwise)
            time.sleep(0.05)

    def _answer(self, name: str, path: str) -> float:
        began = time.perf_counter()
        first_answer(address_of(self._running.public), f"/function/{name}")
        taken = time.perf_counter() - began
        starts = f'faas_cold_starts_total{{function="{name}",path="{path}"}} 1.0'
        if starts not in self._metrics():
            raise RuntimeError(f"{name} did not start on the path {path}")
        return taken * 1000

    def from_stem(self, image: str, base: str, **spec: Any) -> float:
        """With a stem of `base` ready beforehand; the first one is made because something needed it."""
        if not self._stems(base):
            self._needed(image, spec)
        self._until(lambda: self._stems(base) > 0, f"there is no stem of {base}")
        time.sleep(PAUSE_SECONDS)
        return self.first(image, "stem", **spec)

    def _needed(self, image: str, spec: dict[str, Any]) -> None:
        name = self._deployed(image, spec)
        first_answer(address_of(self._running.public), f"/function/{name}")
        machine.delete(self._running, name)

    def _stems(self, base: str) -> int:
        rows = [row for row in self._metrics().splitlines() if row.startswith(f'faas_stems{{runtime="{base}:')]
        return sum(int(float(row.split()[-1])) for row in rows)

    def _metrics(self) -> str:
        return self._running.get("/metrics", api=True).text


def settled(method: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        value = method()
        time.sleep(PAUSE_SECONDS)
        return value

    return run


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        engine = Engine()
        stack.callback(engine.close)
        plain = ("--stems", "0", "--precreated", "0")
        servers = Servers(
            stack.enter_context(machine.server("--driver", "oci", *plain)),
            stack.enter_context(machine.server("--driver", "oci")),
            stack.enter_context(machine.server("--driver", "oci", "--stems", "0")),
            stack.enter_context(machine.server("--driver", "docker", *plain)),
        )
        found = interleaved(_methods(work, engine, servers), rounds or ROUNDS)
    rows = {name: Row(name, values) for name, values in found.items()}
    docker, static = rows["Python: docker run -d"], rows["C: docker run -d"]
    figures = [
        ratio(
            "Python hello from a stem ÷ docker run -d to its first answer",
            rows["Python: faas stem"],
            docker,
            0.05,
            0.02,
        ),
        ratio(
            "Node hello from a stem ÷ docker run -d to its first answer",
            rows["Node: faas stem"],
            rows["Node: docker run -d"],
            0.05,
            0.02,
        ),
        ratio(
            "Python, pre-created ÷ docker run -d to its first answer",
            rows["Python: faas pre-created"],
            docker,
            0.15,
            0.06,
        ),
        ratio("C, pre-created ÷ docker run -d to its first answer", rows["C: faas pre-created"], static, 0.15, 0.06),
        ratio("Python hello from a stem ÷ runc run of exit", rows["Python: faas stem"], rows["exit: runc run"], 0.2),
        ratio("Node hello from a stem ÷ runc run of exit", rows["Node: faas stem"], rows["exit: runc run"], 0.2),
        ratio("Python hello ÷ docker run -d to its first answer", rows["Python: faas oci"], docker, 0.5, 0.2),
        ratio(
            "Node hello ÷ docker run -d to its first answer", rows["Node: faas oci"], rows["Node: docker run -d"], 0.3
        ),
        ratio("C over http ÷ docker run -d to its first answer", rows["C: faas oci"], static, 0.3, 0.2),
        ratio("Python hello ÷ docker run --rm of exit", rows["Python: faas oci"], rows["exit: docker run --rm"], 0.5),
        ratio("C over http ÷ runc run of exit", rows["C: faas oci"], rows["exit: runc run"], 2.0),
        ratio(
            "docker driver ÷ Engine create + start", rows["C: faas docker"], rows["C: Engine create + start"], 1.25, 1.1
        ),
    ]
    return Report("cold", METHOD, list(rows.values()), figures)


@dataclass(frozen=True, slots=True)
class Servers:
    plain: RunningServer  # oci, nothing ready ahead
    stems: RunningServer
    ahead: RunningServer
    docker: RunningServer


def _methods(work: Path, engine: Engine, servers: Servers) -> dict[str, Callable[[], float]]:
    mark, programs = engine.mark, machine.PROGRAMS
    oci, by_docker = Functions(servers.plain, f"{mark}-o"), Functions(servers.docker, f"{mark}-d")
    stems, ahead = Functions(servers.stems, f"{mark}-s"), Functions(servers.ahead, f"{mark}-a")
    samples = machine.SAMPLES
    python_folder = machine.folder_of(
        work, f"{mark}-py", _toml(PYTHON), app=samples / "hello" / "app.py", server=programs / "server.py"
    )
    node_folder = machine.folder_of(
        work, f"{mark}-js", _toml(NODE), index=samples / "hello-node" / "index.js", server=programs / "server.js"
    )
    python, node = oci.push(python_folder), oci.push(node_folder)
    python_ahead = ahead.push(python_folder)
    stem_python, stem_node = stems.push(python_folder), stems.push(node_folder)
    (work / "static").mkdir()
    program = machine.compiled(work / "static")
    static = engine.build(program)
    image = machine.folder_of(work, f"{mark}-c", 'interface = "http"')
    in_oci, in_ahead, in_docker = (functions.push(image, "--image", static) for functions in (oci, ahead, by_docker))
    python_image, node_image = (engine.pull(servers.plain, reference) for reference in (python, node))
    server_py = ("/usr/bin/python3", "-I", "-S", "-B", "/var/task/server.py")
    server_js = ("/usr/bin/node", "/var/task/server.js")
    runc = Runc(work, program)
    methods: dict[str, Callable[[], float]] = {
        "Python: faas oci": lambda: oci.first(python, **PYTHON, interface="lambda"),
        "Python: faas stem": lambda: stems.from_stem(stem_python, "python", **PYTHON, interface="lambda"),
        "Python: faas pre-created": lambda: ahead.precreated(python_ahead, **PYTHON, interface="lambda"),
        "Python: docker run -d": lambda: engine.run_to_answer(python_image, *server_py),
        "Node: faas oci": lambda: oci.first(node, **NODE, interface="lambda"),
        "Node: faas stem": lambda: stems.from_stem(stem_node, "node", **NODE, interface="lambda"),
        "Node: docker run -d": lambda: engine.run_to_answer(node_image, *server_js),
        "C: faas oci": lambda: oci.first(in_oci, interface="http"),
        "C: faas pre-created": lambda: ahead.precreated(in_ahead, interface="http"),
        "C: docker run -d": lambda: engine.run_to_answer(static),
        "C: faas docker": lambda: _rested(engine, servers.docker, lambda: by_docker.first(in_docker, interface="http")),
        "C: Engine create + start": lambda: engine.start_to_answer(static),
        "exit: docker run --rm": lambda: engine.run_to_exit(static),
        "exit: runc run": runc.run_to_exit,
    }
    return {name: settled(method) for name, method in methods.items()}


def _rested(engine: Engine, running: RunningServer, method: Callable[[], float]) -> float:
    """What the driver makes again behind a start runs into no other measurement."""
    engine.rested(running.id)
    taken = method()
    engine.rested(running.id)
    return taken


def _toml(spec: dict[str, str]) -> str:
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in spec.items())
