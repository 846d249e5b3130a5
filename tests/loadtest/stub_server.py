"""Serves scripted answers on a port, for measuring load generators against delays that are known.

python -m tests.loadtest.stub_server --port 9000 --first-s 0.2 --gap-s 0.02 --chunks 16 --spread 0.5
"""

import argparse
import asyncio
from collections.abc import Sequence
from random import Random

from tests.loadtest.stub import Body, Step, Stub, answer

NUM_ANSWERS = 512
"""Answers are made once, so that the stub has little to do; the next request begins again with the first."""


def scripted(first_s: float, gap_s: float, chunks: int, spread: float) -> Stub:
    """Answer n has delays of its own: both times, scaled by one and the same draw from 1 - spread to 1 + spread."""
    answers = [_answer(first_s, gap_s, chunks, spread, Random(number)) for number in range(NUM_ANSWERS)]

    def script(number: int, body: Body) -> Sequence[Step]:
        return answers[number % NUM_ANSWERS]

    return Stub(script)


def _answer(first_s: float, gap_s: float, chunks: int, spread: float, random: Random) -> Sequence[Step]:
    scale = random.uniform(1 - spread, 1 + spread)
    return answer({"prompt": [0] * 16}, first_s * scale, [gap_s * scale] * (chunks - 1))


async def serve(stub: Stub, port: int) -> None:
    """Until the process ends."""
    server = await asyncio.get_running_loop().create_server(stub, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first-s", type=float, default=0.2, help="until the first chunk (default: 0.2)")
    parser.add_argument("--gap-s", type=float, default=0.02, help="between chunks (default: 0.02)")
    parser.add_argument("--chunks", type=int, default=16, help="one token each (default: 16)")
    parser.add_argument("--spread", type=float, default=0.0, help="of both delays from answer to answer (default: 0)")
    flags = parser.parse_args()
    asyncio.run(serve(scripted(flags.first_s, flags.gap_s, flags.chunks, flags.spread), flags.port))


if __name__ == "__main__":
    main()
