"""Looks which seed first finds each planted bug: `python -m tests.simulation.mutations [NAME...]`."""

import logging
import sys

import pytest

from tests.simulation.mutations import MUTATIONS, SEEDS


def main() -> int:
    """Returns 1 when one is not found."""
    logging.disable(logging.CRITICAL)
    missing = 0
    for planted in MUTATIONS:
        if sys.argv[1:] and planted.name not in sys.argv[1:]:
            continue
        with pytest.MonkeyPatch.context() as patch:
            planted.mutate(patch)
            found = planted.first_failure(range(SEEDS))
        missing += found is None
        seed, reason = found or (None, "not found")
        print(f"{planted.name:<45} {planted.seeds:<12} {seed} {reason.splitlines()[0][:110]}", flush=True)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
