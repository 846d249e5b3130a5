"""The report's tables: the project's kernels, each with jax's at its best below it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from kernels.report.comparison import NAME as JAX
from kernels.report.document import Report
from kernels.report.figures import DecodeFigures, LoopFigures, PrefillFigures
from kernels.report.sheets import Sheet

Figures = TypeVar("Figures", DecodeFigures, PrefillFigures)

SHOWN_SLOTS = ("MATMUL", "MATPUSH", "VALU", "XLU", "EUP", "VLOAD", "VSTORE", "SALU")


def heading(report: Report) -> str:
    """One paragraph: what was compiled by what, and the rates that the figures assume."""
    chip = report.chip
    return (
        f"Estimates of the TPU compiler (libtpu {report.libtpu}, jax {report.jax}) for {chip.target}: "
        f"{chip.clock_hz / 1e9:g} GHz, {chip.hbm_bytes_per_s / 1e12:g} TB/s, "
        f"{chip.peak_flop_per_s / 1e12:.0f} TFLOP/s. Nothing here was measured on a TPU."
    )


def sheets(report: Report) -> list[Sheet]:
    """The tables of everything that the report has figures of."""
    made = []
    if report.decode:
        made += [_decode_sheet(report), _slots_sheet("Decode", _best_decode(report.decode), lambda x: x.block)]
    if report.prefill:
        made += [_prefill_sheet(report), _chunk_sheet(report)]
        made.append(_slots_sheet("Prefill, unmasked blocks", _best_prefill(report.prefill), lambda x: x.unmasked))
    if report.moves:
        made.append(_moves_sheet(report))
    return made


def _best(every: Iterable[Figures], cost: Callable[[Figures], float]) -> list[Figures]:
    """For each heads and page size the project's kernel and jax's cheapest."""
    chosen: dict[tuple[str, int, str], Figures] = {}
    for figures in every:
        key = (figures.heads, figures.page_size, figures.kernel)
        if key not in chosen or cost(figures) < cost(chosen[key]):
            chosen[key] = figures
    order = list(dict.fromkeys(key[:2] for key in chosen))
    return [chosen[key] for key in sorted(chosen, key=lambda key: (order.index(key[:2]), key[2] == JAX))]


def _best_decode(every: Sequence[DecodeFigures]) -> list[DecodeFigures]:
    return _best(every, lambda figures: figures.rows[-1].issue_s)


def _best_prefill(every: Sequence[PrefillFigures]) -> list[PrefillFigures]:
    return _best(every, lambda figures: figures.bundles_per_score_tile)


def _decode_sheet(report: Report) -> Sheet:
    contexts = [row.context_tokens for row in report.decode[0].rows]
    rows = []
    for figures in _best_decode(report.decode):
        ratios = [f"{row.ratio:.2f}" for row in figures.rows]
        if figures.kernel == JAX:  # its best may differ from context to context
            same = [
                x for x in report.decode if (x.kernel, x.heads, x.page_size) == (JAX, figures.heads, figures.page_size)
            ]
            ratios = [f"{min(x.rows[i].ratio for x in same):.2f}" for i in range(len(contexts))]
        block = figures.block
        rows.append(
            (
                figures.heads,
                str(figures.page_size),
                figures.kernel,
                figures.config,
                *ratios,
                f"{figures.rows[-1].issue_s * 1e6:.2f}",
                f"{figures.rows[-1].memory_s * 1e6:.2f}",
                f"{block.bundles_per_page:.0f}",
                f"{block.least_bundles / block.pages:.0f}",
                f"{figures.sequence_bundles:.0f}",
                f"{block.spill_share:.1%}",
            )
        )
    last = contexts[-1]
    return Sheet(
        "Decode: issue time over memory time",
        "One layer, one sequence. Below 1 the memory is the limit. Issue time counts all branches of a trip. jax: the "
        f"best of its sweep at each context; the other columns are those of its best at {last}.",
        (
            "heads", "page", "kernel", "block", *(f"at {context}" for context in contexts), f"issue us at {last}",
            f"memory us at {last}", "bundles per page", "at least", "per sequence", "spills",
        ),
        rows,
        4,
    )  # fmt: skip


def _prefill_sheet(report: Report) -> Sheet:
    rows = [
        (
            figures.heads,
            figures.kernel,
            figures.config,
            f"{figures.unmasked.occupancy['MATMUL']:.0%}",
            f"{figures.flop_per_s / 1e12:.0f}",
            f"{figures.bundles_per_score_tile:.2f}",
            str(figures.unmasked.bundles),
            f"{figures.unmasked.spills}/{figures.unmasked.fills}",
            f"{figures.unmasked.spill_share:.1%}",
            f"{figures.unmasked.dma_bytes / 1024:.0f}",
        )
        for figures in _best_prefill(report.prefill)
    ]
    return Sheet(
        "Prefill: the loop over unmasked blocks",
        f"Page size {report.prefill[0].page_size}. jax's kernel masks every block; its best has the fewest bundles per "
        "8x128 tile of scores.",
        (
            "heads", "kernel", "block", "MATMUL", "TFLOP/s", "bundles per tile", "bundles per trip",
            "spills/fills", "per bundle", "DMA KiB",
        ),
        rows,
        3,
    )  # fmt: skip


def _chunk_sheet(report: Report) -> Sheet:
    rows = []
    for figures in _best_prefill(report.prefill):
        for row in figures.rows:
            apart = figures.masked is not None
            rows.append(
                (
                    figures.heads,
                    str(row.context_tokens),
                    figures.kernel,
                    f"{row.issue_s * 1e6:.0f}",
                    f"{row.memory_s * 1e6:.0f}",
                    f"{row.ratio:.2f}",
                    str(row.unmasked_trips if apart else "-"),
                    str(row.masked_trips if apart else row.unmasked_trips),
                    f"{row.masked_share:.0%}" if apart else "100%",
                )
            )
    return Sheet(
        "Prefill: a chunk of 2,048 tokens",
        "One layer, one sequence whose context the chunk ends. Memory time is for all keys and values that blocks of "
        "queries ask for, again for each of them.",
        (
            "heads", "context", "kernel", "issue us", "memory us", "issue/memory", "unmasked blocks", "masked blocks",
            "masked share of issue",
        ),
        rows,
        3,
    )  # fmt: skip


def _slots_sheet(title: str, best: Sequence[Figures], loop_of: Callable[[Figures], LoopFigures]) -> Sheet:
    rows = []
    for figures in best:
        loop: LoopFigures = loop_of(figures)
        rows.append(
            (
                figures.heads,
                str(figures.page_size),
                figures.kernel,
                str(loop.bundles),
                *(f"{loop.occupancy.get(slot, 0):.0%}" for slot in SHOWN_SLOTS),
                f"{loop.spills}/{loop.fills}",
                str(loop.scalar_spills),
                str(loop.dma_starts),
                f"{loop.dma_bytes / 1024:.0f}",
            )
        )
    return Sheet(
        f"{title}: slots of a trip",
        "Share of the slots' cycles that are occupied; vector spills and fills; DMAs of all branches.",
        (
            "heads", "page", "kernel", "bundles", *SHOWN_SLOTS, "spills/fills", "scalar", "DMA starts", "DMA KiB",
        ),
        rows,
        3,
    )  # fmt: skip


def _moves_sheet(report: Report) -> Sheet:
    rows = [
        (
            figures.kernel,
            figures.shape,
            figures.piece,
            f"{figures.bundles:.1f}",
            f"{figures.dma_starts:.1f}",
            f"{figures.issue_s * 1e9:.1f}",
            f"{figures.memory_s * 1e9:.1f}",
            str(figures.pieces),
            f"{figures.issue_s * figures.pieces * 1e6:.1f}",
            f"{figures.memory_s * figures.pieces * 1e6:.1f}",
        )
        for figures in report.moves
    ]
    return Sheet(
        "Moves: writing tokens, gathering and scattering pages",
        "Bundles, DMA starts and ns per piece, us for all pieces of a call. Memory time is for reading and writing.",
        (
            "kernel", "shape", "piece", "bundles", "DMA starts", "issue ns", "memory ns", "pieces", "issue us",
            "memory us",
        ),
        rows,
        3,
    )  # fmt: skip
