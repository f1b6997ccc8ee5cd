"""Retention inside the server: it knows what is deployed, and `faas push` says what an immutable tag forbids."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

SAYS = "def handler(event, context):\n    return {{'statusCode': 200, 'body': '{}'}}\n"


def tags(server: RunningServer, name: str) -> set[str]:
    listed = server.faas("image", "ls", name, "-o", "name").stdout.split()
    return {image.removeprefix(f"{name}:") for image in listed}


def test_what_is_kept_for_a_rollback_outlives_every_rule(server: RunningServer, tmp_path: Path) -> None:
    for word in ("ruled one", "ruled two", "ruled three"):  # nobody else's image: who runs the same one would hold it
        server.push_code(tmp_path, "ruled", SAYS.format(word))
    server.faas("image", "retention", "set", "ruled", "--keep-last", "1", "--untagged-days", "0")
    try:
        assert "ruled:" not in server.faas("image", "retention", "preview", "-o", "name").stdout
        server.faas("image", "retention", "run")
        assert tags(server, "ruled") == {"latest", "v1", "v2", "v3"}
        server.faas("rollback", "ruled", "v1")
        assert server.get("/function/ruled").text == "ruled one"
        server.faas("rm", "ruled", "--yes")  # now nobody needs them
        going = server.faas("image", "retention", "preview", "-o", "name").stdout.split()
        assert len([name for name in going if name.startswith("ruled:")]) == 3
        server.faas("image", "retention", "run")
        assert len(tags(server, "ruled")) == 1
    finally:
        server.faas("image", "retention", "rm", "ruled")


def test_a_push_says_which_tag_an_immutable_rule_keeps_from_moving(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "fixed", SAYS.format("one"))
    server.faas("image", "retention", "set", "fixed", "--immutable")
    try:
        (tmp_path / "fixed" / "app.py").write_text(SAYS.format("two"))
        pushed = server.faas("push", tmp_path / "fixed")
        assert "warning: deployed, but not tagged: " in pushed.stderr
        assert "the tag latest is immutable" in pushed.stderr
        assert server.get("/function/fixed").text == "two"
        assert tags(server, "fixed") == {"latest", "v1", "v2"}  # and `latest` is `v1` as before
        alone = server.faas("push", tmp_path / "fixed", "--no-deploy", check=False)
        assert alone.returncode == 1
        assert "the tag latest is immutable" in alone.stderr
        server.faas("image", "retention", "set", "fixed", "--movable", "latest")
        assert "warning" not in server.faas("push", tmp_path / "fixed").stderr
    finally:
        server.faas("image", "retention", "rm", "fixed")
