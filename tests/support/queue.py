"""Test files that several runs of pytest share (the parts of `./tests/run`): each belongs to the run that comes to it
first. So all end at about the same time, and no run imports a file whose tests another one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest


class Queue:
    """A plugin. `folder`/queue names the files; what is taken is noted beside it."""

    def __init__(self, folder: Path) -> None:
        self._files = {Path(line).absolute() for line in (folder / "queue").read_text().splitlines()}
        self._taken = folder / "taken"
        self._taken.mkdir(exist_ok=True)

    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(
        self, file_path: Path, parent: pytest.Collector
    ) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
        found = yield
        if file_path not in self._files:
            return found
        return [Later.from_parent(parent, path=file_path, real=one) for one in found]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """As pytest's own, but a file that is not imported yet is so when its turn comes, if nobody has taken it."""
        if session.testsfailed:
            raise session.Interrupted("errors during collection")
        items = deque(session.items)
        if session.config.option.collectonly:
            return True
        self._begin_with_a_test(items)
        while items:
            item = items.popleft()
            self._begin_with_a_test(items)  # before this one is run: what it leaves standing is for the next
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=items[0] if items else None)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
        return True

    def _begin_with_a_test(self, items: deque[pytest.Item]) -> None:
        while items and isinstance(items[0], Turn):
            turn = items.popleft()
            assert isinstance(turn, Turn)
            items.extendleft(reversed(turn.tests() if self._take(turn.path) else []))

    def _take(self, file: Path) -> bool:
        try:
            (self._taken / "-".join(file.parts[1:])).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Later(pytest.File):
    """Stands for a file that is not imported yet, `real`."""

    def __init__(self, *, real: pytest.Collector, **more: Any) -> None:
        super().__init__(**more)
        self.real = real

    def collect(self) -> Iterator[pytest.Item]:
        yield Turn.from_parent(self, name="turn")


class Turn(pytest.Item):
    """Where the file's tests come among all others."""

    def tests(self) -> list[pytest.Item]:
        """Of the file, which is imported. An error in it is reported, and none are there."""
        assert isinstance(self.parent, Later)
        found = list(self.session.genitems(self.parent.real))
        self.ihook.pytest_collection_modifyitems(session=self.session, config=self.config, items=found)
        self.session.testscollected += len(found) - 1  # it was one itself
        return found

    def runtest(self) -> None:
        raise NotImplementedError  # `Queue` has its tests run
