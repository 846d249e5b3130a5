"""What a client may ask of the sampler, fully resolved: no optional value is left to a later default.

The API fills it, the gateway's ledger keeps it for the request's life, the engine reads it. A seed is always
present: the API draws one when the client gave none, so that a recovered request samples the same tokens.
"""

import msgspec

MAX_LOGPROBS = 20
"""Most alternatives per token that a client may ask for (OpenAI's limit)."""

MAX_LOGIT_BIAS = 300
"""Most entries of `logit_bias` (OpenAI's limit)."""

MAX_STOP_IDS = 32
"""Most token ids, end-of-text ids included, that may end a request."""


class ConstraintSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What only the host can decide about a choice's next token; `runtime.constraints` makes a `Constraint` of it.

    `grammar` is what llguidance compiles: the API has compiled it once before, so it is valid. `bad_words` are token
    sequences of which none may be completed. `thinking_budget` is how many tokens may follow `think_start` before
    `think_end` is forced; with `begins_thinking` the prompt has ended inside such a block. A grammar begins behind the
    block where there may be one (`think_end` is not empty).
    """

    grammar: str | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    thinking_budget: int | None = None
    think_start: tuple[int, ...] = ()
    think_end: tuple[int, ...] = ()
    begins_thinking: bool = False


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling of one request; all of its choices share it.

    Order of application: penalties, bias and masks, temperature, top-k, top-p, min-p. Temperature 0 is greedy.
    `top_k` 0 means off. `stop_token_ids` is the effective set: it holds the model's end-of-text ids unless the
    client set `ignore_eos`; all of them are masked until `min_tokens` tokens were generated.
    `allowed_mask` is a packed bit mask, little-endian uint32 words, bit v%32 of word v//32 allows token v.
    `logprobs` is None for none, else the number of alternatives (0 gives the chosen token's alone); `prompt_logprobs`
    likewise, for every token of the prompt but the first. `constraint` is for the host: its masks and `allowed_mask`
    hold together.
    """

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_mask: bytes | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: ConstraintSpec | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether token counts of prompt and output matter."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)
