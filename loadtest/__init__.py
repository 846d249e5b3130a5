"""Load generation against any OpenAI-compatible server; imports nothing else of this project."""
