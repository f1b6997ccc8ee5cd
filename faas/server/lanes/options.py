"""What a lane process is started with: nothing of it is secret, and nothing of it opens anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Options:
    """`per_address`: connections of one client; what is more goes to the main process. 0: any number."""

    domain: str = ""
    proxies: str = ""
    log_format: str = "text"
    per_address: int = 0

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**json.loads(text))
