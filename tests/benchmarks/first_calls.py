"""First calls: many functions that never ran, called once each; and what of a real function's first answer is ours."""

from __future__ import annotations

import http.client
import itertools
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.client import address_of, first_answer
from tests.benchmarks.measure import Figure, Report, Row
from tests.benchmarks.partners import Engine
from tests.support.server import RunningServer
from tests.support.steady import percentile

FUNCTIONS = 100
IMAGES = 4
DOCKER_EVERY = 10  # calls between two of `docker run`
REAL_ROUNDS = 15
PAUSE_SECONDS = 0.1
FASTAPI = "fastapi==0.115.6"
METHOD = (
    f"Functions from {IMAGES} images, --rounds of them, all deployed without a check before the first call; then one"
    f" call each, {PAUSE_SECONDS * 1000:.0f} ms apart, whatever start each gets: default settings, outbound, 128 MB."
    f" connect → whole answer. Beside every {DOCKER_EVERY}th, `docker run -d -p` of the same image with a bare-socket"
    " server, asked each ms. Real functions: a new one each round; its own part is what it measured inside: imports,"
    " its module's code, and the handler; ours is the rest."
)
PYTHON = {"runtime": "python", "handler": "app.handler", "interface": "lambda"}
HELLO = "WORD = 'word {number}'\n\ndef handler(event, context):\n    return {{'statusCode': 200, 'body': WORD}}\n"
THUMBNAIL = """
import time

BEGAN = time.perf_counter()
import thumbnail

IMPORTS = time.perf_counter() - BEGAN

def handler(event, context):
    began = time.perf_counter()
    answer = thumbnail.handler(event, context)
    answer["headers"]["X-Own-Seconds"] = str(IMPORTS + time.perf_counter() - began)
    return answer
"""
WEB = """
import time

BEGAN = time.perf_counter()
from fastapi import FastAPI

inner = FastAPI()

@inner.post("/")
def root():
    return {"hello": "world"}

IMPORTS = time.perf_counter() - BEGAN

async def app(scope, receive, send):
    began = time.perf_counter()

    async def told(message):
        if message["type"] == "http.response.start":
            own = str(IMPORTS + time.perf_counter() - began)
            message["headers"] = [*message["headers"], (b"x-own-seconds", own.encode())]
        await send(message)

    await inner(scope, receive, told)
"""


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        engine = Engine()
        stack.callback(engine.close)
        running = stack.enter_context(machine.server("--driver", "oci"))
        ours, docker, ways = _many(running, engine, work, rounds or FUNCTIONS)
        real = {
            "Pillow thumbnail": _real(running, _thumbnail(running, work), PYTHON, _photo()),
            "FastAPI": _real(running, _fastapi(running, work), {"runtime": "python", "app": "main:app"}, b""),
        }
    rows = [Row("first call", ours), Row("docker run -d to its first answer", docker)]
    figures = [
        Figure("first call ÷ docker run, p50", rows[0].p50 / rows[1].p50, 0.1, 0.03),
        Figure("first call ÷ docker run, p99", percentile(ours, 0.99) / percentile(docker, 0.99), 0.3, 0.1),
        Figure("first call, p99", percentile(ours, 0.99), unit="ms"),
        *(Figure(f"of them {way}", count, unit="") for way, count in sorted(ways.items())),
    ]
    for name, pairs in real.items():
        rows += [
            Row(f"{name}: first answer", [first for first, _ in pairs]),
            Row(f"{name}: its own part", [own for _, own in pairs]),
        ]
        figures.append(Figure(f"{name}: ours, p99", percentile([f - own for f, own in pairs], 0.99), 60, 20, "ms"))
    return Report("first_calls", METHOD, rows, figures)


def _many(
    running: RunningServer, engine: Engine, work: Path, count: int
) -> tuple[list[float], list[float], Counter[str]]:
    """(ms of each first call, ms of each docker run, how many started in which way)."""
    mark = engine.mark
    references, names = [], [f"{mark}-{number}" for number in range(count)]
    for number in range(IMAGES):
        folder = work / f"{mark}-image-{number}"
        folder.mkdir()
        (folder / "app.py").write_text(HELLO.format(number=number))
        (folder / "server.py").write_bytes((machine.PROGRAMS / "server.py").read_bytes())
        (folder / "faas.toml").write_text(
            f'name = "{folder.name}"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n'
        )
        running.faas("push", folder, "--no-check")
        references.append(str(machine.described(running, folder.name)["image"]))
    pulled = engine.pull(running, references[0])
    for name, reference in zip(names, itertools.cycle(references), strict=False):
        machine.deploy(running, name, reference, PYTHON)
    ours, docker = [], []
    for number, name in enumerate(names):
        began = time.perf_counter()
        first_answer(address_of(running.public), f"/function/{name}")
        ours.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_SECONDS)
        if number % DOCKER_EVERY == 0:
            docker.append(engine.run_to_answer(pulled, "/usr/bin/python3", "-I", "-S", "-B", "/var/task/server.py"))
            time.sleep(PAUSE_SECONDS)
    ways = _ways(running, names)
    for name in names:
        machine.delete(running, name)
    return ours, docker, ways


def _ways(running: RunningServer, names: list[str]) -> Counter[str]:
    """How the functions' instances started, by the server's own count."""
    counted: Counter[str] = Counter()
    for line in running.get("/metrics", api=True).text.splitlines():
        if line.startswith("faas_cold_starts_total{"):
            labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : line.index("}")].split(","))
            if labels["function"].strip('"') in names:
                counted[labels["path"].strip('"')] += round(float(line.split()[-1]))
    return counted


def _thumbnail(running: RunningServer, work: Path) -> str:
    folder = work / "real-thumbnail"
    folder.mkdir()
    sample = machine.SAMPLES / "thumbnail"
    (folder / "thumbnail.py").write_bytes((sample / "app.py").read_bytes())
    (folder / "requirements.txt").write_bytes((sample / "requirements.txt").read_bytes())
    (folder / "app.py").write_text(THUMBNAIL)
    return _pushed(running, folder, 'handler = "app.handler"')


def _fastapi(running: RunningServer, work: Path) -> str:
    folder = work / "real-fastapi"
    folder.mkdir()
    (folder / "requirements.txt").write_text(FASTAPI + "\n")
    (folder / "main.py").write_text(WEB)
    return _pushed(running, folder, 'app = "main:app"')


def _pushed(running: RunningServer, folder: Path, toml: str) -> str:
    (folder / "faas.toml").write_text(f'name = "{folder.name}"\nruntime = "python"\npublic = true\n{toml}\n')
    running.faas("push", folder, "--no-check")
    return str(machine.described(running, folder.name)["image"])


def _photo() -> bytes:
    return (machine.SAMPLES / "thumbnail" / "photo.jpg").read_bytes()


def _real(running: RunningServer, image: str, spec: dict[str, Any], body: bytes) -> list[tuple[float, float]]:
    """(ms of a new function's first answer, ms of its own part in it), round after round; the first is thrown away."""
    pairs = []
    for number in range(REAL_ROUNDS + 1):
        name = f"real-{number}"
        machine.deploy(running, name, image, {**spec, "memory": machine.FULL_CORE})
        began = time.perf_counter()
        connection = http.client.HTTPConnection(*address_of(running.public), timeout=60)
        connection.request("POST", f"/function/{name}/", body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        said = answer.read()
        taken = time.perf_counter() - began
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{name}: {answer.status} {said[:500]!r}")
        if number:
            pairs.append((taken * 1000, float(answer.headers["X-Own-Seconds"]) * 1000))
        machine.delete(running, name)
        time.sleep(PAUSE_SECONDS * 4)
    return pairs
