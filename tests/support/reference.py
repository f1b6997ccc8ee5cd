"""The tables of `faas/reference.md` that the code itself has: `python -m tests.support.reference` writes them there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from faas.audited import action_of, changes
from faas.metrics import Metrics
from faas.settings import Settings
from faas.web import needed
from gateway.app import operations
from registry.app import OWN

PAGE = Path(__file__).parents[2] / "faas" / "reference.md"
READING = ("GET", "HEAD", "OPTIONS")
# What is recorded beside the control API's and the registry's own operations.
OTHERS = {
    "images.push": "an image or an index was pushed, by its tag or digest",
    "images.delete": "one was deleted, or a tag taken away",
    "blobs.push": "a layer or a config was pushed whole",
    "blobs.mount": "one was taken over from another repository",
    "blobs.delete": "one was deleted",
    "functions.follow": "a push of the tag that a function follows was deployed",
    "login": "credentials were refused; the object is the listener",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = ([cell.replace("|", r"\|") for cell in row] for row in (titles, ["---"] * len(titles), *rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def settings() -> str:
    shown = [one for one in fields(Settings) if not one.metadata.get("hidden")]
    return table(
        ("key", "default", "what it means"),
        ((f"`{one.name}`", _default(one.metadata.get("default", "")), str(one.metadata["help"])) for one in shown),
    )


def _default(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


def metrics() -> str:
    found = [one for one in vars(Metrics("")).values() if isinstance(one, MetricWrapperBase)]
    rows = []
    for one in found:
        (family,) = one.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in one._labelnames)
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return table(("metric", "type", "labels", "what it counts"), sorted(rows))


def control_api() -> str:
    rows = []
    for one in operations(open_metrics=False):
        permission = needed(one.handler)
        action = f"`{action_of(one.method, one.path)}`" if changes(one.method, permission) else ""
        rows.append((f"`{one.method} {one.path}`", permission.value, one.summary, action))
    return table(("operation", "permission", "what", "in the audit log"), rows)


def other_actions() -> str:
    rows = [(f"`{action}`", what) for action, what in OTHERS.items()]
    for method, path, _ in OWN:
        if method not in READING:
            plain = re.sub(r"{(\w+):[^}]*}", r"{\1}", path)
            rows.append((f"`{registry_action(method, path)}`", f"`{method} {plain}`"))
    return table(("action", "what"), rows)


def registry_action(method: str, path: str) -> str:
    words = re.sub(r"/\{[^}]*\}", "", path).removeprefix("/v2/_faas/").replace("/", ".")
    return f"registry.{words}.{method.lower()}"


SECTIONS: Mapping[str, Callable[[], str]] = {
    "Settings": settings,
    "Metrics": metrics,
    "The control API": control_api,
    "Further actions in the audit log": other_actions,
}


def renewed(page: str) -> str:
    """`page` with the tables of `SECTIONS` as they are now: each is the last thing below its title."""
    for title, made in SECTIONS.items():
        pattern = rf"(?m)(^## {re.escape(title)}\n(?:(?!## |\|).*\n)*)(?:\|.*\n)*"
        match = re.search(pattern, page)
        if match is None:
            raise ValueError(f"there is no section {title}")
        page = page[: match.start()] + match[1] + made() + page[match.end() :]
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
