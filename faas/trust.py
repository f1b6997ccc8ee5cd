"""`Trust`: whom a client takes for its server."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from faas.errors import InvalidInput, Unavailable

HINT = (
    "on the server `faas tls show` prints the CA's fingerprint; then here: "
    "faas login {url} --ca-fingerprint sha256:… (or --ca FILE)"
)


class Untrusted(Unavailable):
    """The server's certificate is not trusted here."""

    code = "Untrusted"


@dataclass(frozen=True, slots=True)
class Trust:
    """`pem`: the CA's certificate; "": the CAs that this machine trusts. `exactly`: whoever has the key of that very
    certificate, by whatever name it is called: what a server left for its own host."""

    pem: str = ""
    exactly: bool = False

    def context(self) -> ssl.SSLContext | bool:
        """As aiohttp takes it. Raises InvalidInput."""
        if not self.pem:
            return True
        try:
            if not self.exactly:
                return ssl.create_default_context(cadata=self.pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cadata=self.pem)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInput(
                f"the CA's certificate cannot be used: {error}", hint="log in anew: faas login"
            ) from None
        return context


def unverified() -> ssl.SSLContext:
    """For what is compared with a fingerprint afterwards, and for nothing that is secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def untrusted(url: str, error: Exception) -> Untrusted:
    """In words, for what the TLS library said."""
    reason = getattr(error, "certificate_error", error)
    words = getattr(reason, "verify_message", "") or str(reason)
    return Untrusted(f"the certificate of {url} is not trusted here: {words}", hint=HINT.format(url=url))
