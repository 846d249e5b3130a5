"""The inference engine and the `runtime` command: synchronous code, no event loop and no HTTP outside the command."""

__version__ = "0.1.0"
