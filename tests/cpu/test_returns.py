"""What a return to an outer level leaves in the segment registers (SDM vol. 2A, IRET; vol. 2B, RET)."""

from __future__ import annotations

import pytest

from tests.cpu import delivery_bench as b
from tests.cpu.probing import prepare, run

RETURNS = {
    "iretd": f"push {b.DATA3}; push {b.STACK3}; pushfd; push {b.CODE3}; push {{}}; iretd",
    "retf": f"push {b.DATA3}; push {b.STACK3}; push {b.CODE3}; push {{}}; .byte 0xCB",
    "retf 8": f"push {b.DATA3}; push {b.STACK3}; push 0; push 0; push {b.CODE3}; push {{}}; .byte 0xCA, 8, 0",
}
USER = 0xA000


@pytest.mark.parametrize("name", RETURNS)
def test_null_selectors_lose_their_rpl(name: str) -> None:
    bench = prepare("protected")
    code = f"mov eax, 3; mov ds, eax; mov es, eax; mov fs, eax; mov eax, {b.DATA0}; mov gs, eax;"
    bench.write(USER, b"\xf4")
    fault = run(bench, code + RETURNS[name].format(USER), "protected")
    assert fault is not None and fault.vector == 13  # HLT at CPL 3
    cpu = bench.cpu
    assert [segment.selector for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs)] == [0, 0, 0, 0]


@pytest.mark.parametrize("code", ["iretq", "retfq"])
def test_the_base_of_gs_stays_when_its_segment_is_taken_away(code: str) -> None:
    bench = prepare("long")
    flags = "pushfq;" if code == "iretq" else ""
    frame = f"push {b.DATA3}; push {b.STACK3}; {flags} push {b.CODE3}; push {USER};"
    source = f"mov eax, {b.DATA0}; mov gs, eax; mov fs, eax; mov ecx, 0xC0000101; xor edx, edx; mov eax, 0x12345000;"
    source += "wrmsr; mov ecx, 0xC0000100; wrmsr;" + frame
    bench.write(USER, b"\xf4")
    fault = run(bench, b.assemble(source, 64) + {"iretq": b"\x48\xcf", "retfq": b"\x48\xcb"}[code], "long")
    assert fault is not None and fault.vector == 13 and bench.cpu.rip == b.HANDLER + 13 * 16 + 1
    assert (bench.cpu.gs.selector, bench.cpu.gs.base) == (0, 0x12345000)
    assert (bench.cpu.fs.selector, bench.cpu.fs.base) == (0, 0x12345000)


def test_a_return_to_the_same_level_keeps_them() -> None:
    bench = prepare("protected")
    code = f"mov eax, 3; mov ds, eax; mov fs, eax; pushfd; push {b.CODE0}; push {USER}; iretd"
    bench.write(USER, b"\xf4")
    assert run(bench, code, "protected") is None
    assert (bench.cpu.ds.selector, bench.cpu.fs.selector) == (3, 3)


@pytest.mark.parametrize("load", ["mov ss, eax", "mov ss, [rsi]", "lss eax, [rsi - 4]", "lss ax, [rsi - 2]"])
@pytest.mark.parametrize(("selector", "vector"), [(0, None), (1, 13), (3, 13), (b.DATA0, None), (b.DATA0 | 3, 13)])
def test_a_null_selector_in_ss_has_the_privilege_level(load: str, selector: int, vector: int | None) -> None:
    bench = prepare("long")
    bench.write(0x20000, selector.to_bytes(2, "little"))
    fault = run(bench, f"mov esi, 0x20000; mov eax, {selector}; {load}", "long")
    assert (None if fault is None else fault.vector) == vector
    if fault is None:
        assert bench.cpu.ss.selector == selector
    else:
        assert fault.error == selector & 0xFFFC
