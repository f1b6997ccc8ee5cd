"""`Payload`: the shape in which a Lambda-style function is given a request, and read its answer in (`payload`)."""

from __future__ import annotations

import enum


class Payload(enum.StrEnum):
    """API Gateway's payload format versions."""

    V2 = "2.0"
    V1 = "1.0"
