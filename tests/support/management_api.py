"""AWS's own client of `@connections`, with our credentials instead of a signature."""

from __future__ import annotations

from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore import UNSIGNED  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]


def management_api(api: str, token: str, stage: str = "") -> Any:
    """A boto3 client `apigatewaymanagementapi` for the API at `api`."""
    options = Config(signature_version=UNSIGNED, retries={"max_attempts": 1}, proxies={})
    client = boto3.session.Session().client(
        "apigatewaymanagementapi", endpoint_url=f"{api}/{stage}".rstrip("/"), region_name="eu-west-1", config=options
    )

    def sign(request: Any, **_: object) -> None:
        request.headers["Authorization"] = f"Bearer {token}"

    client.meta.events.register("before-send.apigatewaymanagementapi", sign)
    return client


def gone(client: Any, connection: str) -> bool:
    """Whether a push is answered with AWS's GoneException."""
    try:
        client.post_to_connection(ConnectionId=connection, Data=b"anybody?")
    except client.exceptions.GoneException:
        return True
    return False
