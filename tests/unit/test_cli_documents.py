"""Documents that commands read: JSON and YAML, bounded."""

from __future__ import annotations

import io
import sys

import pytest

from faas.cli import documents
from faas.cli.documents import document_in
from faas.cli.output import Json
from faas.errors import InvalidInput


def read(text: str) -> Json:
    file = io.StringIO(text)
    file.name = "a.yaml"
    return document_in(file)


YAML = """
openapi: "3.0.1"
info: {title: pets, version: 2030-01-31}
x-usual: &usual
  "200": {description: fine}
paths:
  /pets/{id}:
    get:
      x-faas-function: users
      responses: *usual
    head: {responses: {200: {description: a number as a name}, <<: {default: {description: d}}}}
"""


def test_yaml_is_read_as_the_json_that_it_means() -> None:
    found = read(YAML)
    assert found["info"] == {"title": "pets", "version": "2030-01-31"}
    operations = found["paths"]["/pets/{id}"]
    assert operations["get"]["responses"] == {"200": {"description": "fine"}}
    assert operations["head"]["responses"].keys() == {"200", "default"}
    assert read('{"a": [1, null]}') == {"a": [1, None]}


BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openapi: 3.1.0\n  x: 1", "neither JSON nor YAML (line 2)"),
        ("a: [", "neither JSON nor YAML"),
        ("just a text", "must be an object"),
        ("", "must be an object"),
        ("a: 1\n---\nb: 2", "neither JSON nor YAML"),
        ("a: !!python/object/apply:os.system [id]", "neither JSON nor YAML"),
        ("a: !!binary aGk=", "cannot be written as JSON"),
        ("a: !!set {x, y}", "cannot be written as JSON"),
        ("a: &a [*a]", "cannot be written as JSON"),
        ("a: *nothing", "neither JSON nor YAML"),
        ("a: " + "[" * 100 + "]" * 100, "more than 64 deep"),
        ("a: " + "[" * 100_000, "YAML"),
        (BILLION, "with its aliases written out"),
        ("x" * (documents.MOST_BYTES + 1), "more than 4194304 characters"),
        ("a: \x00", "neither JSON nor YAML"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_without_the_extra_yaml_is_no_json_and_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(InvalidInput) as caught:
        read("openapi: 3.1.0")
    assert (caught.value.message, "ownfaas[yaml]" in caught.value.hint) == ("a.yaml is no JSON", True)
    assert read("{}") == {}
