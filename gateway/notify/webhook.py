"""Messages as JSON, posted to a URL: signed, one try each, by the rules of callbacks (`gateway.callback`)."""

from __future__ import annotations

from faas.errors import InvalidInput, Unavailable
from faas.secret import Secret
from gateway.callback import Callbacks
from gateway.notify.message import ID, SIGNATURE, Message, signature
from gateway.notify.target import Webhook, check_url, trusting


async def post(
    callbacks: Callbacks, hook: Webhook, url: str, key: Secret, message: Message, now: float, *, allow_private: bool
) -> None:
    """Raises Unavailable where it was not taken, in words without the URL's path: that may be all that guards it."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "faas",
        ID: message.id,
        SIGNATURE: signature(key, now, message.body),
    }
    try:
        check_url(url, allow_private=allow_private)
        context = trusting(hook.ca) if hook.ca else None
        await callbacks.post(url, headers, message.body, trust=context)
    except InvalidInput as error:
        raise Unavailable(error.message) from None
    except Unavailable as error:
        raise Unavailable(error.message.replace(url, "the URL").replace("callback", "notification")) from None
