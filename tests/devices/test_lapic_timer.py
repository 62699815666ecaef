"""The local APIC's timer against one that really counts, clock by clock."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.lapic_timer import ONE_SHOT, PERIODIC, TSC_DEADLINE, ApicTimer

DIVISORS = {0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1}  # divide configuration register


class Counting:
    """Decrements its count at every clock of its prescaler, which starts anew with the count or the divisor."""

    def __init__(self) -> None:
        self.periodic = False
        self.initial = self.count = self.prescaler = self.ends = 0
        self.divisor = 2

    def nanosecond(self) -> None:
        if not self.count:
            return
        self.prescaler += 1
        if self.prescaler < self.divisor:
            return
        self.prescaler = 0
        self.count -= 1
        if not self.count:
            self.ends += 1
            self.count = self.initial if self.periodic else 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(0, 300)),
            st.tuples(st.just("initial"), st.integers(0, 40)),
            st.tuples(st.just("divide"), st.sampled_from(sorted(DIVISORS))),
            st.tuples(st.just("mode"), st.sampled_from([ONE_SHOT, PERIODIC])),
        ),
        max_size=30,
    )
)
def test_as_if_it_counted(steps: list[tuple[str, int]]) -> None:
    timer, model, now_ns = ApicTimer(), Counting(), 0
    for action, value in steps:
        ends = model.ends
        if action == "wait":
            for _ in range(value):
                model.nanosecond()
            now_ns += value
        assert timer.expire(now_ns) == (model.ends > ends)
        if action == "initial":
            timer.set_initial(value, now_ns)
            model.initial = model.count = value
            model.prescaler = 0
        elif action == "divide":
            timer.set_divide(value, now_ns)
            model.divisor = DIVISORS[value]
            model.prescaler = 0
        elif action == "mode":
            timer.set_mode(value)
            model.periodic = value == PERIODIC
        assert timer.count(now_ns) == model.count
        assert (timer.expires is None) == (model.count == 0)


def test_tsc_deadline_is_a_mode_of_its_own() -> None:
    timer = ApicTimer()
    timer.set_initial(1000, 0)
    timer.set_tsc_deadline(50)
    assert timer.tsc_deadline() == 0
    assert timer.expires == 2000
    timer.set_mode(TSC_DEADLINE)
    assert timer.expires is None
    timer.set_tsc_deadline(50)
    timer.set_initial(7, 0)
    assert (timer.tsc_deadline(), timer.count(0), timer.initial) == (50, 0, 1000)
    assert not timer.expire(49)
    assert timer.expire(50)
    assert not timer.expire(51)
    assert timer.tsc_deadline() == 0
