"""How many pages a lease takes: one formula, used by the scheduler to choose and by the worker to grant."""


def lease_pages(page_size: int, num_tokens: int, reserve_tokens: int, num_choices: int) -> tuple[int, int]:
    """Pages that all choices share (the full pages of `num_tokens`), and pages that each choice owns.

    A choice owns a copy of the prompt's tail page, if there is one, and room for `reserve_tokens` more.
    """
    shared = num_tokens // page_size
    own = -(-(num_tokens + reserve_tokens) // page_size) - shared
    return shared, own
