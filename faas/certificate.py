"""`Certificate`: what a file of certificates says to those who connect, and to those who compare."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True, slots=True)
class Certificate:
    """`pem`: the server's own; `pin`: its key, as curl's --pinnedpubkey takes it; `until`: Unix seconds.

    `ca`: the CA behind it (PEM), where the file has one that signed itself, else "".
    """

    pem: str
    pin: str
    ca: str
    until: float

    @classmethod
    def read(cls, pem: bytes) -> Certificate:
        """Of a PEM file, in which a key may be too. Raises ValueError."""
        first, *behind = x509.load_pem_x509_certificates(pem)
        key = first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pin = "sha256//" + base64.b64encode(hashlib.sha256(key).digest()).decode()
        ca = next((one for one in reversed([first, *behind]) if one.subject == one.issuer), None)
        return cls(_text(first), pin, _text(ca) if ca else "", first.not_valid_after_utc.timestamp())


def fingerprint(pem: str) -> str:
    """`sha256:…` of the first certificate, as people compare it. Raises ValueError."""
    der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
    return "sha256:" + hashlib.sha256(der).hexdigest()


def alone(pem: str) -> str:
    """The first certificate without what stands beside it: the only one that its `fingerprint` speaks of. Raises
    ValueError."""
    return _text(x509.load_pem_x509_certificate(pem.encode()))


def _text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
