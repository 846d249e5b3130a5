"""The prefix client: what it sends, in which order, and what it reads of a stream."""

import asyncio
import json

import httpx
import pytest

from loadtest.prefix import Sent, report, run, send


def _stream(*chunks: object) -> httpx.Response:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, text=body, headers={"Content-Type": "text/event-stream"})


def test_prompts_alternate_and_share_what_they_should() -> None:
    prompts: list[list[int]] = []

    def server(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        prompts.append(body["prompt"])
        usage = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": len(prompts)}}
        return _stream({"choices": [{"text": "a"}], "usage": None}, {"choices": [], "usage": usage})

    cold, warm = asyncio.run(run("http://server", "m", (20, 4), 2, 0, httpx.MockTransport(server)))
    assert [len(prompt) for prompt in prompts] == [24] * 5
    first, cold_1, warm_1, cold_2, warm_2 = [tuple(prompt[:20]) for prompt in prompts]
    assert first == warm_1 == warm_2
    assert len({first, cold_1, cold_2}) == 3
    assert len({tuple(prompt[20:]) for prompt in prompts}) == 5
    assert ([sent.cached_tokens for sent in cold], [sent.cached_tokens for sent in warm]) == ([2, 4], [3, 5])


def test_a_refusal_says_what_the_server_said() -> None:
    async def ask(response: httpx.Response) -> Sent:
        transport = httpx.MockTransport(lambda request: response)
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as client:
            return await send(client, "m", [1], 1)

    with pytest.raises(httpx.HTTPError, match="400: too long"):
        asyncio.run(ask(httpx.Response(400, text="too long")))
    with pytest.raises(httpx.HTTPError, match="without a token"):
        asyncio.run(ask(_stream()))


def test_the_report_is_of_medians() -> None:
    text = report([Sent(0.4, 0), Sent(0.3, 0), Sent(9.0, 0)], [Sent(0.1, 16), Sent(0.1, 16)])
    assert text.splitlines() == [
        "nothing shared   TTFT 400.0 ms (300.0 to 9000.0), cached tokens 0",
        "shared prefix    TTFT 100.0 ms (100.0 to 100.0), cached tokens 16",
        "ratio of medians 4.00",
    ]
