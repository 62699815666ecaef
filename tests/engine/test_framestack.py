"""The stack of frames against a plain list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from emu.engine.framestack import FrameStack

FRAMES = 2000

steps = st.lists(
    st.tuples(st.sampled_from(["pop", "push", "take", "below", "all", "remove"]), st.integers(0, FRAMES)), max_size=60
)


def contents(stack: FrameStack) -> list[int]:
    """From the bottom to the top."""
    return list(stack)[::-1]


@settings(deadline=None)
@given(steps)
def test_as_a_list_whose_end_is_the_top(steps: list[tuple[str, int]]) -> None:
    stack, model = FrameStack(range(FRAMES)), list(range(FRAMES))[::-1]
    out: list[int] = []  # handed out
    for step, number in steps:
        if step == "pop" and model:
            assert stack.pop() == model[-1]
            out.append(model.pop())
        elif step == "push" and out:
            mfn = out.pop(number % len(out))
            stack.push(mfn)
            model.append(mfn)
        elif step in ("take", "below", "all"):
            count = number % (len(model) + 1)
            taken, rest = stack.take(count), model[len(model) - count :]
            del model[len(model) - count :]
            assert contents(taken) == rest and len(taken) == count
            if step == "take":
                out += rest
            elif step == "below":
                stack.put_below(taken)
                model[:0] = rest
            else:
                stack.push_all(taken)
                model += rest
        elif step == "remove" and model:
            first = model[number % len(model)]
            last = first
            while last + 1 in model and last - first < 5:
                last += 1
            stack.remove(range(first, last + 1))
            model = [mfn for mfn in model if not first <= mfn <= last]
        assert len(stack) == len(model)
    assert contents(stack) == model
    assert [mfn in stack for mfn in range(FRAMES)] == [mfn in {*model} for mfn in range(FRAMES)]
    found = [0] * FRAMES
    for index in stack.indices():
        for mfn in range(index.start, index.stop) if isinstance(index, slice) else index.tolist():
            found[mfn] += 1
    assert found == [int(mfn in {*model}) for mfn in range(FRAMES)]


def test_a_long_run_takes_no_memory() -> None:
    stack = FrameStack(range(1 << 40))
    assert [stack.pop() for _ in range(3)] == [0, 1, 2]
    assert len(stack) == (1 << 40) - 3
