"""Trace ids in AWS's form, for invocations whose caller sent none."""

from __future__ import annotations

import secrets
import time


def new_trace_id() -> str:
    """`Root=1-…;Parent=…;Sampled=0`, as Lambda makes one for a request that is not traced (X-Ray's tracing header)."""
    digits = secrets.token_hex(20)
    return f"Root=1-{int(time.time()):08x}-{digits[:24]};Parent={digits[24:]};Sampled=0"
