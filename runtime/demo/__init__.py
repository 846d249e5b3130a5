"""The embedded demo model: its problems, its training, and the checkpoint that ships with the package."""

from __future__ import annotations

from pathlib import Path

MODEL_DIR = Path(__file__).with_name("model")
