"""The server's first request is its own: through the application, gateway, prefill, transfer, decode and back.

Programs are compiled before that; the request pays for everything else that happens once, and shows that an answer
comes at all before the server says that it serves.
"""

import httpx
import msgspec
from starlette.types import ASGIApp

from runtime.plan import Plan

_PROMPT_TOKENS = 1
_ANSWER_TOKENS = 2
"""The first comes from the prefill slice, the second from the decode slice."""


async def warm_up(app: ASGIApp, plan: Plan) -> str | None:
    """Asks for a few tokens as a client would; None, or why there was no answer.

    The seed is given, so that the seeds drawn for clients do not depend on it. The server's own timeouts bound it.
    """
    settings = plan.settings
    body = {
        "model": plan.name,
        "prompt": [0] * _PROMPT_TOKENS,
        "max_tokens": min(_ANSWER_TOKENS, plan.max_context_tokens - _PROMPT_TOKENS),
        "ignore_eos": True,
        "seed": 0,
    }
    headers = {"Authorization": f"Bearer {settings.api_keys[0]}"} if settings.api_keys else {}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://warm-up", headers=headers, timeout=None
    ) as client:
        response = await client.post("/v1/completions", json=body)
    if response.status_code == httpx.codes.OK:
        return None
    try:
        reason = str(msgspec.json.decode(response.content)["error"]["message"])
    except (msgspec.DecodeError, LookupError, TypeError):
        reason = response.text[:200]
    return f"the warm-up request got {response.status_code}: {reason}"
