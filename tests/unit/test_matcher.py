"""Which route takes a request: AWS's documented precedence, a naive reference, and how paths are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.path_pattern import PathPattern, parse, rewritten, segments_of
from faas.routes import ANY
from gateway.edge.apis.matcher import Matcher


def matcher(*routes: str) -> Matcher[str]:
    """Of `GET /path` or `$default`."""
    made: Matcher[str] = Matcher()
    for route in routes:
        method, _, path = route.rpartition(" ")
        made.add(method or ANY, parse(path), route)
    return made


@pytest.mark.parametrize(
    ("request_line", "route"),
    [  # API Gateway Developer Guide, "Create routes for HTTP APIs", "Routing API requests"
        ("GET /pets/dog/1", "GET /pets/dog/1"),
        ("GET /pets/dog/2", "GET /pets/dog/{id}"),
        ("GET /pets/cat/1", "GET /pets/{proxy+}"),
        ("POST /test/5", "ANY /{proxy+}"),
    ],
)
def test_the_documented_example_of_api_gateway_is_routed_as_it_says(request_line: str, route: str) -> None:
    made = matcher(
        "GET /pets/dog/1", "GET /pets/dog/{id}", "GET /pets/{proxy+}", "ANY /{proxy+}", "$default"
    )  # fmt: skip
    method, path = request_line.split()
    assert made.find(method, segments_of(path)) == route
    assert made.find("GET", segments_of("/")) == "$default"  # a greedy parameter takes one segment at least


@pytest.mark.parametrize(
    ("routes", "request_line", "route"),
    [
        (("ANY /users/me", "GET /users/{id}"), "GET /users/me", "ANY /users/me"),  # the path before the method
        (("ANY /users/{id}", "GET /users/{id}"), "GET /users/7", "GET /users/{id}"),
        (("GET /a/{x+}", "GET /{y}/b"), "GET /a/b", "GET /{y}/b"),  # a whole path before a greedy one
        (("GET /a/{x+}", "GET /{y}/b/{z+}"), "GET /a/b/c", "GET /a/{x+}"),
        (("GET /a/{x}/c", "GET /a/b/{y}"), "GET /a/b/c", "GET /a/b/{y}"),
        (("GET /a/b/d", "GET /a/{x}/c"), "GET /a/b/c", "GET /a/{x}/c"),  # back from a branch that leads nowhere
        (("GET /admin", "ANY /{proxy+}"), "POST /admin", "ANY /{proxy+}"),  # as on API Gateway
        (("GET /x",), "HEAD /x", "GET /x"),
        (("GET /x", "HEAD /x"), "HEAD /x", "HEAD /x"),
        (("GET /x", "ANY /x"), "HEAD /x", "GET /x"),  # what protects GET protects HEAD
        (("GET /",), "GET /", "GET /"),
        (("GET /caf%C3%A9",), "GET /café", "GET /caf%C3%A9"),
    ],
)
def test_the_most_specific_route_wins(routes: tuple[str, ...], request_line: str, route: str) -> None:
    method, path = request_line.split()
    for order in (routes, routes[::-1]):
        assert matcher(*order).find(method, segments_of(path)) == route


def test_nothing_is_found_where_nothing_fits_and_the_methods_of_the_path_are_known() -> None:
    made = matcher("GET /users/{id}", "DELETE /users/{id}", "POST /users")
    assert made.find("PUT", ["users", "7"]) is None
    assert made.methods(["users", "7"]) == {"GET", "HEAD", "DELETE"}
    assert made.methods(["users"]) == {"POST"}
    assert made.methods(["nobody"]) == set()


def test_what_is_removed_takes_nothing_any_more_and_leaves_nothing() -> None:
    routes = ("GET /a/{x}/c", "POST /a/{x}/c", "GET /a/{x+}", "$default")
    made = matcher(*routes)
    for count, route in enumerate(routes, 1):
        method, _, path = route.rpartition(" ")
        made.remove(method or ANY, parse(path))
        made.remove(method or ANY, parse(path))  # again: no error
        assert made.size == len(routes) - count
    assert made.find("GET", ["a", "b", "c"]) is None
    assert made._root.is_empty


_SEGMENT = st.sampled_from(["a", "b", "{x}"])
_PATHS = st.builds(
    lambda segments, greedy: "/" + "/".join([*_named(segments), *(["{rest+}"] if greedy else [])]),
    st.lists(_SEGMENT, max_size=4),
    st.booleans(),
)
_ROUTES = st.lists(
    st.tuples(st.sampled_from(["GET", "HEAD", "POST", ANY]), st.one_of(_PATHS, st.just("$default"))), max_size=12
)


def _named(segments: list[str]) -> list[str]:
    return [f"{{p{place}}}" if segment == "{x}" else segment for place, segment in enumerate(segments)]


def naive(routes: dict[tuple[str, tuple[object, ...]], tuple[str, PathPattern]], method: str, asked: list[str]) -> str:
    """Every route looked at, those that fit sorted: the words of the matcher's own page, and no tree."""
    order = {"HEAD": ["HEAD", "GET", ANY]}.get(method, [method, ANY])
    fitting = []
    for verb, pattern in routes.values():
        own = pattern.segments
        if verb not in order:
            continue
        if pattern.is_default:
            fitting.append(((2, [], order.index(verb)), f"{verb} {pattern.text}"))
            continue
        fits = len(asked) >= len(own) if pattern.greedy else len(asked) == len(own)
        fixed = own[:-1] if pattern.greedy else own
        if fits and all(segment in (None, asked[place]) for place, segment in enumerate(fixed)):
            kinds = [int(segment is None) for segment in fixed] + ([2] if pattern.greedy else [])
            fitting.append(((int(pattern.greedy), kinds, order.index(verb)), f"{verb} {pattern.text}"))
    return min(fitting)[1] if fitting else ""


@given(_ROUTES, st.sampled_from(["GET", "HEAD", "POST", "PUT"]), st.lists(st.sampled_from(["a", "b", "c"]), max_size=5))
def test_the_tree_finds_what_looking_at_every_route_finds(
    routes: list[tuple[str, str]], method: str, asked: list[str]
) -> None:
    made: Matcher[str] = Matcher()
    known = {}
    for verb, text in routes:
        pattern = parse(text)
        made.add(verb, pattern, f"{verb} {text}")
        known[verb, pattern.shape] = (verb, pattern)
    assert (made.find(method, asked) or "") == naive(known, method, asked)
    assert made.size == len(known)
    for verb, pattern in list(known.values())[::2]:
        made.remove(verb, pattern)
        del known[verb, pattern.shape]
    assert (made.find(method, asked) or "") == naive(known, method, asked)


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/", []),
        ("/admin", ["admin"]),
        ("/admin/", ["admin"]),
        ("/%61dmin", ["admin"]),
        ("/%61%64%6d%69%6E/", ["admin"]),
        ("/Admin", ["Admin"]),
        ("/a%20b/c%23d", ["a b", "c#d"]),
        ("/%2561dmin", ["%61dmin"]),  # once
        ("/caf%C3%A9", ["café"]),
        ("/café", ["café"]),
        ("/...", ["..."]),
    ],
)
def test_a_path_has_one_reading(path: str, segments: list[str]) -> None:
    assert segments_of(path) == segments


@pytest.mark.parametrize(
    "path",
    [
        "//admin", "/a//b", "/admin//", "//", "/./admin", "/x/../admin", "/..", "/.", "/%2e%2e/admin", "/x/%2E/admin",
        "/.%2e/admin", "/admin%2f", "/admin%2Fx", "/%2Fadmin", "/admin%5Cx", "/admin\\x", "/admin%00", "/a%0d%0ab",
        "/a%7f", "/a%", "/a%zz", "/a%f", "/%ff", "/%c0%afadmin", "/a#b", "admin", "",
    ],
)  # fmt: skip
def test_a_path_that_could_be_read_in_another_way_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|segment|taken|followed"):
        segments_of(path)


@given(st.text(alphabet="ab/.%2eEfF5cC0~", max_size=20))
def test_what_is_read_has_no_segment_that_a_server_behind_could_read_as_a_step(path: str) -> None:
    try:
        segments = segments_of("/" + path)
    except ValueError:
        return
    assert not any(segment in ("", ".", "..") or "/" in segment or "\\" in segment for segment in segments)


def test_parameters_are_decoded_and_a_rewrite_keeps_what_was_written() -> None:
    pattern = parse("/files/{owner}/{path+}")
    path = "/files/J%C3%BCrgen/a%20b/c/"
    raw = path.split("/")[1:]
    assert pattern.parameters(segments_of(path)) == {"owner": "Jürgen", "path": "a b/c"}
    assert rewritten("/internal/{path+}?", pattern, raw) == "/internal/a%20b/c/?"
    assert rewritten("/{path}/of/{owner}", pattern, raw) == "/a%20b/c//of/J%C3%BCrgen"
