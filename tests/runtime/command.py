"""The `runtime` command in a process of its own, without the test run's jax settings and always within limits."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from runtime.demo import MODEL_DIR

LIMIT_S = 120


def environment(**extra: str) -> dict[str, str]:
    """What a user's shell would pass on, and what the test says."""
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return own | {"JAX_PLATFORMS": "cpu"} | extra


def runtime_command(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        env=environment(**extra), capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


def refusal(*arguments: str, **extra: str) -> str:
    """The one line of a command that must refuse with exit code 2."""
    done = runtime_command(*arguments, **extra)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"runtime {arguments[0]}: ")
    assert "Traceback" not in done.stdout + done.stderr
    return lines[0]


def copy_of_demo(folder: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(MODEL_DIR, folder))
