"""The report's tables: the project's kernels (own), each with jax's at its best below it."""

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


def _label(figures: DecodeFigures | PrefillFigures) -> str:
    return "jax" if figures.kernel == JAX else "own"


def _decode_sheet(report: Report) -> Sheet:
    contexts = [row.context_tokens for row in report.decode[0].rows]
    rows = []
    for figures in _best_decode(report.decode):
        block, last = figures.block, figures.rows[-1]
        rows.append(
            (
                figures.heads,
                str(figures.page_size),
                _label(figures),
                figures.config,
                *(f"{_least_ratio(report, figures, i):.2f}" for i in range(len(contexts))),
                f"{last.issue_s * 1e6:.2f}",
                f"{last.memory_s * 1e6:.2f}",
                f"{block.bundles_per_page:.0f}",
                f"{block.least_bundles / block.pages:.0f}",
                f"{figures.sequence_bundles:.0f}",
                f"{block.spill_share:.1%}",
            )
        )
    return Sheet(
        "Decode: issue time over memory time",
        "One layer, one sequence; below 1 the memory is the limit. Issue time counts all branches of a trip. A block "
        "is so many pages (p), for jax's kernel times query tokens (q). jax's ratios are the least of its sweep at "
        f"each context, its other figures those of its best at {contexts[-1]:,}.",
        (
            "heads", "page", "kernel", "block", *(f"ratio at\n{context:,}" for context in contexts),
            f"issue us\nat {contexts[-1]:,}", f"memory us\nat {contexts[-1]:,}", "bundles\nper page",
            "of these\nalways", "bundles per\nsequence", "spills per\nbundle",
        ),
        rows,
        4,
    )  # fmt: skip


def _least_ratio(report: Report, figures: DecodeFigures, context: int) -> float:
    """The kernel's least ratio at a context over all its configs."""
    shape = (figures.kernel, figures.heads, figures.page_size)
    same = [other for other in report.decode if (other.kernel, other.heads, other.page_size) == shape]
    return min(other.rows[context].ratio for other in same)


def _prefill_sheet(report: Report) -> Sheet:
    rows = [
        (
            figures.heads,
            _label(figures),
            figures.config,
            f"{figures.unmasked.occupancy['MATMUL']:.0%}",
            f"{figures.flop_per_s / 1e12:.0f}",
            f"{figures.bundles_per_score_tile:.2f}",
            f"{figures.unmasked.bundles:,}",
            f"{figures.unmasked.bundles_per_page:,.0f}",
            f"{figures.unmasked.spills:,}",
            f"{figures.unmasked.fills:,}",
        )
        for figures in _best_prefill(report.prefill)
    ]
    return Sheet(
        "Prefill: the loop over unmasked blocks",
        f"Page size {report.prefill[0].page_size}. A block is so many query tokens (q) times pages (p), times kv heads "
        "(h) where a pass does not take all. jax's kernel masks every block; of its sweep, the one with the fewest "
        "bundles per 8x128 tile of scores is shown.",
        (
            "heads", "kernel", "block", "MATMUL\nslots", "TFLOP/s", "bundles\nper tile", "bundles\nper trip",
            "bundles\nper page", "spills", "fills",
        ),
        rows,
        3,
    )  # fmt: skip


def _chunk_sheet(report: Report) -> Sheet:
    rows = []
    for best in _best_prefill(report.prefill):
        same = [other for other in report.prefill if (other.kernel, other.heads) == (best.kernel, best.heads)]
        for index, context in enumerate(row.context_tokens for row in best.rows):
            figures = min(same, key=lambda other: other.rows[index].issue_s)
            row, apart = figures.rows[index], figures.masked is not None
            rows.append(
                (
                    figures.heads,
                    _label(figures),
                    f"{context:,}",
                    figures.config,
                    f"{row.issue_s * 1e6:.0f}",
                    f"{row.memory_s * 1e6:.0f}",
                    f"{row.ratio:.1f}",
                    f"{row.unmasked_trips:,}" if apart else "0",
                    f"{row.masked_trips if apart else row.unmasked_trips:,}",
                    f"{row.masked_share:.0%}" if apart else "all",
                )
            )
    return Sheet(
        "Prefill: a chunk of 2,048 tokens",
        "One layer, one sequence whose context the chunk ends. Memory time is for the keys and values of all blocks, "
        "again for each block of queries. Of jax's sweep the one with the least issue time at each context is shown.",
        (
            "heads", "kernel", "context", "block", "issue us", "memory us", "ratio", "unmasked\nblocks",
            "masked\nblocks", "masked share\nof issue",
        ),
        rows,
        4,
    )  # fmt: skip


def _slots_sheet(title: str, best: Sequence[Figures], loop_of: Callable[[Figures], LoopFigures]) -> Sheet:
    rows = []
    for figures in best:
        loop: LoopFigures = loop_of(figures)
        rows.append(
            (
                figures.heads,
                str(figures.page_size),
                _label(figures),
                f"{loop.bundles:,}",
                *(f"{loop.occupancy.get(slot, 0):.0%}" for slot in SHOWN_SLOTS),
                f"{loop.spills}/{loop.fills}",
                str(loop.scalar_spills),
                str(loop.dma_starts),
                f"{loop.dma_bytes / 1024:,.0f}",
            )
        )
    return Sheet(
        f"{title}: slots of a trip",
        "Share of the slots' cycles that are occupied; spills and fills of vectors and of scalars; DMAs of all "
        "branches.",
        (
            "heads", "page", "kernel", "bundles", *SHOWN_SLOTS, "spills/\nfills", "scalar\nspills", "DMA\nstarts",
            "DMA\nKiB",
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
            f"{figures.dma_starts:.2f}",
            f"{figures.issue_s * 1e9:.1f}",
            f"{figures.memory_s * 1e9:,.1f}",
            f"{figures.pieces:,}",
            f"{figures.issue_s * figures.pieces * 1e6:.1f}",
            f"{figures.memory_s * figures.pieces * 1e6:.1f}",
        )
        for figures in report.moves
    ]
    return Sheet(
        "Moves: writing tokens, gathering and scattering pages",
        "For a piece and for all pieces of a call. Memory time is for what is read and written.",
        (
            "kernel", "shape", "piece", "bundles", "DMA\nstarts", "issue\nns", "memory\nns", "pieces of\na call",
            "issue us", "memory us",
        ),
        rows,
        3,
    )  # fmt: skip
