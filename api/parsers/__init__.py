"""Splits a model's text into reasoning, content and tool calls, piece by piece. Pure: text in, parts out."""
