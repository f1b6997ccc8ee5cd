"""What one connection, and many of them, may cost."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest

from faas.web import RUNNER_OPTIONS
from tests.support.both_ways import both_ways as both_ways
from tests.support.control import until
from tests.support.data_path import application
from tests.support.raw_http import serving, talk
from tests.support.smuggling import GET
from tests.unit.test_public import hello


async def test_a_request_line_may_have_16_kb(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        long = await talk(port, b"GET /function/hello?" + b"a" * 16_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", seconds=0.3)
        longer = await talk(port, b"GET /function/hello?" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", seconds=3)
    assert long.startswith(b"HTTP/1.1 200")
    assert longer[9:12] == b"400"


async def test_out_of_descriptors_the_server_goes_on_and_answers_again() -> None:
    """The loop is the product's: asyncio's own would stop accepting for a second."""
    program = """if True:
        import asyncio, resource, uvloop
        from aiohttp import web
        from faas.web import RUNNER_OPTIONS
        async def main():
            runner = web.AppRunner(web.Application(), **RUNNER_OPTIONS)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            print(runner.addresses[0][1], flush=True)
            await asyncio.sleep(60)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        uvloop.run(main())"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        async with asyncio.timeout(10):  # those beyond the limit are closed; what is open is served
            assert await many[-1][0].read() == b""
        many[0][1].write(GET + b"Host: a\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await many[0][0].readline()).startswith(b"HTTP/1.1 404")
        for _, writer in many:
            writer.close()

        async def answers() -> bool:
            return (await talk(port, GET + b"Host: a\r\n\r\n", seconds=1)).startswith(b"HTTP/1.1 404")

        await until(answers)  # it may take in those that have gone and the next one in one turn
    finally:
        process.kill()
        await process.wait()
