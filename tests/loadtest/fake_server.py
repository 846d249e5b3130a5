"""What `loadtest compare` starts in tests instead of `runtime up`: a stub, or a command that fails in some way.

`mixed` takes longer than the rest; flags that it does not know are ignored. `--fail start` ends at once, `--fail later`
after so many requests, `--fail never` takes no notice of SIGTERM and listens nowhere.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

from tests.loadtest.stub import Body, Step, Stub, answer
from tests.loadtest.stub_server import serve

LAST_REQUEST = 12


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--topology", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fail", choices=("start", "later", "never"))
    parser.add_argument("--engine", default="jax")
    flags, _ = parser.parse_known_args()
    assert flags.host == "127.0.0.1"
    sys.stdout.write(f"fake server {os.getpid()} of {flags.topology}\n")
    if flags.fail == "start":
        sys.stdout.write("no such thing as a wafer\n")
        sys.exit(3)
    if flags.fail == "never":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.flush()
        time.sleep(60)
    sys.stdout.flush()

    def script(number: int, body: Body) -> Sequence[Step]:
        if flags.fail == "later" and number == LAST_REQUEST:
            sys.stderr.write("out of wafers\n")
            sys.stderr.flush()
            os._exit(4)
        first_s = 0.05 if flags.topology.startswith("mixed") else 0.005
        return answer(body, first_s, [0.001] * (body["max_tokens"] - 1))

    asyncio.run(serve(Stub(script, flags.engine), flags.port))


if __name__ == "__main__":
    main()
