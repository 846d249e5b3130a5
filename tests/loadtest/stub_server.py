"""Serves one fixed answer on a port, for measuring load generators against delays that are known.

python -m tests.loadtest.stub_server --port 9000 --first-s 0.2 --gap-s 0.02 --chunks 16
"""

import argparse
import asyncio
from collections.abc import Sequence

from tests.loadtest.stub import Body, Step, Stub, answer


def fixed(first_s: float, gap_s: float, chunks: int) -> Stub:
    """The same steps for every request, made once."""
    steps = answer({"prompt": [0] * 16}, first_s, [gap_s] * (chunks - 1))

    def script(number: int, body: Body) -> Sequence[Step]:
        return steps

    return Stub(script)


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
    flags = parser.parse_args()
    asyncio.run(serve(fixed(flags.first_s, flags.gap_s, flags.chunks), flags.port))


if __name__ == "__main__":
    main()
