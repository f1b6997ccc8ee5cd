"""The control API does what its description says, whatever is asked of it: Schemathesis, against real listeners."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.control import Control, control

# That what the description lets through is taken, and what it forbids refused, are Schemathesis' other checks: the
# first cannot hold (names must be known), the second cannot for a name in a path, where `faas.web` answers 404.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = 300 if SOAK else 1
PHASES = "coverage,fuzzing,stateful" if SOAK else "coverage,fuzzing"
SECONDS = 1500 if SOAK else 90
DECLARED = (501, 502, 503, 504, 507)


async def schemathesis(server: Control, seed: int, folder: Path) -> tuple[int, str]:
    """Its exit code and what it says."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    settings = folder / "schemathesis.toml"
    allowed = ", ".join(f'"{status}"' for status in ("2XX", "3XX", "4XX", *DECLARED))
    settings.write_text(f"[checks.not_a_server_error]\nexpected-statuses = [{allowed}]\n")
    process = await asyncio.create_subprocess_exec(
        *(program, "--config-file", str(settings), "run", f"{server.api}/v1/openapi.json", "--checks", CHECKS),
        *("--phases", PHASES, "--max-examples", str(EXAMPLES), "--seed", str(seed), "--request-timeout", "5"),
        *("--header", f"Authorization: Bearer {server.token}", "--generation-database", "none", "--no-color"),
        *("--continue-on-failure", "--warnings", "off"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")


@pytest.mark.timeout(SECONDS + 30)
async def test_every_operation_answers_as_it_is_described(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print("seed", seed)
    data, folder = tmp_path / "data", tmp_path / "fuzz"
    data.mkdir()
    folder.mkdir()
    async with control(data) as server:
        await server.deploy("hello")
        await server.deploy("world", namespace="shop")
        described = (await server.call("GET", "/v1/openapi.json")).json()
        operations = sum(len(verbs) for verbs in described["paths"].values())
        code, said = await schemathesis(server, seed, folder)
        assert (await server.call("GET", "/healthz")).status == 200
    assert code == 0, said[-12_000:]
    assert f"Tested: {operations - 1}" in said, said  # all but the description itself
    assert not [record for record in caplog.records if record.exc_info], "a failure of ours was logged"
