"""`LocalCa`: an authority of this server's own, for machines that are given its certificate (RFC 5280).

It may vouch for the names it was made for and for private addresses alone (name constraints): whoever installs it for a
whole machine trusts it for nothing else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from faas.tls import covers

CA_LIFE = timedelta(days=3650)
LIFE = timedelta(days=365)  # clients refuse more than 398 days
DUE = timedelta(days=120)  # before the end: then it is issued anew
SKEW = timedelta(hours=1)  # a client's clock may be behind
COMMON_NAME_MOST = 64
PRIVATE = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "::1/128", "fc00::/7", "fe80::/10",
)  # fmt: skip


def ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses, in their order."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(one.value).lower() for one in found if isinstance(one, x509.DNSName | x509.IPAddress)]


def holds_for(certificate: x509.Certificate, name: str) -> bool:
    """Whether a client that asks for `name` takes it."""
    return any(covers(one, name) for one in names_of(certificate))


@dataclass(frozen=True, slots=True)
class LocalCa:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, others: Iterable[str], now: datetime) -> LocalCa:
        """For the host `name`, everything below it, and `others`."""
        key = ec.generate_private_key(ec.SECP256R1())
        who = _subject(f"faas CA of {name}")
        bases = dict.fromkeys(one.removeprefix("*.") for one in (name, *others, "localhost"))
        permitted = [_subtree(one) for one in bases]
        permitted += [x509.IPAddress(ipaddress.ip_network(network)) for network in PRIVATE]
        builder = _builder(who, who, key.public_key(), now, now + CA_LIFE)
        for extension in (
            x509.BasicConstraints(ca=True, path_length=0),
            _usage(signs_certificates=True),
            x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None),
        ):
            builder = builder.add_extension(extension, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pem: bytes) -> LocalCa:
        """Of `dump`. Raises ValueError."""
        key = load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("it has no key of ours")
        return cls(x509.load_pem_x509_certificate(pem), key)

    def dump(self) -> bytes:
        """Key and certificate: for root alone."""
        return _private(self.key) + self.pem

    @property
    def pem(self) -> bytes:
        """The certificate, for everybody."""
        return self.certificate.public_bytes(Encoding.PEM)

    def may_name(self, name: str) -> bool:
        """Whether its constraints let it vouch for a host name or an address."""
        found = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        trees = found.permitted_subtrees or ()
        if (address := ip_address(name)) is not None:
            networks = (tree.value for tree in trees if isinstance(tree, x509.IPAddress))
            return any(address in n for n in networks if isinstance(n, ipaddress.IPv4Network | ipaddress.IPv6Network))
        bare = name.removeprefix("*.")
        bases = (tree.value for tree in trees if isinstance(tree, x509.DNSName))
        return any(bare == base or bare.endswith("." + base) for base in bases)

    def issue(self, names: Sequence[str], now: datetime) -> bytes:
        """A new key and its certificate for `names`, the first of them the host's, and the CA's own behind them."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + LIFE, self.certificate.not_valid_after_utc)
        # No host's name here: where no other is given, constraints are held against this one (RFC 6125, 6.4.4).
        builder = _builder(_subject(f"faas at {names[0]}"), self.certificate.subject, key.public_key(), now, until)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension, critical in (
            (x509.SubjectAlternativeName([_general(name) for name in names]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (authority, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(self.key, hashes.SHA256())
        return _private(key) + certificate.public_bytes(Encoding.PEM) + self.pem

    def has_issued(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc - now < DUE


def same_key(certificate: x509.Certificate, key_pem: bytes) -> bool:
    """Raises ValueError or TypeError where it is no key, or an encrypted one."""
    own = load_pem_private_key(key_pem, None).public_key()
    return _public(own) == _public(certificate.public_key())


def utc_now() -> datetime:
    return datetime.now(UTC)


def _public(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        raise ValueError("a kind of key that TLS has no use for")
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_MOST])])


def _general(name: str) -> x509.GeneralName:
    address = ip_address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _subtree(name: str) -> x509.GeneralName:
    address = ip_address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(ipaddress.ip_network(address))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
