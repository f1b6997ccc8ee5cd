"""`PathPattern`: `/users/{id}`, `/files/{path+}` or `$default`; and how a path is read, of patterns and of requests.

One rule, so that no spelling of a path goes around a route:

- It is split at `/`, and each segment decoded once, as UTF-8: `/%61dmin` is `/admin`.
- One slash at the end does not count: `/admin/` is `/admin`.
- What servers behind us could read in another way is refused: `.` and `..`, empty segments (`//`), `/`, `\\` and
  control characters in a segment, encoded or not, a `#` that is not encoded, and broken encodings.
- Upper and lower case differ (RFC 3986 §6.2.2.1, and as on API Gateway).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

DEFAULT = "$default"  # what no other route takes
MAX_SEGMENTS = 32
MAX_LENGTH = 512

_DOUBTFUL = re.compile(r"[%\\#\x00-\x20\x7f]|[^\x00-\x7f]|//|/\.{1,2}(?:/|$)")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def segments_of(path: str) -> list[str]:
    """The decoded segments of a path as it came, without its query. Raises ValueError: why it is refused."""
    if not path.startswith("/"):
        raise ValueError("a path starts with /")
    if _DOUBTFUL.search(path) is None:
        segments = path.split("/")[1:]
    else:
        segments = [_decoded(segment) for segment in path.split("/")[1:]]
    if segments[-1] == "":
        segments.pop()
    if "" in segments:
        raise ValueError("an empty segment (//) is not taken")
    return segments


def _decoded(segment: str) -> str:
    if _ESCAPE.search(segment):
        raise ValueError("a % is not followed by two hexadecimal digits")
    try:
        text = unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode()
    except UnicodeError:
        raise ValueError("the path is not UTF-8") from None
    if text in (".", ".."):
        raise ValueError("the segments . and .. are not taken")
    if "#" in segment or _FORBIDDEN.search(text):
        raise ValueError("an encoded slash, a backslash, a # or a control character is not taken")
    return text


@dataclass(frozen=True, slots=True)
class PathPattern:
    """`segments`: literals decoded, None for a parameter; the last parameter may be `greedy` (one segment or more).

    `names`: (place, name) of each parameter.
    """

    text: str
    segments: tuple[str | None, ...] = ()
    greedy: bool = False
    names: tuple[tuple[int, str], ...] = ()

    @property
    def is_default(self) -> bool:
        return self.text == DEFAULT

    @property
    def shape(self) -> tuple[object, ...]:
        """Two patterns with one shape take the same paths."""
        return (DEFAULT,) if self.is_default else (*self.segments, self.greedy)

    @property
    def literals(self) -> tuple[str, ...]:
        """The segments before the first parameter."""
        found: list[str] = []
        for segment in self.segments:
            if segment is None:
                break
            found.append(segment)
        return tuple(found)

    def parameters(self, segments: Sequence[str]) -> dict[str, str]:
        """Names and decoded values, of segments that this pattern takes."""
        return {
            name: "/".join(segments[place:]) if self.greedy and place == len(self.segments) - 1 else segments[place]
            for place, name in self.names
        }


def parse(text: str) -> PathPattern:
    """Raises ValueError with the words that follow "must be"."""
    if text == DEFAULT:
        return PathPattern(text)
    if not text.startswith("/") or len(text) > MAX_LENGTH:
        raise ValueError(
            f'a path such as "/users/{{id}}" or "/files/{{path+}}" (at most {MAX_LENGTH} characters), or "$default"'
        )
    written = text.removesuffix("/").split("/")[1:]
    if len(written) > MAX_SEGMENTS:
        raise ValueError(f"a path of at most {MAX_SEGMENTS} segments")
    segments: list[str | None] = []
    names: list[tuple[int, str]] = []
    greedy = False
    for place, segment in enumerate(written):
        if "{" in segment or "}" in segment:
            name, greedy = _parameter(segment)
            if greedy and place != len(written) - 1:
                raise ValueError(f"a path whose {segment} is its last segment")
            if name in {known for _, known in names}:
                raise ValueError(f"a path that names {name} once")
            names.append((place, name))
            segments.append(None)
        else:
            segments.append(_literal(segment))
    return PathPattern(text, tuple(segments), greedy, tuple(names))


def _parameter(segment: str) -> tuple[str, bool]:
    name = segment[1:-1].removesuffix("+")
    if segment[:1] != "{" or segment[-1:] != "}" or not _NAME.fullmatch(name):
        raise ValueError(
            f"a path whose parameters are whole segments such as {{id}} or {{path+}}, unlike {segment[:80]!r}"
        )
    return name, segment[-2:-1] == "+"


def _literal(segment: str) -> str:
    if not segment or "?" in segment or "*" in segment:
        raise ValueError("a path without //, ? and *")
    try:
        return _decoded(segment)
    except ValueError as error:
        raise ValueError(f"a path that can be asked for: {error}") from None


_PIECE = re.compile(r"\{([^{}]*)\}")


def check_rewrite(template: str, pattern: PathPattern) -> None:
    """Whether `template` is a path of literals and the pattern's parameters. Raises ValueError, as `parse` does."""
    if not template.startswith("/") or len(template) > MAX_LENGTH or re.search(r"[\s?#\\\x00-\x1f\x7f]", template):
        raise ValueError(f'a path such as "/internal/{{id}}", without query, of at most {MAX_LENGTH} characters')
    known = {name for _, name in pattern.names}
    for name in _PIECE.findall(template):
        if name.removesuffix("+") not in known:
            raise ValueError(f"a path with the pattern's own parameters ({', '.join(sorted(known)) or 'it has none'})")
    rest = _PIECE.sub("x", template)
    if "{" in rest or "}" in rest:
        raise ValueError("a path whose { and } enclose a parameter's name")
    try:
        segments_of(rest)
    except ValueError as error:
        raise ValueError(f"a path that can be asked for: {error}") from None


def rewritten(template: str, pattern: PathPattern, raw: list[str]) -> str:
    """`template` with the parameters' own texts; `raw`: the path's segments as they came, the one after a last slash
    too, so that `{path+}` keeps that slash."""
    values = {}
    for place, name in pattern.names:
        is_greedy = pattern.greedy and place == len(pattern.segments) - 1
        values[name] = "/".join(raw[place:]) if is_greedy else raw[place]
    return _PIECE.sub(lambda found: values[found[1].removesuffix("+")], template)
