"""The CA of this server's own: it ends one day, and clients need the next one in their own time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from faas.checkup.finding import Finding, finding
from faas.tls_folder import TlsFolder

SOON_SECONDS = 398 * 86_400.0  # by then its certificates are shorter than others' longest


def own_ca(data: Path, now: float | None = None) -> Iterator[Finding]:
    """Of the server on the folder `data`, where it has one and we may read it."""
    now = time.time() if now is None else now
    try:
        pem = TlsFolder(data / "tls").ca_file.read_bytes()
        end = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return
    words = f"until {datetime.fromtimestamp(end, UTC):%Y-%m-%d}, {max(0, int((end - now) / 86_400))} days"
    fix = "faas tls set NAME --new-ca, and give clients the new one"
    yield finding("own ca", end - now > SOON_SECONDS, words, fix, needed=end <= now)
