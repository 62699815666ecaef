"""The local APIC of one processor. Source: Intel SDM vol. 3A, chapter 11 (APIC), as QEMU's version 0x14.

An interrupt arrives with a vector and sets its bit in the IRR. Its priority class is vector >> 4. When that is above
the class of the PPR, the CPU is asked; when the CPU accepts, the bit moves to the ISR, and EOI clears the highest bit
there. PPR is the greater of TPR and the highest vector in service. A bit in the TMR marks a level-triggered interrupt,
whose EOI the I/O APIC is told of. Vectors 0 to 15 are errors.

The pins LINT0 and LINT1 are wired to the 8259's INTR and to NMI. With the delivery mode ExtINT, LINT0 asks the CPU
whatever the PPR is, and the 8259 gives the vector. A globally disabled APIC is not there: the pins go to the CPU.

At reset LINT0 of the first processor is open in ExtINT mode, as on QEMU: what a BIOS sets up before a kernel that knows
only the 8259 runs. After INIT, and at reset of the other processors, it is masked. A pin's level means asserted or not,
whatever the polarity bit says. SMI does nothing. What the ICR sends, the bus between the APICs delivers (``apic_bus``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices import lapic_registers as reg
from emu.devices.apic_destination import wide_destination, x2apic_ldr
from emu.devices.cpu_pins import CpuPins
from emu.devices.device import Clock, Device, IrqLine, State, check_fields
from emu.devices.lapic_state import ApicState
from emu.devices.lapic_timer import ApicTimer
from emu.devices.wires import NumberedWire


class LocalApic(Device, ApicState):
    """One APIC. The bus clock is 1 GHz and the TSC counts virtual ns.

    Args:
        apic_id: its ID after reset, and the index of its processor; 0 is the first one, which boots (BSP).
        cpu: what it does to its processor.
        send_ipi: gets the destination, 32 bits with X2APIC_BROADCAST for everybody, and the ICR's lower half of each
            interrupt that the processor sends.
        acknowledge_pic: the 8259's INTA cycle, gives its vector.
        broadcast_eoi: gets the vector at the EOI of a level-triggered interrupt.
        clock: virtual time.
    """

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("base", "errors", "pins", "extint", "output")

    def __init__(
        self,
        apic_id: int,
        cpu: CpuPins,
        send_ipi: Callable[[int, int], None],
        acknowledge_pic: Callable[[], int],
        broadcast_eoi: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self.apic_id = apic_id
        self._cpu = cpu
        self._send_ipi = send_ipi
        self._acknowledge_pic = acknowledge_pic
        self._broadcast_eoi = broadcast_eoi
        self._clock = clock
        self.lint0: IrqLine = NumberedWire(self.set_pin, 0)
        self.lint1: IrqLine = NumberedWire(self.set_pin, 1)
        self._writers: dict[int, Callable[[int, int], None]] = {
            **dict.fromkeys((reg.ID, reg.LDR, reg.ICR_HIGH, reg.DFR), self._write_plain),
            **dict.fromkeys(reg.LVTS, self._write_lvt),
            reg.TPR: self._write_tpr, reg.EOI: self._write_eoi, reg.SVR: self._write_svr, reg.ESR: self._write_esr,
            reg.ICR: self._write_icr, reg.LVT_TIMER: self._write_lvt_timer, reg.TIMER_INITIAL: self._write_initial,
            reg.TIMER_DIVIDE: self._write_divide, reg.SELF_IPI: self._write_self_ipi,
        }  # fmt: skip
        super().__init__()
        self.base = reg.RESET_ADDRESS | reg.BASE_ENABLED | (0 if apic_id else reg.BASE_BSP)  # IA32_APIC_BASE
        self.pins = [False, False]  # levels of LINT0 and LINT1
        self._reset()

    # ---- the CPU's side

    @property
    def enabled(self) -> bool:
        """Not globally disabled: CPUID.1:EDX bit 9."""
        return bool(self.base & reg.BASE_ENABLED)

    @property
    def mapped(self) -> int | None:
        """gpa of the page with the registers; None while there is none (globally disabled, x2APIC mode)."""
        if self.base & (reg.BASE_ENABLED | reg.BASE_X2APIC) != reg.BASE_ENABLED:
            return None
        return self.base & ~0xFFF

    @property
    def cr8(self) -> int:
        """The TPR's class, 0 to 15, that long mode has as CR8."""
        return self.registers[reg.TPR] >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._write_tpr(reg.TPR, (value & 0xF) << 4)

    def acknowledge(self) -> int:
        """The CPU accepts an interrupt: its vector. With nothing to accept it is the spurious vector."""
        vector = self.irr.bit_length() - 1
        if vector >> 4 > self.registers[reg.PPR] >> 4:
            self.irr ^= 1 << vector
            self.isr |= 1 << vector
            self._update_ppr()
            return vector
        if self.extint:
            return self._acknowledge_pic()
        return self.registers[reg.SVR] & 0xFF

    def read_msr(self, index: int) -> int | None:
        """Value of MSR 0x1B, 0x6E0 or 0x800 to 0x8FF; None means #GP, for any other too."""
        if index in reg.X2APIC_MSRS:
            register = index - reg.X2APIC_MSRS.start
            if not self.base & reg.BASE_X2APIC or register not in reg.X2APIC_READABLE:
                return None
            if register == reg.ICR:
                return self.registers[reg.ICR] | self.registers[reg.ICR_HIGH] << 32
            return self._read(register)
        if index == reg.APIC_BASE_MSR:
            return self.base
        if index == reg.TSC_DEADLINE_MSR:
            self.tick(self._clock())
            return self.timer.tsc_deadline()
        return None

    def write_msr(self, index: int, value: int) -> bool:
        """Write one of the MSRs of ``read_msr``, 64 bits. False means #GP. ``mapped`` may change with MSR 0x1B."""
        if index in reg.X2APIC_MSRS:
            register = index - reg.X2APIC_MSRS.start
            writable = reg.X2APIC_WRITABLE.get(register)
            if writable is None or value & ~writable or not self.base & reg.BASE_X2APIC:
                return False
            if register == reg.ICR:
                self.registers[reg.ICR_HIGH] = value >> 32
            self._writers[register](register, value & reg.WRITABLE.get(register, writable))
            return True
        if index == reg.APIC_BASE_MSR:
            return self._write_base(value)
        if index == reg.TSC_DEADLINE_MSR:
            now_ns = self._clock()
            self.tick(now_ns)
            self.timer.set_tsc_deadline(value)
            self.tick(now_ns)
            return True
        return False

    # ---- interrupts from outside

    @property
    def software_enabled(self) -> bool:
        """Whether it takes vectors; one that does not still hears NMI, INIT and SIPI (SDM vol. 3A, 11.4.7.2)."""
        return bool(self.registers[reg.SVR] & reg.SVR_ENABLED)

    def deliver(self, vector: int, mode: int, level_triggered: bool) -> bool:
        """Take an interrupt whose destination is this APIC. Returns whether it was accepted."""
        if mode in (reg.FIXED, reg.LOWEST):
            return self._accept(vector, level_triggered)
        if mode == reg.NMI:
            self._cpu.raise_nmi(self.apic_id)
        elif mode == reg.INIT:
            self._init()
            self._cpu.on_init(self.apic_id)
        elif mode == reg.SIPI:
            self._cpu.on_startup(self.apic_id, vector)
        return True

    def set_pin(self, number: int, level: bool) -> None:
        """Drive LINT0 or LINT1."""
        if level == self.pins[number]:
            return
        self.pins[number] = level
        if not self.base & reg.BASE_ENABLED:
            if number == 1 and level:
                self._cpu.raise_nmi(self.apic_id)
        elif level:
            lvt = self.registers[reg.LVT_LINT0 + number]
            if not lvt & reg.MASKED and (lvt & reg.MODE or not lvt & reg.LEVEL):
                self.deliver(lvt & 0xFF, lvt >> 8 & 7, False)
        self._update_pins()

    # ---- time

    def deadline(self) -> int | None:
        return None if self.registers[reg.LVT_TIMER] & reg.MASKED else self.timer.expires

    def tick(self, now_ns: int) -> None:
        lvt = self.registers[reg.LVT_TIMER]
        if self.timer.expire(now_ns) and not lvt & reg.MASKED:
            self._accept(lvt & 0xFF, False)

    # ---- snapshots

    def state(self) -> State:
        timer = {name: getattr(self.timer, name) for name in ApicTimer.STATE}
        return {**super().state(), "registers": list(self.registers), "timer": timer}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned, and tell the processor the level that it asks for now."""
        check_fields("LocalApic", state, (*self.STATE, "registers", "timer"))
        timer = state["timer"]
        check_fields("ApicTimer", timer, ApicTimer.STATE)
        super().load_state({name: state[name] for name in self.STATE})
        for name in ApicTimer.STATE:
            setattr(self.timer, name, timer[name])
        self.set_registers(state["registers"])
        self._cpu.set_intr(self.apic_id, bool(self.output))

    # ---- registers

    def read(self, offset: int, size: int) -> int:
        if size != 4 or offset & 0xF:
            return 0
        register = offset >> 4
        if register not in reg.READABLE:
            self._error(reg.ILLEGAL_REGISTER)
            return 0
        return self._read(register)

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4 or offset & 0xF:
            return
        register = offset >> 4
        writable = reg.WRITABLE.get(register)
        if writable is not None:
            self._writers[register](register, value & writable)
        elif register not in reg.READABLE:
            self._error(reg.ILLEGAL_REGISTER)

    def _read(self, register: int) -> int:
        if register == reg.TIMER_CURRENT:
            now_ns = self._clock()
            self.tick(now_ns)
            return self.timer.count(now_ns)
        return self.registers[register]

    def _reset(self) -> None:
        """The state after power-up, but for the base and the pins."""
        self._clear(self.apic_id << 24)
        if self.base & reg.BASE_BSP:
            self.registers[reg.LVT_LINT0] = reg.EXTINT << 8
        self._update_pins()

    def _init(self) -> None:
        """What INIT leaves: ID and base stay, all else is as after power-up, LINT0 masked (SDM vol. 3A, 11.4.7.3)."""
        self._clear(self.registers[reg.ID])
        if self.base & reg.BASE_X2APIC:
            self.registers[reg.LDR] = x2apic_ldr(self.apic_id)
        self._update_pins()

    def _clear(self, id_register: int) -> None:
        self.set_registers([0] * reg.REGISTERS)
        self.registers[reg.ID] = id_register
        self.registers[reg.VERSION] = reg.VERSION_VALUE
        self.registers[reg.DFR] = 0xFFFF_FFFF
        self.registers[reg.SVR] = 0xFF
        for lvt in reg.LVTS:
            self.registers[lvt] = reg.MASKED
        self.errors = 0  # ESR bits since ESR was written
        self.timer.reset()
        self.extint = False

    def _write_base(self, value: int) -> bool:
        """IA32_APIC_BASE."""
        if value & ~reg.BASE_WRITABLE or value >> 10 & 3 not in reg.NEXT_STATES[self.base >> 10 & 3]:
            return False
        changed = self.base ^ value
        self.base = value & ~reg.BASE_BSP | self.base & reg.BASE_BSP
        if changed & reg.BASE_ENABLED:
            self._reset()
        elif changed & reg.BASE_X2APIC:
            self.registers[reg.ID], self.registers[reg.ICR_HIGH] = self.apic_id, 0
            self.registers[reg.LDR] = x2apic_ldr(self.apic_id)
        return True

    def _write_plain(self, register: int, value: int) -> None:
        self.registers[register] = value | (0x0FFF_FFFF if register == reg.DFR else 0)

    def _write_tpr(self, register: int, value: int) -> None:
        self.registers[reg.TPR] = value
        self._update_ppr()

    def _write_eoi(self, register: int, value: int) -> None:
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        self.isr ^= 1 << vector
        self._update_ppr()
        if self.tmr >> vector & 1:
            for lvt in (reg.LVT_LINT0, reg.LVT_LINT1):
                if self.registers[lvt] & 0xFF == vector:
                    self.registers[lvt] &= ~reg.REMOTE_IRR
            self._update_pins()
            self._broadcast_eoi(vector)

    def _write_svr(self, register: int, value: int) -> None:
        """Software disable masks the whole LVT; what is in IRR and ISR stays."""
        self.registers[reg.SVR] = value
        if not value & reg.SVR_ENABLED:
            for lvt in reg.LVTS:
                self._writers[lvt](lvt, self.registers[lvt])

    def _write_esr(self, register: int, value: int) -> None:
        self.registers[reg.ESR], self.errors = self.errors, 0

    def _write_icr(self, register: int, value: int) -> None:
        self.registers[reg.ICR] = value
        if value & 0xFF < reg.LOWEST_VECTOR and value >> 8 & 7 in (reg.FIXED, reg.LOWEST):
            self._error(reg.SEND_ILLEGAL)
            return
        destination = self.registers[reg.ICR_HIGH]
        if not self.base & reg.BASE_X2APIC:
            destination = wide_destination(destination >> 24)
        self._send_ipi(destination, value)

    def _write_self_ipi(self, register: int, value: int) -> None:
        self._write_icr(reg.ICR, reg.TO_SELF << reg.SHORTHAND | value)

    def _write_lvt(self, register: int, value: int) -> None:
        """The mask cannot be cleared while the APIC is software-disabled."""
        if not self.registers[reg.SVR] & reg.SVR_ENABLED:
            value |= reg.MASKED
        remote_irr = self.registers[register] & reg.REMOTE_IRR if value & reg.LEVEL else 0
        self.registers[register] = value & reg.WRITABLE[register] | remote_irr
        self._update_pins()

    def _write_lvt_timer(self, register: int, value: int) -> None:
        self.tick(self._clock())  # what has ended before now obeys the old mask and mode
        self.timer.set_mode(value >> reg.TIMER_MODE_SHIFT)
        self._write_lvt(register, value)

    def _write_initial(self, register: int, value: int) -> None:
        now_ns = self._clock()
        self.tick(now_ns)
        self.timer.set_initial(value, now_ns)
        self.registers[reg.TIMER_INITIAL] = self.timer.initial

    def _write_divide(self, register: int, value: int) -> None:
        now_ns = self._clock()
        self.tick(now_ns)
        self.timer.set_divide(value, now_ns)
        self.registers[reg.TIMER_DIVIDE] = value

    # ---- within

    def _accept(self, vector: int, level_triggered: bool) -> bool:
        """Put a vector into the IRR."""
        if vector < reg.LOWEST_VECTOR:
            self._error(reg.RECEIVE_ILLEGAL)
            return False
        if not self.registers[reg.SVR] & reg.SVR_ENABLED:
            return False
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level_triggered else self.tmr & ~bit
        self._update()
        return True

    def _error(self, bit: int) -> None:
        """Note an error for the ESR. It interrupts when it is new: a bad vector in LVT_ERROR is one error, not many."""
        if self.errors & bit:
            return
        self.errors |= bit
        lvt = self.registers[reg.LVT_ERROR]
        if not lvt & reg.MASKED:
            self._accept(lvt & 0xFF, False)

    def _update_pins(self) -> None:
        """See what the levels of the pins ask for: ExtINT, or a level-triggered interrupt."""
        extint = False
        if not self.base & reg.BASE_ENABLED:
            extint = self.pins[0]
        else:
            for lvt, level in zip((reg.LVT_LINT0, reg.LVT_LINT1), self.pins, strict=True):
                value = self.registers[lvt]
                if not level or value & reg.MASKED:
                    continue
                if value & reg.MODE == reg.EXTINT << 8:
                    extint = True
                elif not value & (reg.MODE | reg.REMOTE_IRR) and value & reg.LEVEL and self._accept(value & 0xFF, True):
                    self.registers[lvt] |= reg.REMOTE_IRR
        self.extint = extint
        self._update()

    def _update_ppr(self) -> None:
        tpr, served = self.registers[reg.TPR], self.isr.bit_length() - 1
        self.registers[reg.PPR] = tpr if tpr >> 4 >= served >> 4 else served & 0xF0
        self._update()

    def _update(self) -> None:
        output = self.extint or (self.irr.bit_length() - 1) >> 4 > self.registers[reg.PPR] >> 4
        if output != self.output:
            self.output = output
            self._cpu.set_intr(self.apic_id, bool(output))
