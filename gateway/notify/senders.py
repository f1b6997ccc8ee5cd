"""`Senders`: a message's way to its target, with the secrets that this takes."""

from __future__ import annotations

from collections.abc import Callable

from faas.secret import Secret
from gateway.callback import Callbacks
from gateway.notify import mail, webhook
from gateway.notify.message import Message
from gateway.notify.target import Mail, Target


class Senders:
    """`start`ed once, `stop`ped once. `value_of`: a stored secret's, by namespace and name. `allow_private`: receivers
    may be on this machine and its networks."""

    def __init__(self, value_of: Callable[[str, str], Secret], *, allow_private: bool = False) -> None:
        self._value_of = value_of
        self.allow_private = allow_private
        self._callbacks = Callbacks(allow_private=allow_private)

    async def start(self) -> None:
        await self._callbacks.start()

    async def stop(self) -> None:
        await self._callbacks.stop()

    async def send(self, target: Target, message: Message, now: float) -> None:
        """One try. Raises Unavailable; NotFound where a secret is gone."""
        way = target.way
        values = {name: self._value_of(target.namespace, name) for name in way.secrets}
        if isinstance(way, Mail):
            password = values[way.password_secret] if way.password_secret else None
            await mail.send(way, password, message, now, allow_private=self.allow_private)
            return
        url = values[way.url_secret].reveal().strip() if way.url_secret else way.url
        key = values[way.signing_secret]
        await webhook.post(self._callbacks, way, url, key, message, now, allow_private=self.allow_private)
