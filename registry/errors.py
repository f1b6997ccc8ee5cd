"""The distribution-spec's errors ("Error Codes"): one class, one table, one JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# code -> (status, the spec's words)
CODES: dict[str, tuple[int, str]] = {
    "BLOB_UNKNOWN": (404, "blob unknown to registry"),
    "BLOB_UPLOAD_INVALID": (416, "blob upload invalid"),
    "BLOB_UPLOAD_UNKNOWN": (404, "blob upload unknown to registry"),
    "DIGEST_INVALID": (400, "provided digest did not match uploaded content"),
    "MANIFEST_BLOB_UNKNOWN": (400, "manifest references a manifest or blob unknown to registry"),
    "MANIFEST_INVALID": (400, "manifest invalid"),
    "MANIFEST_UNKNOWN": (404, "manifest unknown to registry"),
    "NAME_INVALID": (400, "invalid repository name"),
    "NAME_UNKNOWN": (404, "repository name not known to registry"),
    "SIZE_INVALID": (400, "provided length did not match content length"),
    "UNAUTHORIZED": (401, "authentication required"),
    "DENIED": (403, "requested access to the resource is denied"),
    "UNSUPPORTED": (405, "the operation is unsupported"),
    "TOOMANYREQUESTS": (429, "too many requests"),
}


@dataclass
class RegistryError(Exception):
    """An answer of the registry that is no success. `status` overrides the code's usual one."""

    code: str
    message: str = ""
    detail: Any = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        status, words = CODES[self.code]
        self.status = self.status or status
        known = f"{words}: {self.detail}" if isinstance(self.detail, str) else words  # most clients hide the detail
        self.message = self.message or known

    def body(self) -> dict[str, Any]:
        entry = {"code": self.code, "message": self.message}
        if self.detail is not None:
            entry["detail"] = self.detail
        return {"errors": [entry]}
