"""Emulated slices: the whole server with device work that lasts as long as a table says, and computes nothing."""
