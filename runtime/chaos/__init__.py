"""Failures on purpose, for game days: what is to strike, and the wrappers around engines and mover that strike."""
