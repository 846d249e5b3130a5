"""`python -m tests.chaos.campaign --runs 20`: strikes again and again, with other requests and other moments each time.

Prints what every kind of strike costs clients: the longest wait for a token of each stream, minus that of the same
stream without failures.
"""

import argparse
import logging
import random
import sys

import tests.conftest  # noqa: F401  # devices and the cache of compiled programs, before jax is imported
from runtime.compile_cache import compilations
from runtime.demo import MODEL_DIR
from tests.chaos.harness import HANG_TIMEOUT_S, Server, make_requests
from tests.chaos.judge import judge, percentiles, stalls_s
from tests.reference_model import ReferenceModel


def strikes(seed: int) -> dict[str, str]:
    """One of each kind, at drawn moments."""
    rng = random.Random(f"chaos strikes {seed}")

    def worker(role: str) -> str:
        return f"{role}.{rng.randrange(2)}"

    return {
        "crash of a decode worker": f"{worker('decode')}:crash@step={rng.randint(3, 40)}",
        "crash of a prefill worker": f"{worker('prefill')}:crash@chunk={rng.randint(1, 12)}",
        "out of memory on a decode worker": f"{worker('decode')}:oom@step={rng.randint(3, 40)}",
        "hang of a decode worker": f"{worker('decode')}:hang@step={rng.randint(3, 40)}/{HANG_TIMEOUT_S + 1:g}s",
        "hang of a prefill worker": f"{worker('prefill')}:hang@chunk={rng.randint(1, 12)}/{HANG_TIMEOUT_S + 1:g}s",
        "vanished chunks": f"transfer:drop={rng.uniform(0.05, 0.3):.3f}",
        "failed transfers": f"transfer:fail={rng.uniform(0.05, 0.4):.3f}",
        "corrupt chunks": f"transfer:corrupt={rng.uniform(0.05, 0.4):.3f}",
    }


def main(arguments: list[str]) -> int:
    """Runs the campaign; 1 when a client noticed more than a pause."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaign")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.disable(logging.ERROR)  # every strike logs what it breaks
    server, reference = Server(), ReferenceModel(MODEL_DIR)
    stalls: dict[str, list[float]] = {}
    hits: dict[str, int] = {}
    failures = 0
    for seed in range(options.first_seed, options.first_seed + options.runs):
        requests = make_requests(server.tokenizer, seed)
        undisturbed, _ = server.run(requests, None, seed)
        warm = compilations.count
        for name, spec in strikes(seed).items():
            try:
                answers, campaign = server.run(requests, spec, seed)
                close_calls = judge(reference, requests, undisturbed, answers)
                assert compilations.count == warm, "something was compiled"
            except AssertionError as error:
                failures += 1
                print(f"seed {seed}: {spec}: {error}", flush=True)
                continue
            struck = sum(campaign.hits().values()) if campaign is not None else 0
            hits[name] = hits.get(name, 0) + struck
            stalls.setdefault(name, []).extend(stalls_s(undisturbed, answers) if struck else [])
            note = f", close calls: {close_calls}" if close_calls else ""
            print(f"seed {seed}: {spec}: struck {struck} times, every stream as undisturbed{note}", flush=True)
    print(f"\n{'strike':<36}{'strikes':>8}{'stall p50':>12}{'p99':>9}{'largest':>10}")
    for name, values in stalls.items():
        if values:
            p50, p99, largest = percentiles(values).values()
            print(f"{name:<36}{hits[name]:>8}{p50:>10.2f} s{p99:>7.2f} s{largest:>8.2f} s")
    print(f"{failures} of {options.runs * len(strikes(0))} runs failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
