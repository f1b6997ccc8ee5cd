"""When a target is told: a pure matter of what was seen and when. Times are made up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gateway.notify import states
from gateway.notify.states import CALM_SECONDS, QUIET_SECONDS, RULES, Notice, Rule, State, heard, step
from gateway.notify.subjects import Kind, Observation, Severity, Subject
from gateway.notify.window import Calls, Window

LOOK = 10.0
REPEAT = 4 * 3600.0
SUBJECT = Subject(Kind.FUNCTION, "default", "hello")


def seen(severity: Severity = Severity.WARNING) -> Observation:
    return Observation(SUBJECT, severity, "it fails", "faas logs hello")


@dataclass
class Story:
    """Looks one after the other, each told at once where something is due."""

    rule: Rule = RULES[Kind.FUNCTION]
    state: State = field(default_factory=State)
    now: float = 1_000_000.0
    told: list[tuple[Notice, float]] = field(default_factory=list)

    def look(self, observation: Observation | None, times: int = 1) -> None:
        for _ in range(times):
            self.now += LOOK
            self.state = step(self.state, observation, self.rule, self.now)
            if (notice := states.due(self.state, REPEAT, self.now)) is not None:
                self.told.append((notice, self.now))
                self.state = heard(self.state, notice, self.state.severity, self.now)

    @property
    def notices(self) -> list[Notice]:
        return [notice for notice, _ in self.told]


def test_a_function_is_told_of_after_three_bad_looks_of_five_and_not_for_one() -> None:
    story = Story()
    for bad in (True, False, False, False, False, False, True, False, True):
        story.look(seen() if bad else None)
    assert story.told == []
    story.look(seen())
    assert story.notices == [Notice.FIRING]
    assert story.state.since == story.now - 3 * LOOK, "since the first look of what goes on"


def test_what_is_written_down_somewhere_is_told_at_the_first_look() -> None:
    story = Story(RULES[Kind.DEAD_LETTER])
    story.look(seen())
    assert story.notices == [Notice.FIRING]


def test_it_is_over_after_a_quiet_time_and_told_once() -> None:
    story = Story()
    story.look(seen(), 3)
    story.look(None, int(QUIET_SECONDS / LOOK) - 1)
    assert story.notices == [Notice.FIRING]
    story.look(None, 500)
    assert story.notices == [Notice.FIRING, Notice.RESOLVED]
    assert states.is_over(story.state, story.now), "nothing of it is kept for ever"


def test_what_flaps_within_the_quiet_time_is_one_message() -> None:
    story = Story()
    for _ in range(50):
        story.look(seen(), 3)
        story.look(None, int(QUIET_SECONDS / LOOK) - 1)
    assert story.notices[0] is Notice.FIRING
    assert set(story.notices[1:]) <= {Notice.FIRING}
    assert len(story.notices) == 1 + int((story.now - story.told[0][1]) // REPEAT)


def test_what_fires_again_and_again_must_be_quiet_for_longer_each_time() -> None:
    story = Story()
    for _ in range(40):  # every twelve minutes, for eight hours
        story.look(seen(), 3)
        story.look(None, 69)
    ends = [at for notice, at in story.told if notice is Notice.RESOLVED]
    assert 1 <= len(ends) <= 3
    story.look(None, int(CALM_SECONDS / LOOK) + 1)
    assert story.notices[-1] is Notice.RESOLVED


def test_it_is_said_again_every_four_hours_and_at_once_when_it_is_worse() -> None:
    story = Story()
    story.look(seen(), int(2 * REPEAT / LOOK) + 10)
    assert [at - story.told[0][1] for _, at in story.told] == [0, REPEAT, 2 * REPEAT]
    story.look(seen(Severity.CRITICAL))
    assert len(story.told) == 4
    story.look(seen(Severity.WARNING))
    assert len(story.told) == 4


def test_what_begins_and_ends_before_anybody_could_be_told_is_never_told() -> None:
    state, now = State(), 1e6
    for _ in range(3):
        state = step(state, seen(), RULES[Kind.FUNCTION], now)
    for _ in range(40):
        now += LOOK
        state = step(state, None, RULES[Kind.FUNCTION], now)
    assert states.due(state, REPEAT, now) is None


def test_what_ends_while_its_message_is_on_its_way_is_told_after_it() -> None:
    firing = step(State(), seen(), Rule(), 1e6)
    later = step(firing, None, Rule(), 1e6 + QUIET_SECONDS)
    known = heard(later, Notice.FIRING, firing.severity, 1e6 + QUIET_SECONDS)
    assert states.due(known, REPEAT, 1e6 + QUIET_SECONDS) is Notice.RESOLVED


def test_a_restart_repeats_nothing_and_forgets_no_end() -> None:
    story = Story()
    story.look(seen(), 3)
    story.now += 3600
    story.state = State.load(story.state.dump(), story.now)
    story.look(seen())
    assert story.notices == [Notice.FIRING]
    story.state = State.load(story.state.dump(), story.now)
    story.look(None, int(QUIET_SECONDS / LOOK) - 1)
    assert story.notices == [Notice.FIRING], "the quiet time began with the restart"
    story.look(None, 2)
    assert story.notices == [Notice.FIRING, Notice.RESOLVED]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"told": {"severity": 9}}'])
def test_a_state_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        State.load(text, 0.0)


def test_the_window_counts_what_came_since_its_first_look_and_forgets_it() -> None:
    window = Window(300)
    window.add({"hello": Calls(1000, 900)}, 0)
    assert window.failing() == {}, "before it looked"
    window.add({"hello": Calls(1010, 905), "new": Calls(4, 3)}, 10)
    assert window.failing() == {"hello": Calls(10, 5), "new": Calls(4, 3)}
    window.add({"hello": Calls(2, 1), "new": Calls(4, 3)}, 20)  # a deploy: its counters began anew
    assert window.failing()["hello"] == Calls(12, 6)
    window.add({"hello": Calls(2, 1)}, 311)
    assert window.failing() == {}
    window.add({"hello": Calls(2, 1)}, 1000)
    assert window._sums == {}


def test_two_failures_are_no_rate() -> None:
    window = Window()
    window.add({}, 0)
    window.add({"hello": Calls(2, 2)}, 10)
    assert window.failing() == {}
