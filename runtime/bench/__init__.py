"""`runtime bench`: how long the engine's steps take, without HTTP, and how far they are from what the machine allows.

Nothing here imports jax before `main` has chosen the platform.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code. Raises UsageError for bad flags."""
    from runtime.bench.command import run

    return run(argv)
