"""A pipe's reading end is closed once, by whichever loop: never a file that has got its number since."""

from __future__ import annotations

import asyncio
import os

import pytest
import uvloop

from worker.pipe_end import PipeEnd


def test_it_closes_its_pipe_and_once() -> None:
    reading, writing = os.pipe()
    end = PipeEnd(reading)
    end.close()
    with pytest.raises(BrokenPipeError):
        os.write(writing, b"x")
    end.close()
    os.close(writing)


def test_it_does_not_close_what_has_its_number_since() -> None:
    reading, writing = os.pipe()
    end = PipeEnd(reading)
    os.close(reading)  # as uvloop does
    null = os.open(os.devnull, os.O_RDONLY)
    other = os.dup2(null, reading)
    end.close()
    os.fstat(other)
    for descriptor in {null, other, writing}:
        os.close(descriptor)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_both_loops_read_it_to_its_end_and_close_it(factory: type) -> None:
    async def read() -> None:
        reading, writing = os.pipe()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), PipeEnd(reading))
        os.write(writing, b"line")
        os.close(writing)
        assert await reader.read() == b"line"
        transport.close()
        await asyncio.sleep(0.01)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(reading)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(read())
