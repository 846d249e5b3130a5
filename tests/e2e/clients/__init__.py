"""Clients that people have, each run as they run it: against a server, from a virtual environment of its own."""
