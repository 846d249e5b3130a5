"""What one call of a compiled program would last, by the compiler's estimates of its instructions. Pure.

The core issues the instructions one after the other; HBM serves the core's own accesses first and, in the time that
is left, the asynchronous copies that were started, in their order. An instruction lasts as long as the compiler
estimates, and a wait for a copy until HBM is that far. So a program lasts at least as long as all of its instructions,
and at least as long as HBM needs for all the bytes that they move.

A loop counts with its trips, once if they are unknown. Of a conditional the branch of a false predicate counts: in a
step program that is the one for requests which do not ask for anything special.
"""

from collections.abc import Callable, Mapping

import msgspec

from runtime.compile.hlo import Instruction, Module

FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id", "domain"}
)
"""Operations that are names for something, and take no time."""
_MOVES = frozenset({"slice", "dynamic-slice", "dynamic-update-slice", "copy", "concatenate"}) | FREE


class KernelTime(msgspec.Struct, frozen=True):
    """What a kernel's call takes: the core to issue it, and HBM to move its bytes; both overlap. Seconds."""

    issue_s: float
    memory_s: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What turns cycles, bytes and operations into seconds."""

    clock_hz: float
    hbm_bytes_per_s: float
    peak_flop_per_s: float

    def roofline_s(self, flop: float, num_bytes: float) -> float:
        """The least that so many operations on so many bytes can take."""
        return max(flop / self.peak_flop_per_s, num_bytes / self.hbm_bytes_per_s)


class Walked(msgspec.Struct, frozen=True, kw_only=True):
    """What a call lasts. `core_s` is the sum over the instructions, `hbm_s` what HBM needs for their bytes; `step_s`
    is at least as long as either. `unestimated` counts instructions whose time is only that of their results' bytes,
    and loops of unknown trips.
    """

    step_s: float
    core_s: float
    hbm_s: float
    unestimated: int


class _Clock:
    """Time of the core, and how much of the asynchronous copies, in seconds of HBM, was started and is done."""

    def __init__(self) -> None:
        self.now_s = self.core_s = self.hbm_s = self.started_s = self.done_s = 0.0
        self.unestimated = 0

    def work(self, core_s: float, memory_s: float) -> None:
        lasts = max(core_s, memory_s)
        self.now_s += lasts
        self.core_s += core_s
        self.hbm_s += memory_s
        self.done_s = min(self.started_s, self.done_s + lasts - memory_s)

    def start(self, memory_s: float) -> float:
        """Starts a copy; returns how far HBM must be when it is done."""
        self.started_s += memory_s
        self.hbm_s += memory_s
        return self.started_s

    def wait(self, until_s: float) -> None:
        late_s = max(until_s - self.done_s, 0.0)
        self.now_s += late_s
        self.done_s += late_s


def walk(module: Module, rates: Rates, kernels: Mapping[str, KernelTime]) -> Walked:
    """The program's time; `kernels` has that of one call of each of its kernels, by name.

    Raises ValueError for a kernel that is not among them.
    """
    if unknown := module.kernels - kernels.keys():
        raise ValueError(f"no time is known of the kernels {sorted(unknown)}")
    clock = _Walk(module, rates, kernels).computation(module.entry, _Clock())
    clock.wait(clock.started_s)
    return Walked(step_s=clock.now_s, core_s=clock.core_s, hbm_s=clock.hbm_s, unestimated=clock.unestimated)


class _Walk:
    def __init__(self, module: Module, rates: Rates, kernels: Mapping[str, KernelTime]) -> None:
        self._module = module
        self._rates = rates
        self._kernels = kernels
        self._special: dict[str, Callable[[Instruction, _Clock, dict[str, float]], _Clock]] = {
            "copy-start": self._start_copy,
            "async-start": self._start_async,
            "async-update": self._wait_later,
            "copy-done": self._wait,
            "async-done": self._wait,
            "while": self._loop,
            "conditional": self._choice,
            "call": self._call,
        }

    def computation(self, name: str, clock: _Clock) -> _Clock:
        """Walks a computation from the clock's time on; returns the clock that goes on."""
        hbm_bytes: dict[str, int] = {}
        copies: dict[str, float] = {}
        for each in self._module.computations[name]:
            hbm_bytes[each.name] = sum(array.num_bytes for array in each.arrays if array.in_hbm)
            if special := self._special.get(each.opcode):
                clock = special(each, clock, copies)
            elif each.opcode not in FREE:
                self._plain(each, clock, hbm_bytes)
        return clock

    def _plain(self, each: Instruction, clock: _Clock, hbm_bytes: Mapping[str, int]) -> None:
        if each.kernel:
            took = self._kernels[each.kernel]
            clock.work(took.issue_s, took.memory_s)
        elif each.cycles is not None:
            lasts = each.cycles / self._rates.clock_hz
            # Some operands are read only in part, so their bytes may not make it longer than the compiler says.
            moved = sum(hbm_bytes.get(name, 0) for name in {each.name, *each.operands})
            clock.work(lasts, min(lasts, self._memory_s(moved)))
        elif each.opcode != "custom-call":  # those that are no kernels are hints to the compiler
            clock.unestimated += 1
            clock.work(0.0, self._memory_s(2 * hbm_bytes[each.name]))

    def _memory_s(self, num_bytes: float) -> float:
        return num_bytes / self._rates.hbm_bytes_per_s

    def _start_copy(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        target, source = each.arrays[:2]
        copies[each.name] = clock.start(self._memory_s(target.num_bytes * (target.in_hbm + source.in_hbm)))
        return clock

    def _start_async(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        """A slice that is copied; anything else runs on another core beside this one, and counts nothing."""
        inside = self._module.computations.get(each.called.get("calls", ""), ())
        memory_s = 0.0
        if inside and all(part.opcode in _MOVES for part in inside):
            memory_s = self._memory_s(sum(array.num_bytes for array in inside[-1].arrays))
        else:
            clock.unestimated += 1
        copies[each.name] = clock.start(memory_s)
        return clock

    def _wait_later(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        copies[each.name] = copies.get(each.operands[0], 0.0)
        return clock

    def _wait(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        clock.wait(copies.get(each.operands[0], 0.0))
        return clock

    def _loop(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        trips = self._module.trips(each)
        clock.unestimated += trips is None
        for _ in range(1 if trips is None else trips):
            clock = self.computation(each.called["body"], self.computation(each.called["condition"], clock))
        return clock

    def _choice(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        return self.computation(each.branches[0], clock)

    def _call(self, each: Instruction, clock: _Clock, copies: dict[str, float]) -> _Clock:
        return self.computation(each.called["to_apply"], clock)
