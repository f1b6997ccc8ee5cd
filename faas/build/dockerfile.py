"""Images through the local Docker Engine: a folder with a Dockerfile is built, an image that is there is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import docker
import requests
from docker.errors import APIError, BuildError, DockerException, ImageNotFound
from docker.models.images import Image

from faas.errors import InvalidInput, NotFound, Unavailable

ENGINE_SECONDS = 600
BUILDS = "faas-build"  # the engine's images of pushed folders: faas-build/NAME


def _engine() -> docker.DockerClient:
    try:
        engine = docker.from_env(timeout=ENGINE_SECONDS)
        engine.ping()
    except (DockerException, requests.RequestException) as error:
        raise Unavailable(
            f"no Docker Engine answers: {error}", hint="start one, or push an archive with --image"
        ) from None
    return engine


def _write(chunks: Iterable[bytes], archive: Path) -> None:
    with archive.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def built(folder: Path, name: str, archive: Path, line: Callable[[str], None]) -> None:
    """Blocking. Build `folder`'s Dockerfile and save the image to `archive`; `line` gets the build's output.

    The engine keeps the last build of `name` under a tag: its steps are the next one's cache, and the same folder gives
    the same image again. The one before it is removed.
    """
    engine, tag = _engine(), f"{BUILDS}/{name}:latest"
    try:
        before = _tagged(engine, tag)
        events = engine.api.build(path=str(folder), tag=tag, rm=True, forcerm=True, decode=True)
        for event in events:
            if "error" in event:
                raise InvalidInput(f"the build failed: {event['error'].strip()}")
            if text := event.get("stream", "").rstrip():
                line(text)
        image = engine.images.get(tag)
        if before is not None and before.id != image.id:
            _remove(engine, before)
        _write(image.save(), archive)
    except (BuildError, DockerException, requests.RequestException, TypeError) as error:
        raise InvalidInput(f"the build failed: {error}") from None
    finally:
        engine.close()


def _tagged(engine: docker.DockerClient, tag: str) -> Image | None:
    try:
        return engine.images.get(tag)
    except ImageNotFound:
        return None


def _remove(engine: docker.DockerClient, image: Image) -> None:
    """With its steps that no other image has. What somebody has tagged, or a container runs, stays."""
    with contextlib.suppress(ImageNotFound, APIError):
        image.reload()
        if image.id and not image.tags:
            engine.images.remove(image.id)


def saved(name: str, archive: Path) -> None:
    """Blocking. Save the engine's image `name` to `archive`. Raises NotFound."""
    engine = _engine()
    try:
        _write(engine.images.get(name).save(), archive)
    except ImageNotFound:
        raise NotFound(f"neither a file, nor in the registry, nor in the engine: {name}") from None
    except (DockerException, requests.RequestException) as error:
        raise Unavailable(f"the engine cannot save {name}: {error}") from None
    finally:
        engine.close()
