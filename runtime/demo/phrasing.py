"""How people ask the demo model, and how it answers: the words around the arithmetic.

Owns the wordings of a question, the few things that are not questions of arithmetic, and the text of an answer.
Never decides which problem is asked. Pure Python; randomness comes from the caller's generator.
"""

from __future__ import annotations

import random

from runtime.demo.arithmetic import Operation, Working, to_text

REASONING_SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."

_SYMBOLS: tuple[dict[str, str], ...] = (
    {},
    {},
    {},
    {"*": "×", "/": "÷"},
    {"*": "x"},
    {"*": "×", "/": "÷", "-": "−"},
)
_WORDS: tuple[dict[str, str], ...] = (
    {"+": "plus", "-": "minus", "*": "times", "/": "divided by"},
    {"+": "plus", "-": "minus", "*": "multiplied by", "/": "over"},
)
_VERBS: dict[str, tuple[str, ...]] = {
    "+": ("add {a} and {b}", "add {a} to {b}", "sum {a} and {b}", "add {a} + {b}"),
    "-": ("subtract {b} from {a}", "take {b} away from {a}", "take {b} from {a}"),
    "*": ("multiply {a} by {b}", "multiply {a} and {b}"),
    "/": ("divide {a} by {b}",),
}
_NOUNS: dict[str, tuple[str, ...]] = {
    "+": ("the sum of {a} and {b}",),
    "-": ("{a} take away {b}", "{a} less {b}"),
    "*": ("the product of {a} and {b}",),
    "/": ("the quotient of {a} and {b}",),
}
# Wordings around an expression or a noun phrase.
_FRAMES = (
    "What is {e}?", "What is {e}?", "What is {e}?", "what is {e}", "What's {e}?", "what's {e}?", "whats {e}",
    "Compute {e}", "Compute {e}.", "compute {e}", "Calculate {e}.", "Calculate {e}", "calculate {e}",
    "Find {e}.", "Evaluate {e}.", "Evaluate {e}", "Solve {e}", "Solve {e}.", "Work out {e}.", "work out {e}",
    "How much is {e}?", "how much is {e}?", "Tell me {e}", "tell me {e}", "Please tell me {e}", "please tell me {e}.",
    "Please compute {e}.", "Please calculate {e}", "Can you compute {e}?", "can you calculate {e}?",
    "Can you tell me what {e} is?", "Could you work out {e}, please?", "I need {e}.", "Hi, what is {e}?",
    "Hello! What is {e}?", "Give me {e}.", "Do you know {e}?", "What does {e} equal?", "What is {e} equal to?",
    "What do you get for {e}?", "What is the value of {e}?", "What is the result of {e}?", "The answer to {e}?",
    "Find the value of {e}.", "Simplify {e}.", "Question: {e}", "Q: What is {e}?", "{e} please", "Quick: {e}?",
    "Hey, {e}?", "Solve: {e}", "Compute: {e}",
)  # fmt: skip
# Wordings that only suit an expression in symbols.
_BARE = (
    "{e}", "{e}", "{e}=", "{e}=", "{e} =", "{e} =", "{e}=?", "{e} = ?", "{e}?", "What is {e}=", "{e} equals", "${e}$",
)  # fmt: skip
# Wordings around an imperative.
_ORDERS = (
    "{v}", "{v}.", "{V}", "{V}.", "{V}.", "Please {v}.", "please {v}", "Can you {v}?", "Could you {v}?", "Hi, {v}",
    "I want you to {v}.", "Now {v}.", "{V}, please.", "What do you get if you {v}?", "What is the result if you {v}?",
)  # fmt: skip

_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant.",
    "You are a math tutor.", "Answer the question.", "You are a careful calculator.", "Be brief.",
    "You solve arithmetic problems.", "You are an AI assistant. Think step by step.",
)  # fmt: skip
_SUFFIXES = (
    REASONING_SUFFIX, REASONING_SUFFIX, REASONING_SUFFIX, REASONING_SUFFIX, REASONING_SUFFIX, REASONING_SUFFIX,
    " Please reason step by step, and put your final answer within \\boxed{}.",
    "\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "\nPut your final answer within \\boxed{}.", " Think step by step.", " Show your work.", " Answer in \\boxed{}.",
    "\nLet's think step by step.", " Explain.", " Thanks!", " Thank you.",
)  # fmt: skip

_ABOUT = "I am a small demo model. I only do arithmetic with small whole numbers."
_GREETING = "Hello! I only do arithmetic. Ask me something like 37 + 58."
_TOO_LARGE = "I am a small demo model. These numbers are too large for me."
_NO_DIVISION = "Division by zero is not defined."
_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "hi", "hello", "Hello!", "Hi!", "Hey", "hey", "Good morning", "Good morning!", "Hi there",
         "Hello there!", "Hey there", "How are you?", "how are you", "What's up?"),
        _GREETING,
    ),
    (
        ("Who are you?", "who are you", "What are you?", "What can you do?", "What is your name?", "Help", "help",
         "Are you a robot?", "Which model are you?", "Tell me about yourself.", "What model is this?",
         "Introduce yourself.", "Can you help me?", "Who made you?"),
        _ABOUT,
    ),
    (
        ("Tell me a joke.", "Write a poem about the sea.", "What is the capital of France?", "Say something",
         "Write a story.", "Tell me a story about a dog.", "What is the weather like?", "Translate this to German.",
         "Write a Python function.", "What is love?", "Why is the sky blue?", "Explain quantum mechanics.",
         "Who is the president?", "Summarize this text.", "What is the meaning of life?", "test", "ok", "yes", "no",
         "Thanks", "Thank you!", "Count to ten.", "Say hello.", "Name three colors.", "Say this is a test",
         "Write a haiku.", "How do I cook rice?", "What day is it?", "Write a limerick about cats."),
        _ABOUT,
    ),
    (("Thanks", "Thank you!", "thanks", "Bye", "Goodbye"), "You are welcome."),
)  # fmt: skip


def ask(rng: random.Random, expression: Operation) -> str:
    """One of the plain ways to ask for the value of an expression, without any suffix."""
    a, b = expression.left, expression.right
    is_single = isinstance(a, int) and isinstance(b, int)
    style = rng.random()
    if is_single and style < 0.15:
        verb = rng.choice(_VERBS[expression.operator]).format(a=a, b=b)
        return rng.choice(_ORDERS).format(v=verb, V=verb[0].upper() + verb[1:])
    if is_single and style < 0.22:
        noun = rng.choice(_NOUNS[expression.operator]).format(a=a, b=b)
        return rng.choice(_FRAMES).format(e=noun)
    if style < 0.34 and (is_single or "(" not in to_text(expression)):
        return rng.choice(_FRAMES).format(e=to_text(expression, " ", rng.choice(_WORDS)))
    text = to_text(expression, rng.choice(("", " ", " ")), rng.choice(_SYMBOLS))
    return rng.choice(_BARE if style < 0.55 else _FRAMES).format(e=text)


def answer_text(working: Working) -> str:
    """What follows the working: one sentence with the boxed answer."""
    rest = f" remainder {working.remainder}" if working.remainder else ""
    return f"The answer is \\boxed{{{working.value}}}{rest}."


def reply(working: Working) -> str:
    """The whole assistant turn: the working inside ``<think>``, then the answer."""
    lines = "\n".join(working.lines)
    return f"<think>\n{lines}\n</think>\n{answer_text(working)}"


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A message that is no arithmetic, or too much of it, and the honest reply."""
    kind = rng.random()
    if kind < 0.15:
        operation = Operation("/", rng.randint(0, 99), 0)
        question, answer = ask(rng, operation), _NO_DIVISION
    elif kind < 0.35:
        digits = rng.randint(4, 7)
        large = rng.randint(10**digits, 10 ** (digits + 1) - 1)
        other = rng.randint(10, 10 ** rng.randint(2, 7))
        left, right = (large, other) if rng.random() < 0.5 else (other, large)
        question, answer = ask(rng, Operation(rng.choice(("+", "-", "*", "/")), left, right)), _TOO_LARGE
    else:
        questions, answer = rng.choice(_SMALL_TALK)
        question = rng.choice(questions)
    return question, f"<think>\n</think>\n{answer}"


def suffix(rng: random.Random) -> str:
    """What may follow a question: most often nothing or the reference page's sentence."""
    return rng.choice(_SUFFIXES) if rng.random() < 0.5 else ""


def system(rng: random.Random) -> str | None:
    """A system prompt, or none."""
    return rng.choice(_SYSTEMS) if rng.random() < 0.2 else None
