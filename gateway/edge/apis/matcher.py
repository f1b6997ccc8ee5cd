"""`Matcher`: the routes of one host and base path as a tree of segments. Pure; as quick with many routes as with one.

The most specific route wins, as on API Gateway (HTTP APIs, "Routing API requests"): a route that takes the whole path,
then one whose last parameter is greedy, then `$default`; among those of one kind, segment by segment from the left, a
literal before a parameter before a greedy one; of one path, the method before ANY. A route that does not take the
method is passed over. HEAD goes where GET goes, unless a route takes HEAD itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from faas.path_pattern import PathPattern
from faas.routes import ANY

T = TypeVar("T")

_ORDER = {"HEAD": ("HEAD", "GET", ANY)}


class _Node(Generic[T]):
    __slots__ = ("greedy", "literals", "parameter", "routes")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.parameter: _Node[T] | None = None
        self.routes: dict[str, T] = {}  # by method: of paths that end here
        self.greedy: dict[str, T] = {}  # of paths that go on from here

    @property
    def is_empty(self) -> bool:
        return not (self.literals or self.parameter or self.routes or self.greedy)


class Matcher(Generic[T]):
    """Values by pattern and method."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._default: dict[str, T] = {}
        self.size = 0

    def add(self, method: str, pattern: PathPattern, value: T) -> None:
        """Put `value` there, in place of what has the same method and shape."""
        routes = self._routes(pattern)
        self.size += method not in routes
        routes[method] = value

    def remove(self, method: str, pattern: PathPattern) -> None:
        """Take away what is there, and the branches that hold nothing else."""
        self.size -= self._routes(pattern).pop(method, None) is not None
        if not pattern.is_default:
            self._prune(self._root, pattern, 0)

    def find(self, method: str, segments: Sequence[str]) -> T | None:
        """The most specific value for a request."""
        methods = _ORDER.get(method, (method, ANY))
        found = self._whole(self._root, segments, 0, methods)
        if found is None:
            found = self._greedy(self._root, segments, 0, methods)
        return _of(self._default, methods) if found is None else found

    def methods(self, segments: Sequence[str]) -> set[str]:
        """Which methods some route takes on this path; ANY where one takes them all."""
        found = set(self._default)
        self._gather(self._root, segments, 0, found)
        return found | {"HEAD"} if "GET" in found else found

    def _routes(self, pattern: PathPattern) -> dict[str, T]:
        if pattern.is_default:
            return self._default
        node = self._root
        for segment in pattern.segments[: -1 if pattern.greedy else None]:
            if segment is None:
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        return node.greedy if pattern.greedy else node.routes

    def _prune(self, node: _Node[T], pattern: PathPattern, depth: int) -> None:
        if depth == len(pattern.segments) - pattern.greedy:
            return
        segment = pattern.segments[depth]
        child = node.parameter if segment is None else node.literals.get(segment)
        if child is None:
            return
        self._prune(child, pattern, depth + 1)
        if child.is_empty:
            if segment is None:
                node.parameter = None
            else:
                del node.literals[segment]

    # Each node of the tree is come to at most once a request, and the tree is no deeper than a pattern may be.

    def _whole(self, node: _Node[T], segments: Sequence[str], depth: int, methods: tuple[str, ...]) -> T | None:
        if depth == len(segments):
            return _of(node.routes, methods) if node.routes else None
        child = node.literals.get(segments[depth])
        if child is not None:
            found = self._whole(child, segments, depth + 1, methods)
            if found is not None:
                return found
        if node.parameter is not None:
            return self._whole(node.parameter, segments, depth + 1, methods)
        return None

    def _greedy(self, node: _Node[T], segments: Sequence[str], depth: int, methods: tuple[str, ...]) -> T | None:
        if depth == len(segments):
            return None
        child = node.literals.get(segments[depth])
        found = None if child is None else self._greedy(child, segments, depth + 1, methods)
        if found is None and node.parameter is not None:
            found = self._greedy(node.parameter, segments, depth + 1, methods)
        return found if found is not None or not node.greedy else _of(node.greedy, methods)

    def _gather(self, node: _Node[T], segments: Sequence[str], depth: int, found: set[str]) -> None:
        if depth == len(segments):
            found.update(node.routes)
            return
        found.update(node.greedy)
        if (child := node.literals.get(segments[depth])) is not None:
            self._gather(child, segments, depth + 1, found)
        if node.parameter is not None:
            self._gather(node.parameter, segments, depth + 1, found)


def _of(routes: dict[str, T], methods: tuple[str, ...]) -> T | None:
    for method in methods:
        found = routes.get(method)
        if found is not None:
            return found
    return None
