"""The short way of plain requests to public functions: bytes in, bytes out, no task and no coroutine on the way."""
