"""Actors and their messages: gateway, scheduler, workers, transfer and supervisor."""
