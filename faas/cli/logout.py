"""`faas logout`: forget what `faas login` remembered; Docker forgets it too."""

from __future__ import annotations

import json
from pathlib import Path

import click

from faas.cli.login import docker_config, write_private
from faas.cli.options import pass_session
from faas.cli.output import note
from faas.cli.session import Session, config_file, logged_in
from faas.client import Client
from faas.errors import FaasError, InvalidInput
from faas.trust import Trust


@click.command()
@click.option("--revoke", is_flag=True, help="Make the token worthless too, wherever else it is kept.")
@pass_session
def logout(session: Session, revoke: bool) -> None:
    """Forget the server and its token, and Docker's credentials for it. Without --revoke the token goes on to open."""
    known, path = logged_in(session.settings), config_file(session.settings)
    if not known:
        note("nobody is logged in here")
        return
    if revoke:
        session.run(_revoked(known))
    if host := known.get("docker"):
        try:
            forget_docker_login(docker_config(), host)
        except (FaasError, OSError) as error:
            note(f"Docker was not told: {error}; run docker logout {host}")
    path.unlink(missing_ok=True)
    if known.get("ca") == str(session.settings.config_home / "ca.crt"):
        Path(known["ca"]).unlink(missing_ok=True)
    click.echo(known.get("url", ""))


async def _revoked(known: dict[str, str]) -> None:
    """The token that was remembered, whatever FAAS_TOKEN says."""
    trust = Trust(Path(known["ca"]).read_text()) if known.get("ca") else Trust()  # noqa: ASYNC240 - one small file
    async with Client(known.get("url", ""), known.get("token", ""), trust=trust) as client:
        told = await client.whoami()
        await client.revoke_token(str(told.get("token") or told["name"]))


def forget_docker_login(path: Path, host: str) -> None:
    """Raises InvalidInput where the file is not what Docker writes; OSError."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        raise InvalidInput(f"{path} is not JSON") from None
    if isinstance(config, dict) and isinstance(config.get("auths"), dict) and config["auths"].pop(host, None):
        write_private(path, json.dumps(config, indent=2) + "\n")
