"""Where an issuer's keys are, by its own metadata (OpenID Connect Discovery 1.0, sections 3 and 4)."""

from __future__ import annotations

import json

from faas.errors import InvalidInput
from faas.rules.auth import key_set_url

PATH = "/.well-known/openid-configuration"


def metadata_url(issuer: str) -> str:
    return issuer.rstrip("/") + PATH


def keys_url(metadata: bytes, issuer: str) -> str:
    """The address of the key set that `metadata` names. Raises InvalidInput where it is another issuer's, or names
    none that a rule could name."""
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInput(f"what {metadata_url(issuer)} answers is no JSON object")
    if found.get("issuer") != issuer:  # letter by letter (4.3): else one could speak for another
        raise InvalidInput(f"{metadata_url(issuer)} speaks for another issuer")
    try:
        return key_set_url(found.get("jwks_uri"))
    except ValueError:
        raise InvalidInput(f"{metadata_url(issuer)} names no jwks_uri that is an https URL") from None
