"""`Finding`: one line of `faas doctor`."""

from __future__ import annotations

from dataclasses import dataclass

OK, MISSING, NOTE = "ok", "missing", "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """`state` is ok, missing (needed, and not there) or note (not there, and not needed); `fix` is what to do."""

    check: str
    state: str
    found: str
    fix: str = ""


def finding(check: str, fine: bool, found: str, fix: str, *, needed: bool = True) -> Finding:
    return Finding(check, OK if fine else MISSING if needed else NOTE, found, "" if fine else fix)
