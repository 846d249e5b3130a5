"""LangChain: a tool-calling round trip, a stream and a structured answer. Needs langchain-openai."""

import argparse
import sys
from importlib.metadata import version
from typing import Annotated

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

Small = Annotated[int, Field(ge=0, le=999)]
"""The demo model cannot call functions: what neither its grammar nor a penalty bounds would not end."""


@tool
def add(a: Small, b: Small) -> int:
    """Adds two whole numbers."""
    return a + b


class Sum(BaseModel):
    a: Small
    b: Small
    is_even: bool


def round_trip(model: ChatOpenAI) -> None:
    """The forced call is valid and its result goes back into the conversation."""
    messages = [HumanMessage("What is 37 + 58?")]
    called = model.bind_tools([add], tool_choice="required").invoke(messages)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert call["name"] == "add", call
    result = add.invoke(call["args"])
    messages += [called, ToolMessage(str(result), tool_call_id=call["id"])]
    answer = model.bind_tools([add], tool_choice="none").invoke(messages)
    assert answer.content, answer
    assert not answer.tool_calls, answer
    assert answer.usage_metadata["output_tokens"] > 0


def streamed_call(model: ChatOpenAI) -> None:
    """A call in pieces is the whole call."""
    bound = model.bind_tools([add], tool_choice="add")
    whole = bound.invoke("What is 37 + 58?")
    pieces = list(bound.stream("What is 37 + 58?"))
    total = pieces[0]
    for piece in pieces[1:]:
        total += piece
    assert len(pieces) > 1
    assert [call["args"] for call in total.tool_calls] == [call["args"] for call in whole.tool_calls]


def streamed_text(model: ChatOpenAI) -> None:
    """A text in pieces is the whole text."""
    whole = model.invoke("What is 37 + 58?")
    assert "".join(piece.content for piece in model.stream("What is 37 + 58?")) == whole.content


def structured(model: ChatOpenAI) -> None:
    """An answer that has to be of a pydantic model is."""
    answer = model.with_structured_output(Sum, method="json_schema").invoke("What is 37 + 58?")
    assert isinstance(answer, Sum), answer


def main() -> int:
    """Runs all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url
    sys.stdout.write(f"langchain-openai {version('langchain-openai')}, langchain-core {version('langchain-core')}\n")
    model = ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="runtime-demo", temperature=0, max_retries=0, max_tokens=400,
        frequency_penalty=2,
        extra_body={"thinking_token_budget": 40},
    )  # fmt: skip
    for step in (round_trip, streamed_call, streamed_text, structured):
        step(model)
        sys.stdout.write(f"{step.__name__}: right\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
