"""How every client learns to log in: from the answer to a request without credentials."""

from __future__ import annotations

import base64

import pytest

from tests.integration.clients.conftest import LOGIN_ASKED
from tests.support.recorded_registry import RecordedRegistry


@LOGIN_ASKED
@pytest.mark.parametrize("path", ["/v2/", "/v2/_catalog", "/v2/x/tags/list", f"/v2/x/blobs/sha256:{'0' * 64}"])
def test_without_credentials_nothing_but_the_challenge(registry: RecordedRegistry, path: str, stranger: str) -> None:
    scheme = {"basic": "Basic ", "token": "Bearer "}[registry.auth]
    wrong = base64.b64encode(f"{stranger}:wrong".encode()).decode()
    for headers in ({}, {"Authorization": f"Basic {wrong}"}):
        reply = registry.call("GET", path, headers=headers, login=False)
        assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
        assert reply.headers["WWW-Authenticate"].startswith(scheme)
