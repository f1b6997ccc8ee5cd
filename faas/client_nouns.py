"""The nouns of `faas.client.Client` that have files of their own, as one base of it."""

from __future__ import annotations

from faas.client_aliases import AliasCalls
from faas.client_apis import ApiCalls
from faas.client_backup import BackupCalls
from faas.client_builds import BuildCalls
from faas.client_debug import DebugCalls
from faas.client_dev import DevCalls
from faas.client_guards import GuardCalls
from faas.client_keys import KeyCalls
from faas.client_notify import NotifyCalls
from faas.client_secrets import SecretCalls
from faas.client_usage import UsageCalls
from faas.client_users import UserCalls
from faas.client_websockets import WebSocketCalls


class NounCalls(
    AliasCalls,
    ApiCalls,
    BackupCalls,
    DevCalls,
    BuildCalls,
    DebugCalls,
    GuardCalls,
    KeyCalls,
    NotifyCalls,
    SecretCalls,
    UsageCalls,
    UserCalls,
    WebSocketCalls,
):
    """One base per file."""
