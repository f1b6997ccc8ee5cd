"""The error tree: codes, statuses and what they carry."""

from __future__ import annotations

import faas.errors
from faas.errors import FaasError, FunctionError, Throttled, TimedOut


def tree(cls: type[FaasError]) -> list[type[FaasError]]:
    return [cls, *(below for child in cls.__subclasses__() for below in tree(child))]


def test_the_module_docstring_draws_the_whole_tree() -> None:
    drawn = faas.errors.__doc__ or ""
    for cls in tree(FaasError):
        if cls.__module__ != "faas.errors":
            continue
        line = next(line for line in drawn.splitlines() if f" {cls.__name__} " in line)
        assert str(cls.status) in line
        assert cls.code in line or cls is FunctionError


def test_an_error_without_a_message_takes_the_first_line_of_its_docstring() -> None:
    assert Throttled().message == "No capacity for this request now."


def test_a_function_error_is_named_by_its_own_type_or_its_code() -> None:
    assert FunctionError("boom", error_type="ValueError").error_type == "ValueError"
    assert TimedOut().error_type == "Sandbox.Timedout"
