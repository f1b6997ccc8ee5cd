"""A real SMTP server (aiosmtpd) on loopback, in the test's own loop."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.certificates import certify

USER, PASSWORD = "mailer", "the-mailers-password"


@dataclass
class MailServer:
    """`ca`: its certificate, which signed itself, as PEM. `came`: what it has taken; `refused`: receivers it has not.
    `over_tls`: of each message, whether it came encrypted."""

    port: int
    ca: str
    refused: set[str] = field(default_factory=set)
    came: list[tuple[list[str], Message]] = field(default_factory=list)
    over_tls: list[bool] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 there is nobody of that name"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        self.came.append((list(envelope.rcpt_tos), message_from_bytes(content, policy=default)))
        self.over_tls.append(session.ssl is not None or self.implicit)
        return "250 it is here"

    implicit: bool = False

    def check(self, server: SMTP, session: Session, envelope: Envelope, how: str, given: object) -> AuthResult:
        assert isinstance(given, LoginPassword)
        self.logins.append(given.login.decode())
        right = (given.login.decode(), given.password.decode()) == (USER, PASSWORD)
        return AuthResult(success=right, handled=right)  # else the server says 535


@asynccontextmanager
async def mail_server(folder: Path, security: str = "starttls", *, login: bool = False) -> AsyncIterator[MailServer]:
    """`security` as a target names it. With `login` only `USER` with `PASSWORD` may send."""
    cert, key = certify(folder, "mail", "127.0.0.1", "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    made = MailServer(0, cert.read_text(), implicit=security == "tls")

    def serve() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not know that all of its connection is TLS
            return SMTP(
                made,
                hostname="mail.example.com",
                tls_context=context if security == "starttls" else None,
                require_starttls=security == "starttls",
                auth_required=login,
                auth_require_tls=security == "starttls",
                authenticator=made.check if login else None,
                loop=asyncio.get_running_loop(),
            )

    wrapped = context if security == "tls" else None
    server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0, ssl=wrapped)
    try:
        made.port = server.sockets[0].getsockname()[1]
        yield made
    finally:
        server.close()
        await server.wait_closed()
