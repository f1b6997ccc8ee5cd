"""How many processes serve the public port: for those who ask the control API how the server is."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from faas.checkup.finding import Finding, finding


class Living(Protocol):
    """`lanes`: so many lane processes there should be; `living`: so many serve."""

    @property
    def lanes(self) -> int: ...

    @property
    def living(self) -> int: ...


LIVING: web.AppKey[Living] = web.AppKey("living")


def words(app: web.Application) -> str:
    """Empty where there is one process."""
    found = app.get(LIVING)
    return "" if found is None else f"{found.living} of {found.lanes} lane processes"


def findings(app: web.Application) -> list[Finding]:
    found = app.get(LIVING)
    if found is None:
        return []
    fix = "one that ended is started anew; see the server's log"
    return [finding("lanes", found.living == found.lanes, f"{words(app)} live", fix, needed=False)]
