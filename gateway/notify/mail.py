"""Messages as e-mail, by SMTP (RFC 5321) with TLS. The only module that imports aiosmtplib."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import format_datetime

import aiosmtplib

from faas.addresses import public_socket
from faas.errors import Unavailable
from faas.secret import Secret
from gateway.notify.message import Message
from gateway.notify.target import Mail, Security, trusting

TOTAL_SECONDS = 30.0
SAID_CHARACTERS = 200  # of a server's refusal


async def send(
    mail: Mail,
    password: Secret | None,
    message: Message,
    now: float,
    *,
    allow_private: bool,
    seconds: float = TOTAL_SECONDS,
) -> None:
    """One try, within `seconds`. Raises Unavailable where not every receiver's server has taken it."""
    try:
        async with asyncio.timeout(seconds):
            context = await asyncio.to_thread(trusting, mail.ca)  # a machine's own list takes some ten ms to read
            connected = await _connected(mail.host, mail.port, allow_private)
            await _spoken(mail, password, connected, context, written(mail, message, now))
    except TimeoutError:
        raise Unavailable(f"the mail server {mail.host} did not answer within {seconds:g} s") from None
    except aiosmtplib.SMTPRecipientsRefused as error:
        refused = ", ".join(one.recipient for one in error.recipients)
        raise Unavailable(f"the mail server {mail.host} refuses {refused}") from None
    except aiosmtplib.SMTPResponseException as error:
        said = "".join(one for one in error.message if one.isprintable())[:SAID_CHARACTERS]
        what = "the login" if isinstance(error, aiosmtplib.SMTPAuthenticationError) else "the message"
        raise Unavailable(f"the mail server {mail.host} refuses {what}: {error.code} {said}") from None
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:
        raise Unavailable(f"the mail server {mail.host} cannot be used: {type(error).__name__}: {error}") from None


def written(mail: Mail, message: Message, now: float) -> EmailMessage:
    made = EmailMessage(policy=WIRE)
    made["From"] = mail.sender
    made["To"] = ", ".join(mail.to)
    made["Subject"] = message.title
    made["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    made["Message-ID"] = f"<{message.id}@{mail.sender.rpartition('@')[2]}>"
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence is answered to it
    made.set_content(message.text)
    return made


async def _connected(host: str, port: int, allow_private: bool) -> socket.socket:
    """To the first of the host's addresses that may be called and answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    last: OSError = OSError(f"{host} has no address")
    for info in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        opened = None
        try:
            opened = socket.socket(*info[:3]) if allow_private else public_socket(info)
            opened.setblocking(False)
            await loop.sock_connect(opened, info[4])
        except OSError as error:
            last = error
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        else:
            return opened
        if opened is not None:
            opened.close()
    raise last


async def _spoken(
    mail: Mail, password: Secret | None, connected: socket.socket, context: ssl.SSLContext, made: EmailMessage
) -> None:
    """The connection is the client's from here on, and closed by it."""
    client = aiosmtplib.SMTP(
        hostname=mail.host,
        sock=connected,
        use_tls=mail.security is Security.TLS,
        start_tls=mail.security is Security.STARTTLS,
        tls_context=context,
        username=mail.user or None,
        password=password.reveal() if password is not None else None,
        local_hostname=mail.sender.rpartition("@")[2],
        timeout=TOTAL_SECONDS,
    )
    try:
        await client.connect()
        refused, _ = await client.send_message(made, sender=mail.sender, recipients=list(mail.to))
        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
            await client.quit()  # it has been taken, whatever is said to this
    finally:
        client.close()
    if refused:
        raise Unavailable(f"the mail server {mail.host} refuses {', '.join(refused)}; the others have it")
