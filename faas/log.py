"""The server's own log: one record a line, as text or JSON; control characters cannot forge a second line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


def one_line(text: str) -> str:
    """`text` with everything that could break or colour a line made visible."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {k}={v}" for k, v in _extras(record).items())
        line = one_line(f"{record.levelname.lower():7} {record.name}: {record.getMessage()}{extras}")
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{stamp}.{int(record.msecs):03d} {line}{trace}"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(log_format: str, level: int = logging.INFO) -> None:
    """Send all records to stderr. Called by composition roots only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # aiohttp prints a traceback with the client's bytes for every malformed request; the 400 is enough.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
