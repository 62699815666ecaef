"""SYSCALL and SYSENTER in every mode that has them."""

from __future__ import annotations

import ctypes

import pytest

from emu.engine.cpustate import CSTAR, FMASK, LSTAR, STAR, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench

KERNEL = 0xB000
STAR_SELECTOR = 0x08  # CS 08h, SS 10h
ALL_FLAGS = 0x8D5 | b.IF | b.DF | b.NT | b.AC | b.IOPL3 | 2



@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.long(ring=3)
    bench.cpu.efer |= 1
    for handler in (6, 13):
        bench.write(b.HANDLER + 16 * handler, b"\xf4")
    bench.write(KERNEL, b"\xf4")
    bench.write(KERNEL + 0x100, b"\xf4")
    return bench


def set_msr(bench: Bench, offset: int, value: int) -> None:
    ctypes.c_uint64.from_address(bench.vm.processor.engine.env + offset).value = value


def set_syscall(bench: Bench, mask: int = 0) -> None:
    set_msr(bench, STAR, STAR_SELECTOR << 32 | KERNEL)
    set_msr(bench, LSTAR, KERNEL)
    set_msr(bench, CSTAR, KERNEL + 0x100)
    set_msr(bench, FMASK, mask)


def assert_flat_kernel(bench: Bench, bits: int) -> None:
    cpu = bench.cpu
    assert cpu.cpl == 0 and cpu.bits == bits
    assert (cpu.cs.selector, cpu.cs.base, cpu.cs.limit) == (8, 0, 0xFFFF_FFFF)
    assert (cpu.ss.selector, cpu.ss.base, cpu.ss.limit) == (16, 0, 0xFFFF_FFFF)


@pytest.mark.parametrize("mask", [0, b.IF, b.IF | b.DF | 0x8D5, 0xFFFF_FFFF])
@pytest.mark.parametrize("prefix", [b"", b"\x48", b"\x66\x48"])
def test_syscall_in_64_bit_mode(bench: Bench, prefix: bytes, mask: int) -> None:
    set_syscall(bench, mask)
    bench.set_eflags(ALL_FLAGS)
    bench.write(b.CODE, prefix + b"\x0f\x05")
    bench.vm.run()
    assert_flat_kernel(bench, 64)
    assert bench.cpu.rcx == b.CODE + len(prefix) + 2
    assert bench.cpu.r11 == ALL_FLAGS
    assert bench.eflags == ALL_FLAGS & ~mask | 2
    assert bench.cpu.rip == KERNEL + 1 and bench.cpu.rsp == b.STACK3


def test_syscall_and_back(bench: Bench) -> None:
    set_syscall(bench, b.IF)
    set_msr(bench, STAR, STAR_SELECTOR << 32 | 0x13 << 48)
    bench.write(KERNEL, b.assemble("inc rbx; sysret", 64, KERNEL))
    bench.set_eflags(b.IF | 2)
    bench.write(b.CODE, b.assemble("syscall; syscall; syscall; ud2", 64))
    bench.vm.run()
    assert bench.cpu.rbx == 3
    assert bench.stack(1, 8) == [b.CODE + 6]


def test_syscall_in_compatibility_mode(bench: Bench) -> None:
    set_syscall(bench)
    bench.cpu.cs.set(b.CODE3, 0, 0xFFFF_FFFF, b.CODE_32 | b.RING3)
    bench.set_eflags(2)
    bench.write(b.CODE, b"\x0f\x05")
    bench.vm.run()
    assert_flat_kernel(bench, 64)
    assert bench.cpu.rip == KERNEL + 0x101 and bench.cpu.rcx == b.CODE + 2


def test_syscall_without_sce_is_an_invalid_opcode(bench: Bench) -> None:
    set_syscall(bench)
    bench.cpu.efer &= ~1
    bench.write(b.CODE, b"\x90\x0f\x05")
    bench.vm.run()
    assert bench.cpu.rip == b.HANDLER + 0x61 and bench.stack(2, 8) == [b.CODE + 1, b.CODE3]


def test_a_missing_system_call_whose_handler_is_not_resident(bench: Bench) -> None:
    bench.cpu.efer &= ~1
    bench.write(b.CODE, b"\x0f\x05")
    bench.vm.run()
    assert b.STACK_TSS - 8 >> 12 in [e.gfn for e in bench.events if e.NAME == "dmm-fault"]  # type: ignore[attr-defined]
    assert bench.stack(1, 8) == [b.CODE]


def test_syscall_traps_after_the_entry_when_tf_stays_set(bench: Bench) -> None:
    bench.write(b.HANDLER + 16, b"\xf4")
    for mask, rip in ((0, KERNEL), (b.TF, None)):
        bench.long(ring=3)
        bench.cpu.efer |= 1
        set_syscall(bench, mask)
        bench.write(b.CODE, b"\x0f\x05")
        bench.set_eflags(b.TF | 2)
        bench.vm.run()
        if rip is None:
            assert bench.cpu.rip == KERNEL + 1
        else:
            assert bench.cpu.rip == b.HANDLER + 17 and bench.stack(1, 8) == [rip]


def test_syscall_in_protected_mode() -> None:
    bench = Bench()
    bench.protected(ring=3)
    bench.cpu.efer = 1
    set_syscall(bench)
    bench.set_eflags(ALL_FLAGS)
    bench.write(b.CODE, b"\x0f\x05")
    bench.write(KERNEL, b"\xf4")
    bench.vm.run()
    assert_flat_kernel(bench, 32)
    assert bench.cpu.rip == KERNEL + 1 and bench.cpu.rcx == b.CODE + 2
    assert bench.eflags == ALL_FLAGS & ~b.IF


def test_sysenter_in_protected_mode() -> None:
    bench = Bench()
    bench.protected(ring=3)
    bench.write(KERNEL, b"\xf4")
    bench.write(b.HANDLER + 16 * 13, b"\xf4")
    bench.write(b.CODE, b"\x90\x0f\x34")
    bench.vm.run()
    assert bench.cpu.rip == b.HANDLER + 16 * 13 + 1  # IA32_SYSENTER_CS is null
    assert bench.stack(2, 4) == [0, b.CODE + 1]
    bench.protected(ring=3)
    set_msr(bench, SYSENTER_CS, 0x0B)
    set_msr(bench, SYSENTER_ESP, 0x12340)
    set_msr(bench, SYSENTER_EIP, KERNEL)
    bench.set_eflags(ALL_FLAGS)
    bench.vm.run()
    assert_flat_kernel(bench, 32)
    assert bench.cpu.rip == KERNEL + 1 and bench.cpu.rsp == 0x12340
    assert bench.eflags == ALL_FLAGS & ~b.IF


def test_sysenter_is_invalid_in_64_bit_mode(bench: Bench) -> None:
    bench.write(b.CODE, b"\x0f\x34")
    bench.vm.run()
    assert bench.cpu.rip == b.HANDLER + 0x61
