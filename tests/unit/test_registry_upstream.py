"""Upstreams as they are configured, and what of their words is believed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from yarl import URL

from faas.errors import InvalidInput
from registry.upstream.client import target
from registry.upstream.errors import Untrusted
from registry.upstream.login import bearer
from registry.upstream.upstream import parse

HUB = "docker.io=https://registry-1.docker.io"


def secret(folder: Path, text: str = "pa55word\n", mode: int = 0o600) -> Path:
    file = folder / "password"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_entries_are_read_with_all_that_they_say(tmp_path: Path) -> None:
    text = f"{HUB},auth=https://auth.docker.io,user=u,password-file={secret(tmp_path)},expire=90m  other.example=http://h:5001"
    hub, other = parse(text)
    assert (hub.url, hub.auth) == (URL("https://registry-1.docker.io"), URL("https://auth.docker.io"))
    assert (hub.user, hub.password, hub.expire) == ("u", "pa55word", timedelta(minutes=90))
    assert (other.name, other.url, other.auth, other.expire) == (
        "other.example", URL("http://h:5001"), None, timedelta(hours=24)
    )  # fmt: skip
    assert "pa55word" not in repr(hub)
    assert list(parse("")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("docker.io", "has no ="),
        ("team=https://h", "a dot or a port"),
        ("Docker.io=https://h", "a dot or a port"),
        ("docker.io/library=https://h", "a dot or a port"),
        ("docker.io=ftp://h", "must be http"),
        ("docker.io=https://h/v2", "must be http"),
        ("docker.io=https://user:pa55word@h", "must be http"),
        (f"{HUB},auth=nowhere", "docker.io: auth must be http"),
        (f"{HUB},password=pa55word", "'password' must be one of auth, user, password-file, expire"),
        (f"{HUB},user=u", "go together"),
        (f"{HUB},expire=soon", "a duration"),
        (f"{HUB},expire=400d", "between 0s and 365 days"),
        (f"{HUB},expire=1h,expire=2h", "once"),
        (f"{HUB} {HUB}", "twice"),
        (f"{HUB},user=u,password-file=relative", "absolute"),
        (f"{HUB},user=u,password-file=/nonexistent/file", "cannot be read"),
        (f"{HUB},user=u,password-file=/dev/zero", "no file"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_showing_a_secret(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        parse(text)
    assert "pa55word" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("x", 0o640, "read by others"),
        ("", 0o600, "one line"),
        ("a\nb", 0o600, "one line"),
        ("x" * 5000, 0o600, "no file"),
    ],
)
def test_a_password_file_is_private_and_holds_a_line(tmp_path: Path, text: str, mode: int, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse(f"{HUB},user=u,password-file={secret(tmp_path, text, mode)}")


def test_a_repository_is_a_copy_by_its_first_part() -> None:
    upstreams = parse(f"{HUB} reg.example:5000=http://reg.example:5000")
    copied = upstreams.of("docker.io/alpine")
    assert copied is not None
    assert (copied.name, copied.repository) == ("library/alpine", "docker.io/library/alpine")
    assert upstreams.canonical("docker.io/alpine") == upstreams.canonical("docker.io/library/alpine")
    assert upstreams.canonical("docker.io/grafana/grafana") == "docker.io/grafana/grafana"
    assert upstreams.canonical("reg.example-5000/app") == "reg.example-5000/app"
    for own in ("docker.io", "docker", "team/docker.io/x", "docker.iox/y", "alpine"):
        assert upstreams.of(own) is None
        assert upstreams.canonical(own) == own


def test_a_source_host_means_its_copies() -> None:
    upstreams = parse(f"{HUB} reg.example:5000=http://reg.example:5000")
    assert upstreams.meant("library/alpine", "docker.io") == "docker.io/library/alpine"
    assert upstreams.meant("app", "Reg.example:5000") == "reg.example-5000/app"
    assert upstreams.meant("app", "quay.io") is None
    assert upstreams.meant("app", None) is None


def test_two_names_for_one_place_are_refused() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        parse("a.b:50=http://h a.b-50=http://i")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Bearer realm="https://a/t",service="s"', {"realm": "https://a/t", "service": "s"}),
        ('bearer realm="r", scope="repository:x:pull,push" ,error="e"',
         {"realm": "r", "scope": "repository:x:pull,push", "error": "e"}),
        ('Basic realm="r"', None),
        ("Bearer", None),
        ("Bearer realm=r", None),
        ('Bearer realm="a",realm="b"', None),
        ('Bearer realm="a\\"b"', None),
        ('Bearer realm="a" service="b"', None),
        ('Bearer realm="a', None),
        ('Bearer realm="' + "a" * 5000 + '"', None),
    ],
)  # fmt: skip
def test_a_challenge_is_read_strictly(text: str, found: dict[str, str] | None) -> None:
    assert bearer(text) == found


def test_a_redirect_leads_where_it_says() -> None:
    asked = URL("https://r.example/v2/x/blobs/d")
    assert str(target("r", asked, "/other?a=b%2Fc")) == "https://r.example/other?a=b%2Fc"
    assert str(target("r", asked, "https://cdn.example/x%2fy?sig=a%3D")) == "https://cdn.example/x%2fy?sig=a%3D"
    assert target("r", URL("http://r.example/"), "http://h/").scheme == "http"


@pytest.mark.parametrize("location", ["", "http://r.example/", "ftp://h/", "https://u:p@h/", "file:///etc/passwd",
                                      "https://h/" + "x" * 9000, "https://[::1", "https://h:port/"])  # fmt: skip
def test_a_redirect_out_of_https_or_to_no_url_is_refused(location: str) -> None:
    with pytest.raises(Untrusted):
        target("r", URL("https://r.example/v2/"), location)
