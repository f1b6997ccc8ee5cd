"""Which certificate a client is shown, and what happens when the files change; the way from http to https."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from cryptography import x509

from faas import doors as doors_module
from faas.doors import Doors
from faas.errors import InvalidInput
from faas.redirect import redirect_app
from faas.tls import Certificates, covers, server_context
from tests.support.certificates import certify
from tests.support.control import serving, until
from tests.support.raw_http import talk


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, str, Path]:
    """The pair for everybody, and a folder with one host's and one for all names of a domain."""
    cert, key = certify(tmp_path, "main", "main.example")
    folder = tmp_path / "names"
    folder.mkdir()
    certify(folder, "a.example.com", "a.example.com")
    certify(folder, "_.example.com", "*.example.com")
    return str(cert), str(key), folder


@asynccontextmanager
async def listening(certificates: Certificates) -> AsyncIterator[int]:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=request.scheme)

    app = web.Application()
    app.router.add_get("/", hello)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    doors = Doors({"api": app}, certificates.context)
    try:
        await doors.open({"api": listener})
        yield listener.getsockname()[1]
    finally:
        await doors.refuse()
        await doors.close()


async def shown(port: int, name: str | None, **limits: ssl.TLSVersion) -> str:
    """The first name in the certificate that a client who asks for `name` is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for limit, version in limits.items():
        setattr(context, limit, version)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name or "")
    peer = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    certificate = x509.load_der_x509_certificate(peer)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(names.get_values_for_type(x509.DNSName)[0])


@pytest.mark.parametrize(
    ("pattern", "name", "holds"),
    [("a.b.c", "a.b.c", True), ("*.b.c", "a.b.c", True), ("*.b.c", "x.a.b.c", False), ("*.b.c", "b.c", False),
     ("*.b.c", "*.b.c", True), ("*.c", "*.b.c", False), ("a.b.c", "*.b.c", False)],
)  # fmt: skip
def test_a_wildcard_is_one_label(pattern: str, name: str, holds: bool) -> None:
    assert covers(pattern, name) is holds


async def test_each_name_is_shown_its_own_certificate(made: tuple[str, str, Path]) -> None:
    cert, key, folder = made
    certificates = Certificates(cert, key, str(folder))
    assert certificates.names == ["*.example.com", "a.example.com"]
    expected = {
        "a.example.com": "a.example.com", "A.EXAMPLE.COM": "a.example.com", "b.example.com": "*.example.com",
        "c.b.example.com": "main.example", "example.com": "main.example", "other.test": "main.example",
    }  # fmt: skip
    async with listening(certificates) as port:
        assert {name: await shown(port, name) for name in expected} == expected
        assert await shown(port, None) == "main.example"


async def test_tls_1_1_is_refused(made: tuple[str, str, Path]) -> None:
    cert, key, folder = made
    context = Certificates(cert, key, str(folder)).context
    assert context.minimum_version == server_context().minimum_version == ssl.TLSVersion.TLSv1_2
    async with listening(Certificates(cert, key)) as port:
        assert await shown(port, "x", maximum_version=ssl.TLSVersion.TLSv1_2) == "main.example"


async def test_changed_files_are_shown_without_a_restart(made: tuple[str, str, Path]) -> None:
    cert, key, folder = made
    certificates = Certificates(cert, key, str(folder), look_seconds=0.02)
    await certificates.start()
    try:
        async with listening(certificates) as port:
            certify(Path(cert).parent, "main", "new.example")
            certify(folder, "d.test", "d.test")
            (folder / "a.example.com.crt").unlink()
            await until(lambda: certificates.names == ["*.example.com", "d.test"])

            async def anew() -> bool:
                return await shown(port, "x") == "new.example"

            await until(anew)
            assert await shown(port, "d.test") == "d.test"
            assert await shown(port, "a.example.com") == "*.example.com"
    finally:
        await certificates.stop()


async def test_a_broken_pair_is_refused_and_the_old_one_stays(
    made: tuple[str, str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key, folder = made
    certificates = Certificates(cert, key, str(folder))
    async with listening(certificates) as port:
        other = Path(cert).read_bytes()  # noqa: ASYNC240 - a test
        for broken in (b"", b"nonsense", other):  # the last one fits neither key nor name
            (folder / "a.example.com.crt").write_bytes(broken)
            caplog.clear()
            await certificates.reload()
            (said,) = [r.message for r in caplog.records if r.levelno == logging.ERROR]
            assert "a.example.com.crt cannot be used" in said
            assert "the old one stays" in said
            assert await shown(port, "a.example.com") == "a.example.com"
        certify(folder, "a.example.com", "elsewhere.test")
        await certificates.reload()
        assert "the certificate is not a.example.com's" in caplog.text
        assert await shown(port, "a.example.com") == "a.example.com"
        certify(folder, "a.example.com", "a.example.com", "also.test")
        await certificates.reload()
        caplog.clear()
        await certificates.reload()
        assert caplog.records == []  # nothing is read twice


def test_a_start_with_what_cannot_be_used_is_refused(made: tuple[str, str, Path]) -> None:
    cert, key, folder = made
    for arguments in (("/nowhere", key), (cert, cert), (cert, key, "/nowhere")):
        with pytest.raises(InvalidInput):
            Certificates(*arguments)
    (folder / "a.example.com.key").unlink()
    with pytest.raises(InvalidInput, match=r"a\.example\.com\.crt"):
        Certificates(cert, key, str(folder))


async def test_a_handshake_that_does_not_go_on_is_cut(
    made: tuple[str, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "HANDSHAKE_SECONDS", 3.0)
    cert, key, _ = made
    async with listening(Certificates(cert, key)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")  # the beginning of a greeting
        assert await shown(port, "x") == "main.example"  # others are served meanwhile
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_browsers_are_sent_to_https_and_nothing_else_is() -> None:
    async with serving(redirect_app(8443)) as url, ClientSession() as session:
        port = int(url.rpartition(":")[2])
        for method in ("GET", "HEAD"):
            async with session.request(
                method, url + "/a%0Ab?c=d", headers={"Host": "a.example:80"}, allow_redirects=False
            ) as answer:
                assert (answer.status, answer.headers["Location"]) == (308, "https://a.example:8443/a%0Ab?c=d")
        async with session.post(url + "/login", data=b"secret", allow_redirects=False) as answer:
            assert (answer.status, "Location" in answer.headers) == (403, False)
        for head in (b"GET / HTTP/1.0\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: a@evil\r\n\r\n"):  # fmt: skip
            assert (await talk(port, head)).startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    async with serving(redirect_app(443)) as url, ClientSession() as session:
        for host, where in {
            "a.example": "https://a.example/",
            "[::1]:80": "https://[::1]/",
            "[::1]": "https://[::1]/",
        }.items():
            async with session.get(url, headers={"Host": host}, allow_redirects=False) as answer:
                assert answer.headers["Location"] == where
