"""Reading libtpu's final VLIW schedule of one compiled kernel: bundles, slots, spills and DMAs of every loop.

The compiler writes the schedule where `kernels.aot.set_environment(target, dump_dir)` tells it to: one line per bundle
in `*-final_bundles.txt`, and the slots that each bundle occupies in
`*-final_hlo-static-per-bundle-utilization.txt`. What is read here is the compiler's plan, not a measurement.

How to read it (checked with libtpu 0.0.52):

* A bundle is one issue cycle of the TensorCore; an empty bundle is a stall. A loop's bundles x its trips is a lower
  bound of its issue time: waits for DMAs and branch bubbles are not in it.
* A loop runs from its `LB` mark to its backward branch plus the branch's delay slots. The depth marks `>` are no
  guide: the scheduler moves instructions of an outer loop between those of an inner one.
* The slot columns are occupied slot-cycles, not instructions: a bfloat16 vmatmul holds its MXU for 8 bundles.
* Only DMAs of a static size have bytes; their number counts all.
"""

import re
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

import msgspec

DELAY_SLOTS = 4
"""Bundles after a branch that are issued whether or not it is taken."""
GRANULE_BYTES = 32
"""What the dumps count DMA sizes in."""

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s?[> ]*\{")
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_BRANCH = re.compile(r"sbr\.rel .*?target = \$region(\d+)")
_DMA = re.compile(r"= dma\.(\w+)(?:\.\w+)?[^;}]*?/\*size_in_granules=\*/(%?\w+)")
_SCALAR_SPILL = re.compile(r"smem:\[#allocation\d+_spill")


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a stretch of the schedule holds; nested loops are counted once, not times their trips."""

    bundles: int = 0
    dma_starts: int = 0
    dma_bytes: int = 0
    """Bytes of the DMAs from or to HBM whose size is static."""
    vmatmuls: int = 0
    scalar_spills: int = 0
    """Stores and loads of spilled scalars."""
    slot_cycles: dict[str, int] = {}
    """Occupied slot-cycles by slot: MATMUL, MATPUSH, XLU, VALU, ..., `VSTORE:SPILL`, `VLOAD:FILL`."""

    def __add__(self, other: "Content") -> "Content":
        slots = self.slot_cycles.keys() | other.slot_cycles.keys()
        return Content(
            bundles=self.bundles + other.bundles,
            dma_starts=self.dma_starts + other.dma_starts,
            dma_bytes=self.dma_bytes + other.dma_bytes,
            vmatmuls=self.vmatmuls + other.vmatmuls,
            scalar_spills=self.scalar_spills + other.scalar_spills,
            slot_cycles={slot: self.slot_cycles.get(slot, 0) + other.slot_cycles.get(slot, 0) for slot in slots},
        )

    @property
    def spills(self) -> int:
        """Stores of spilled vector registers."""
        return self.slot_cycles.get("VSTORE:SPILL", 0)

    @property
    def fills(self) -> int:
        """Loads of spilled vector registers."""
        return self.slot_cycles.get("VLOAD:FILL", 0)

    @property
    def spill_share(self) -> float:
        """Vector spills and fills per bundle."""
        return (self.spills + self.fills) / max(self.bundles, 1)


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: bundles first..end-1 of the schedule."""

    first: int
    end: int
    depth: int
    """1 for a loop that lies in no other."""
    whole: Content
    """Everything between first and end, nested loops counted once."""
    own: Content
    """The same without nested loops."""
    skippable: int
    """The part of `own.bundles` that some forward branch can jump over: a prefetch, a tail."""

    def contains(self, other: "Loop") -> bool:
        """Whether `other` is nested in this loop, at any depth."""
        return self.first <= other.first and other.end <= self.end and self.depth < other.depth


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The final schedule of one kernel; loops are in the order in which they start, outer before inner."""

    whole: Content
    loops: tuple[Loop, ...]
    capacity: dict[str, int]
    """Slots of a bundle by name."""

    def children(self, loop: Loop | None) -> list[Loop]:
        """The loops directly inside `loop`; None asks for the outermost ones."""
        if loop is None:
            return [inner for inner in self.loops if inner.depth == 1]
        return [inner for inner in self.loops if loop.contains(inner) and inner.depth == loop.depth + 1]

    def occupancy(self, content: Content) -> dict[str, float]:
        """Share of each slot's cycles that are occupied, 0..1."""
        bundles = max(content.bundles, 1)
        return {slot: content.slot_cycles.get(slot, 0) / (n * bundles) for slot, n in self.capacity.items()}


class _Bundle(msgspec.Struct, frozen=True):
    """One line of the schedule: its mark (`LB`, ...), its text and the slots it occupies."""

    mark: str
    text: str
    slots: tuple[int, ...]


def read_schedule(dump_dir: Path, kernel: str) -> Schedule:
    """The schedule of the newest dump of the kernel called `kernel`.

    Raises FileNotFoundError if there is none, ValueError if the two files do not fit each other.
    """
    bundles_file = _newest(dump_dir, kernel, "-final_bundles.txt")
    slots_file = _newest(dump_dir, kernel, "-final_hlo-static-per-bundle-utilization.txt")
    return parse_schedule(bundles_file.read_text(), slots_file.read_text())


def _newest(dump_dir: Path, kernel: str, suffix: str) -> Path:
    # Dumps are called `ID-KERNEL.N-PASS-NAME.txt`; the analysis of a schedule ends in the same words.
    mine = re.compile(rf"\d+-{re.escape(kernel)}(\.\d+)?-\d+{re.escape(suffix)}")
    files = [path for path in dump_dir.glob(f"*{suffix}") if mine.fullmatch(path.name)]
    if not files:
        raise FileNotFoundError(f"{dump_dir} has no {suffix} of a kernel called {kernel}")
    return max(files, key=lambda path: path.stat().st_mtime_ns)


def parse_schedule(bundles_text: str, slots_text: str) -> Schedule:
    """The schedule from the text of the two files. Raises ValueError if they do not fit each other."""
    capacity, used = _parse_slots(slots_text)
    bundles = _parse_bundles(bundles_text, used)
    jumps = _find_jumps(bundles)
    spans = _find_loops(bundles, jumps)
    names = tuple(capacity)
    loops = tuple(_loop(span, spans, jumps, bundles, names) for span in spans)
    return Schedule(whole=_content(bundles, names), loops=loops, capacity=capacity)


def _parse_slots(text: str) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """Capacities by name and one row per bundle. Line 2 names the slots, line 3 counts them, rows start in line 5."""
    lines = text.splitlines()
    names = [name.strip() for name in lines[1].split(",")]
    capacity = dict(zip(names, map(int, lines[2].split()), strict=True))
    return capacity, [tuple(map(int, line.split())) for line in lines[4:] if line.strip()]


def _parse_bundles(text: str, used: Sequence[tuple[int, ...]]) -> list[_Bundle]:
    marks: list[str] = []
    texts: list[list[str]] = []
    for line in text.splitlines():
        if found := _BUNDLE.match(line):
            marks.append(found[1] or "")
            texts.append([line])
        elif texts:  # a bundle may span lines
            texts[-1].append(line)
    if len(marks) != len(used):
        raise ValueError(f"the schedule has {len(marks)} bundles, its table of slots {len(used)}")
    return [_Bundle(mark, "\n".join(lines), slots) for mark, lines, slots in zip(marks, texts, used, strict=True)]


def _find_jumps(bundles: Sequence[_Bundle]) -> list[tuple[int, int]]:
    """(bundle of the branch, bundle it leads to) of every branch."""
    start_of = {region: i for i, bundle in enumerate(bundles) for region in _REGION.findall(bundle.text)}
    return [
        (i, start_of[region])
        for i, bundle in enumerate(bundles)
        for region in _BRANCH.findall(bundle.text)
        if region in start_of
    ]


def _find_loops(bundles: Sequence[_Bundle], jumps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, end) of every loop."""
    spans = []
    for first, bundle in enumerate(bundles):
        back = [source for source, target in jumps if target == first <= source]
        if bundle.mark == "LB" and back:
            spans.append((first, min(max(back) + 1 + DELAY_SLOTS, len(bundles))))
    return spans


def _loop(
    span: tuple[int, int],
    spans: Sequence[tuple[int, int]],
    jumps: Sequence[tuple[int, int]],
    bundles: Sequence[_Bundle],
    names: tuple[str, ...],
) -> Loop:
    first, end = span
    nested = {i for a, b in spans if first < a and b <= end for i in range(a, b)}
    skipped = {i for source, target in jumps if first <= source < target <= end
               for i in range(source + 1 + DELAY_SLOTS, target)}  # fmt: skip
    return Loop(
        first=first,
        end=end,
        depth=sum(a <= first and end <= b for a, b in spans),
        whole=_content(bundles[first:end], names),
        own=_content((bundles[i] for i in range(first, end) if i not in nested), names),
        skippable=len(skipped - nested),
    )


def _content(bundles: Iterable[_Bundle], names: tuple[str, ...]) -> Content:
    return reduce(Content.__add__, (_bundle_content(bundle, names) for bundle in bundles), Content())


def _bundle_content(bundle: _Bundle, names: tuple[str, ...]) -> Content:
    dmas = _DMA.findall(bundle.text)
    return Content(
        bundles=1,
        dma_starts=len(dmas),
        dma_bytes=GRANULE_BYTES * sum(int(size) for route, size in dmas if _from_or_to_hbm(route) and size.isdigit()),
        vmatmuls=bundle.text.count("vmatmul."),
        scalar_spills=len(_SCALAR_SPILL.findall(bundle.text)),
        slot_cycles={name: n for name, n in zip(names, bundle.slots, strict=True) if n},
    )


def _from_or_to_hbm(route: str) -> bool:
    return "hbm" in route or route == "general"  # general: from HBM to HBM
