"""`/v1/responses`: OpenAI's newer surface over the same engine requests as chat.

A body becomes a chat body and then a job by chat's own path, so that both surfaces render, constrain and parse
alike; the answer's parts become output items and events; what clients may come back to is kept in a bounded store.
"""
