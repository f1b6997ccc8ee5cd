"""The CA of a server's own, the folder that keeps it, and what is refused of certificates that are given."""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from faas.certificate import Certificate, fingerprint
from faas.checkup.own_ca import own_ca
from faas.errors import InvalidInput
from faas.local_ca import DUE, LocalCa, names_of
from faas.tls_folder import TlsFolder
from faas.trust import Trust
from tests.support.certificates import certify

NOW = datetime.now(UTC)
NAMES = ["box.example", "10.1.2.3", "localhost", "::1"]


@pytest.fixture
def folder(tmp_path: Path) -> TlsFolder:
    return TlsFolder(tmp_path / "data" / "tls")


def handshake(server_pem: Path, trust: Trust, name: str) -> None:
    """Both sides in memory. Raises ssl.SSLError where the client does not take it."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(server_pem)
    client = trust.context()
    assert isinstance(client, ssl.SSLContext)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


def trusted(folder: TlsFolder) -> Trust:
    return Trust(folder.ca_file.read_text())


def test_clients_that_have_the_ca_take_every_name_in_the_certificate_and_no_other(folder: TlsFolder) -> None:
    folder.set_own(NAMES[0], NAMES[1:], NOW)
    for name in NAMES:
        handshake(folder.server_file, trusted(folder), name)
    for name in ("other.example", "10.1.2.4"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            handshake(folder.server_file, trusted(folder), name)


def test_an_address_alone_is_a_name_too(folder: TlsFolder) -> None:
    folder.set_own("192.0.2.7", (), NOW)
    handshake(folder.server_file, trusted(folder), "192.0.2.7")


def test_a_certificate_that_a_stolen_ca_makes_for_another_name_is_worth_nothing(
    folder: TlsFolder, tmp_path: Path
) -> None:
    folder.set_own(NAMES[0], NAMES[1:], NOW)
    ca = folder.ca()
    assert ca is not None
    for name, is_taken in (("fn.box.example", True), ("bank.example", False), ("8.8.8.8", False)):
        assert ca.may_name(name) is is_taken
        forged = tmp_path / "forged.pem"
        forged.write_bytes(ca.issue([name], NOW))
        if is_taken:
            handshake(forged, trusted(folder), name)
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
                handshake(forged, trusted(folder), name)


def test_on_its_own_host_a_server_is_known_by_its_very_certificate_under_any_name(
    folder: TlsFolder, tmp_path: Path
) -> None:
    folder.set_own(NAMES[0], (), NOW)
    pinned = Trust(Certificate.read(folder.server_file.read_bytes()).pem, exactly=True)
    handshake(folder.server_file, pinned, "127.0.0.1")
    other = TlsFolder(tmp_path / "other" / "tls")
    other.set_own(NAMES[0], (), NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other.server_file, pinned, "127.0.0.1")
    another = tmp_path / "another.pem"  # of the same CA
    ca = folder.ca()
    assert ca is not None
    another.write_bytes(ca.issue([NAMES[0]], NOW))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(another, pinned, "127.0.0.1")


def test_the_cas_key_is_its_owners_alone_and_the_servers_account_reads_what_it_shows(tmp_path: Path) -> None:
    folder = TlsFolder(tmp_path / "data" / "tls", group=os.getgid())
    folder.set_own(NAMES[0], (), NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert modes == {"ca.pem": 0o600, "ca.crt": 0o644, "server.pem": 0o640}
    assert b"PRIVATE" not in folder.ca_file.read_bytes()


def test_the_same_again_changes_nothing_and_what_has_gone_is_kept(folder: TlsFolder) -> None:
    assert folder.set_own(NAMES[0], NAMES[1:], NOW).changed
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    assert not folder.set_own(NAMES[0], NAMES[1:], NOW).changed
    assert not folder.set_own(NAMES[0], NAMES[2:], NOW).changed
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert folder.set_own(NAMES[0], [*NAMES[1:], "10.9.9.9"], NOW).changed
    assert folder.ca_file.read_bytes() == before["ca.crt"]


def test_it_is_renewed_in_time_by_the_same_ca_and_never_outlives_it(folder: TlsFolder) -> None:
    folder.set_own(NAMES[0], NAMES[1:], NOW)
    first, ca = folder.certificate(), folder.ca()
    assert first is not None
    assert ca is not None
    life = first.not_valid_after_utc - first.not_valid_before_utc
    assert life <= timedelta(days=398)
    assert not folder.renew(NAMES[1:], first.not_valid_after_utc - DUE).changed
    late = first.not_valid_after_utc - DUE + timedelta(seconds=1)
    assert folder.renew(NAMES[1:], late).changed
    second = folder.certificate()
    assert second is not None
    assert second.not_valid_after_utc > first.not_valid_after_utc
    assert names_of(second) == names_of(first)
    assert ca.has_issued(second)
    almost = ca.certificate.not_valid_after_utc - timedelta(days=9)
    last = x509.load_pem_x509_certificate(ca.issue(NAMES, almost))
    assert last.not_valid_after_utc == ca.certificate.not_valid_after_utc


@pytest.mark.root
def test_a_renewed_certificate_is_for_whoever_reads_it_now(tmp_path: Path) -> None:
    """The account may have been a flag of the server's, which whoever renews does not know."""
    folder = TlsFolder(tmp_path / "data" / "tls", group=4321)
    folder.set_own(NAMES[0], (), NOW)
    shown = folder.certificate()
    assert shown is not None
    assert TlsFolder(folder.path, group=0).renew((), shown.not_valid_after_utc).changed
    assert folder.server_file.stat().st_gid == 4321


def test_another_host_needs_a_new_ca_and_a_name_below_the_first_does_not(folder: TlsFolder) -> None:
    folder.set_own("box.example", (), NOW)
    before = folder.ca_file.read_bytes()
    assert folder.set_own("api.box.example", (), NOW).changed
    assert folder.ca_file.read_bytes() == before
    outcome = folder.set_own("other.example", ("elsewhere.example",), NOW)
    assert "clients need the new ca.crt" in outcome.words
    assert folder.ca_file.read_bytes() != before
    outcome = folder.set_own("other.example", ("third.example",), NOW, new_ca=False)
    assert not outcome.changed  # what the CA may not name is left out


def test_a_given_certificate_stays_while_it_holds_and_goes_for_a_new_ca(folder: TlsFolder, tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "given", "box.example")
    assert folder.install(cert, key, "box.example", NOW).changed
    assert not folder.install(cert, key, "box.example", NOW).changed
    assert (folder.is_given(), folder.ca()) == (True, None)
    assert not folder.renew((), NOW + timedelta(days=9)).changed
    assert "stays" in folder.set_own("box.example", (), NOW).words
    assert folder.set_own("box.example", (), NOW, new_ca=True).changed
    assert not folder.is_given()
    shown = Certificate.read(folder.server_file.read_bytes())
    assert shown.ca == folder.ca_file.read_text()
    assert fingerprint(shown.ca).startswith("sha256:")


def _swapped(cert: Path, key: Path) -> tuple[Path, Path]:
    other = cert.parent / "other"
    other.mkdir()
    return cert, certify(other, "other", "box.example")[1]


def _encrypted(cert: Path, key: Path) -> tuple[Path, Path]:
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return cert, key


def _rubbish(file: str) -> Callable[[Path, Path], tuple[Path, Path]]:
    def change(cert: Path, key: Path) -> tuple[Path, Path]:
        {"cert": cert, "key": key}[file].write_text("rubbish")
        return cert, key

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cert, key: (cert, key.with_name("none.key")), "none.key: No such file"),
        (lambda cert, key: (cert.parent, key), "Is a directory"),
        (_swapped, "is not the key of"),
        (_encrypted, "is encrypted"),
        (_rubbish("cert"), "is no certificate in PEM"),
        (_rubbish("key"), "is no key in PEM"),
    ],
)
def test_files_that_cannot_serve_are_refused_in_words(
    folder: TlsFolder, tmp_path: Path, change: Callable[[Path, Path], tuple[Path, Path]], words: str
) -> None:
    cert, key = change(*certify(tmp_path, "given", "box.example"))
    with pytest.raises(InvalidInput, match=words):
        folder.install(cert, key, "box.example", NOW)
    assert not folder.server_file.exists()


@pytest.mark.parametrize(
    ("name", "when", "words"),
    [
        ("other.example", NOW, "holds for box.example, not for other.example"),
        ("box.example", NOW + timedelta(days=2), "ended on"),
        ("box.example", NOW - timedelta(days=2), "begins on"),
    ],
)
def test_a_certificate_of_another_name_or_another_time_is_refused(
    folder: TlsFolder, tmp_path: Path, name: str, when: datetime, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        folder.install(*certify(tmp_path, "given", "box.example"), name, when)


def test_a_folder_that_somebody_else_put_there_is_not_used(folder: TlsFolder, tmp_path: Path) -> None:
    folder.path.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="is not ours"):
        folder.set_own(NAMES[0], (), NOW)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_was_written_halfway_is_not_an_authority(folder: TlsFolder) -> None:
    folder.set_own(NAMES[0], (), NOW)
    (folder.path / "ca.pem").write_bytes(b"-----BEGIN")
    with pytest.raises(InvalidInput, match="cannot be used"):
        folder.renew((), NOW)
    assert LocalCa.make(NAMES[0], ("*.fn.example",), NOW).may_name("a.fn.example")


def test_a_ca_is_reported_long_before_its_end_and_missing_after_it(folder: TlsFolder) -> None:
    data = folder.path.parent
    assert list(own_ca(data)) == []
    folder.set_own(NAMES[0], (), NOW)
    ca = folder.ca()
    assert ca is not None
    end = ca.certificate.not_valid_after_utc.timestamp()
    states = [[row.state for row in own_ca(data, when)] for when in (NOW.timestamp(), end - 397 * 86_400, end + 1)]
    assert states == [["ok"], ["note"], ["missing"]]
