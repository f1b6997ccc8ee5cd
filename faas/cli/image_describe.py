"""`faas image describe`: what an image is, says about running, and is used by."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from faas.cli.failures import visible
from faas.cli.image_reference import complete_references, looking_up, parse_reference
from faas.cli.options import pass_session
from faas.cli.output import Json, age, as_json, local_time, output_option, size
from faas.cli.registry import open_registry
from faas.cli.session import Session
from faas.errors import FaasError
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.media_types import CONFIGS
from faas.oci.platform import Platform


@click.command("describe", short_help="Show everything about an image.")
@click.argument("reference", metavar="REFERENCE", shell_complete=complete_references)
@output_option
@pass_session
def describe(session: Session, reference: str, output: str) -> None:
    """Show everything about an image: layers, config, tags, who needs it, its signatures.

    Of an image for several platforms it lists these; `faas image describe NAME@DIGEST` shows one of them.
    """

    async def fetch() -> Json:
        async with session.client() as client, open_registry(client, session.target) as (images, registry):
            parsed = parse_reference(reference, registry)
            with looking_up(parsed):
                return await description(images, parsed.repository, parsed.target)

    image = session.run(fetch())
    if output == "json":
        click.echo(as_json(image))
    elif output == "name":
        click.echo(name_of(image))
    else:
        click.echo(click.style(visible(name_of(image)), bold=True))
        for label, value in _page(image):
            click.echo(f"  {label:<12} {visible(value)}".rstrip() if label else f"  {visible(value)}")


async def description(images: RegistryClient, repository: str, reference: str) -> Json:
    """Everything, as `-o json` prints it. Raises NotFound."""
    manifest = await images.get_manifest(repository, reference)
    known = await images.image(repository, str(manifest.digest))
    referrers = await images.referrers(repository, manifest.digest)
    config = await read_config(images, repository, manifest)
    return {
        **known,
        "artifact_type": manifest.artifact_type,
        "subject": str(manifest.subject.digest) if manifest.subject else "",
        "annotations": manifest.annotations,
        "platforms": [_row(child) for child in manifest.manifests],
        "platform": platform_of(config),
        "layers": [_row(layer) for layer in manifest.layers],
        "config": config or {},
        "referrers": [_row(referrer) for referrer in referrers],
    }


async def read_config(images: RegistryClient, repository: str, manifest: Manifest) -> Json | None:
    """What an image says about running it, with the names of the runtime; None for what is not to be run: an index, an
    artifact, or one whose config cannot be read."""
    if manifest.config is None or manifest.config.media_type not in CONFIGS:
        return None
    try:
        raw = await images.read_blob(repository, manifest.config.digest, CONFIG_BYTES)
        config, written = ImageConfig.parse(raw), json.loads(raw)
    except (FaasError, ValueError):
        return None
    return {
        "os": config.os,
        "architecture": config.architecture,
        "variant": str(written.get("variant") or ""),
        "created": str(written.get("created") or ""),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": list(config.env),
        "workdir": config.workdir,
        "user": config.user,
        "ports": list(config.exposed_ports),
        "labels": config.labels,
    }


def platform_of(config: Json | None) -> str:
    return str(Platform(config["os"], config["architecture"], config["variant"])) if config else ""


def name_of(image: Json) -> str:
    return f"{image['repository']}@{image['digest']}"


def _row(descriptor: Descriptor) -> Json:
    row = descriptor.to_json()
    if descriptor.platform:
        row["platform"] = str(Platform(*descriptor.platform))
    return row


def _page(image: Json) -> Iterator[tuple[str, str]]:
    config: Json = image["config"]
    yield "Type", image["artifact_type"] or image["media_type"]
    yield "Size", size(image["bytes"])
    yield "Tags", ", ".join(image["tags"]) or "-"
    yield "Used by", ", ".join(image["holders"]) or "-"
    yield "Pushed", f"{local_time(image['created_at'])}, {age(image['created_at'])} ago"
    if image["subject"]:
        yield "About", image["subject"]
    if config:
        yield "Platform", image["platform"]
        yield "Created", local_time(config["created"])
        for label in ("entrypoint", "cmd"):
            yield label.capitalize(), json.dumps(config[label], ensure_ascii=False) if config[label] else "-"
        yield "User", config["user"] or "-"
        yield "Workdir", config["workdir"] or "-"
        yield "Ports", ", ".join(config["ports"]) or "-"
        yield from _rows("Env", config["env"])
        yield from _rows("Labels", [f"{key}={value}" for key, value in sorted(config["labels"].items())])
    yield from _rows("Annotations", [f"{key}={value}" for key, value in sorted(image["annotations"].items())])
    yield from _rows("Platforms", [f"{row.get('platform', '-'):<16} {row['digest']}" for row in image["platforms"]])
    yield from _rows("Layers", [f"{row['digest']}  {size(row['size'])}" for row in image["layers"]])
    referrers = [f"{row['digest']}  {row.get('artifactType', row['mediaType'])}" for row in image["referrers"]]
    yield from _rows("Referrers", referrers)


def _rows(label: str, rows: list[str]) -> Iterator[tuple[str, str]]:
    """A list below its label, one line each; nothing for an empty one."""
    for number, row in enumerate(rows):
        yield ("" if number else label), (f"{'':13}{row}" if number else row)
