"""What a function is told of a request's header fields."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.headers import inbound


@pytest.mark.parametrize("name", ["X_Forwarded_For", "X-Forwarded_For", "x_request_id", "_", "Content_Length", "a_b"])
def test_a_name_with_an_underscore_is_dropped_because_wsgi_would_take_it_for_another(name: str) -> None:
    request = make_mocked_request("GET", "/", CIMultiDict({"Host": "a", "X-Kept": "1", name: "6.6.6.6"}))
    fields = inbound(request, "r1")
    assert "6.6.6.6" not in dict(fields).values()
    assert ("x-kept", "1") in fields
    as_wsgi = [key.upper().replace("-", "_") for key, _ in fields]
    assert len(set(as_wsgi)) == len(as_wsgi)
