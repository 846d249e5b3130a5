"""Runs a client against a server that serves the demo model.

    python -m tests.e2e.clients lm_eval --venv /path/to/venv --url http://127.0.0.1:8000

The client's packages are looked for in the virtual environment and nowhere else: see `docs/clients.md`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGES = {
    "langchain": "langchain-openai",
    "litellm": "litellm",
    "lm_eval": "'lm_eval[api]' transformers",
    "evalscope": "evalscope",
}


def main() -> int:
    """The client's exit status: 0 when everything was as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.clients")
    parser.add_argument("client", choices=sorted(PACKAGES))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--venv", type=Path, required=True, help="virtual environment with the client's packages")
    arguments = parser.parse_args()
    python = arguments.venv / "bin" / "python"
    if not python.exists():
        sys.stderr.write(
            f"there is no {python}; make it:\n  python3 -m venv {arguments.venv}\n"
            f"  {arguments.venv}/bin/pip install {PACKAGES[arguments.client]}\n"
        )
        return 2
    script = FOLDER / f"run_{arguments.client}.py"
    return subprocess.run([python, script, "--url", arguments.url], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
