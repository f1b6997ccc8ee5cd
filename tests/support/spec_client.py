"""A client that does what the distribution-spec says a client does, and nothing else.

It shows no credentials until it is asked for them, then what the challenge asks for: Basic, or a token for the scope
that the challenge names, kept per repository and kind of request.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess

OCTETS = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Answer:
    status: int
    pairs: tuple[tuple[str, str], ...]
    body: bytes

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        """The header's only value; "" where there is none."""
        values = self.every(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else ""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The spec's error code; the body must be the spec's error object."""
        assert self["Content-Type"].partition(";")[0] == "application/json", self
        (error,) = self.json()["errors"]
        assert set(error) <= {"code", "message", "detail"}
        assert re.fullmatch("[A-Z_]+", error["code"])
        return str(error["code"])


@dataclass
class SpecClient:
    """It has the administrator's credentials to show."""

    registry: RegistryProcess
    _shown: dict[tuple[str, str], str] = field(default_factory=dict)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | list[str]] | None = None,
    ) -> Answer:
        """`path` as it is written, or a `Location`, to which `params` are added."""
        where = urlsplit(urljoin(f"http://{self.registry.host}/", path))
        query = "&".join(filter(None, (where.query, urlencode(params or {}, doseq=True))))
        target = where.path + (f"?{query}" if query else "")
        kind = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(method, "push")
        key = (target.partition("/blobs/")[0].partition("/manifests/")[0], kind)
        sent = dict(headers or {})
        if key in self._shown:
            sent["Authorization"] = self._shown[key]
        answer = self._once(method, target, body, sent)
        if answer.status == 401:
            sent["Authorization"] = self._shown[key] = self._authorization(answer["WWW-Authenticate"])
            answer = self._once(method, target, body, sent)
        return answer

    def _once(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.registry.host, timeout=20)
        try:
            connection.request(method, target, body, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, tuple(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def _authorization(self, challenge: str) -> str:
        basic = "Basic " + base64.b64encode(f"admin:{self.registry.token}".encode()).decode()
        if challenge.startswith("Basic "):
            return basic
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        query = urlencode({k: v for k, v in fields.items() if k in ("service", "scope")}, quote_via=quote)
        given = self._once("GET", f"{urlsplit(fields['realm']).path}?{query}", None, {"Authorization": basic})
        assert given.status == 200, given
        return f"Bearer {given.json()['token']}"

    # --- what the spec calls pushing and pulling

    def begin(self, repository: str, **params: str) -> str:
        """A new session's location."""
        answer = self.call("POST", f"/v2/{repository}/blobs/uploads/", headers={"Content-Length": "0"}, params=params)
        assert (answer.status, answer.body) == (202, b""), answer
        return answer["Location"]

    def blob(self, repository: str, data: bytes, algorithm: str = "sha256") -> str:
        """Push in one POST; its digest."""
        digest = str(Digest.of(data, algorithm))
        path = f"/v2/{repository}/blobs/uploads/"
        answer = self.call("POST", path, data, OCTETS, {"digest": digest})
        assert answer.status == 201, answer
        return digest

    def manifest(self, repository: str, reference: str, raw: bytes, media_type: str, **params: list[str]) -> Answer:
        path = f"/v2/{repository}/manifests/{reference}"
        return self.call("PUT", path, raw, {"Content-Type": media_type}, params)
