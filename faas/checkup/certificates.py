"""The files that TLS listeners show: whether they can be read, fit each other, and hold for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from faas.checkup.finding import Finding, finding
from faas.local_ca import holds_for
from faas.tls import Pair

SOON_SECONDS = 21 * 86_400.0


def certificates(cert: str, key: str, folder: str, name: str, now: float | None = None) -> Iterator[Finding]:
    """Of the settings `tls_cert`, `tls_key`, `tls_certs`; `name`: the host that others call, "" where none is set."""
    if not cert:
        yield finding("tls", True, "none: the listeners are plain", "")
        return
    yield from pair("tls", Pair("", Path(cert), Path(key)), name, now)
    for file in sorted(Path(folder).glob("*.crt")) if folder else ():
        host = file.stem.replace("_.", "*.", 1) if file.stem.startswith("_.") else file.stem
        yield from pair(f"tls {host}", Pair(host, file, file.with_suffix(".key")), "", now)


def pair(check: str, files: Pair, name: str, now: float | None = None) -> Iterator[Finding]:
    """One line: the first thing that is wrong with it, or until when it holds."""
    now = time.time() if now is None else now
    try:
        certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
        files.read()  # the key is there, is not encrypted, and is this certificate's
    except OSError as error:
        fix = "look at the path and at who may read it"
        yield finding(check, False, f"{error.filename or files.cert}: {error.strerror}", fix)
        return
    except ValueError as error:
        fix = "a certificate and its own key, as PEM, without a password"
        yield finding(check, False, f"{files.cert} with {files.key}: {error}", fix)
        return
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    words = f"until {datetime.fromtimestamp(end, UTC):%Y-%m-%d}, {max(0, int((end - now) / 86_400))} days"
    renew = "get the next one, and write it over this one: faas tls"
    if now > end:
        yield finding(check, False, f"it has ended: {words}", renew)
    elif now < begin:
        words = f"it holds only from {datetime.fromtimestamp(begin, UTC):%Y-%m-%d} on"
        yield finding(check, False, words, "look at the clock")
    elif name and not holds_for(certificate, name):
        yield finding(check, False, f"it is not {name}'s", "a certificate that names the host of public_url")
    else:
        yield finding(check, end - now > SOON_SECONDS, words, renew, needed=False)
