"""Images through the local Docker Engine: a folder with a Dockerfile is built, an image that is there is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import docker
import requests
from docker.errors import BuildError, DockerException, ImageNotFound

from faas.errors import FaasError, InvalidInput, NotFound, Unavailable

ENGINE_SECONDS = 600


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


def built(folder: Path, archive: Path, line: Callable[[str], None]) -> None:
    """Blocking. Build `folder`'s Dockerfile and save the image to `archive`; `line` gets the build's output."""
    engine = _engine()
    try:
        events = engine.api.build(path=str(folder), rm=True, forcerm=True, decode=True)
        image_id = ""
        for event in events:
            if "error" in event:
                raise InvalidInput(f"the build failed: {event['error'].strip()}")
            if text := event.get("stream", "").rstrip():
                line(text)
            image_id = event.get("aux", {}).get("ID", image_id)
        if not image_id:
            raise FaasError("the engine built an image but did not say which")
        _write(engine.images.get(image_id).save(), archive)
    except (BuildError, DockerException, requests.RequestException, TypeError) as error:
        raise InvalidInput(f"the build failed: {error}") from None
    finally:
        engine.close()


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
