"""Sends what schemathesis makes of our own `/openapi.json`, right and wrong, to the application with a scripted engine.

    python -m tests.api.schemathesis_campaign --cases 2000

No answer may be a failure of the server, and each has to be as the document says: status, content type, headers and
body; a stream's events too, which schemathesis does not look at. What the document does not allow has to be refused.
What it allows may still not suit the model: then the field that the refusal names is taken out and the rest sent again,
as a further case, until it is answered.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.api.document import against_document, whole_document
from tests.api.shapes import Watcher, against_openai
from tests.api.whole_app import ADMIN_KEY, API_KEY, whole_app

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection, ignored_auth,
]  # fmt: skip
GENERATION_SHARE = 0.7
"""Of all cases, for the routes that take a large body."""

MAX_REPAIRS = 20
PLAIN = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
"""What stands for a field that is needed."""


def repair(body: dict[str, Any], param: str) -> dict[str, Any]:
    """The body without the field that was refused."""
    name = param.partition("[")[0].partition(".")[0]
    rest = {key: value for key, value in body.items() if key != name}
    return rest | ({name: PLAIN[name]} if name in PLAIN else {})


class Local:
    """The application as a client on its machine sees it, watched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.problems: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watcher = Watcher(scope, send)
        await self._app({**scope, "client": ("127.0.0.1", 1)}, receive, watcher.send)
        self.problems += watcher.problems(against_document, against_openai)


class Campaign:
    """Runs the cases; afterwards `failures` tells what was wrong and `statuses` what was answered."""

    def __init__(self, cases: int, seed: int) -> None:
        self.failures: dict[str, str] = {}
        self.statuses = Counter[tuple[str, str, int]]()
        self._seed = seed
        self._app = Local(whole_app())
        schema = schemathesis.openapi.from_dict(whole_document())
        schema.app = self._app
        self._operations = [result.ok() for result in schema.get_all_operations()]
        self._shares = dict(self._divided(cases))

    @property
    def num_cases(self) -> int:
        """How many were sent."""
        return self.statuses.total()

    def run(self) -> None:
        """Sends them all."""
        for operation in self._operations:
            modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.body else [])]
            for mode in modes:
                self._run(operation, mode, self._shares[operation.label] // len(modes))

    def _divided(self, cases: int) -> Iterator[tuple[str, int]]:
        large = [one.label for one in self._operations if one.body and "/v1/" in one.path]
        small = [one.label for one in self._operations if one.label not in large]
        for labels, share in ((large, GENERATION_SHARE), (small, 1 - GENERATION_SHARE)):
            each = -(-int(cases * share) // len(labels))
            yield from ((label, each + each % 2) for label in labels)

    def _run(self, operation: schemathesis.APIOperation, mode: GenerationMode, cases: int) -> None:
        @hypothesis.seed(self._seed)
        @hypothesis.settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Case) -> None:
            self._send(case, mode)

        send()

    def _send(self, case: Case, mode: GenerationMode) -> None:
        refused = self._answer(case, mode)
        for _ in range(MAX_REPAIRS if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) else 0):
            if refused is None or case.body == (repaired := repair(case.body, refused)):
                return
            case.body = repaired
            refused = self._answer(case, mode)

    def _answer(self, case: Case, mode: GenerationMode) -> str | None:
        """Sends one case; the field that was refused, if any."""
        key = ADMIN_KEY if case.operation.path.startswith("/admin") else API_KEY
        headers = {"authorization": f"Bearer {key}"}
        response = case.call(headers=headers)
        label = case.operation.label
        self.statuses[label, mode.value, response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS, headers=headers)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(label, f"{mode.value}: {failure}", case)
        for problem in self._app.problems:
            self._note(label, problem, case)
        self._app.problems.clear()
        return response.json()["error"]["param"] if response.status_code in (400, 404) else None

    def _note(self, label: str, problem: str, case: Case) -> None:
        """One of each kind is enough."""
        kind = f"{label}: {problem.splitlines()[0][:100]}"
        self.failures.setdefault(kind, f"{problem[:1500]}\n{case.as_curl_command()[:1000]}")


def main() -> int:
    """Runs a campaign and says what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    campaign = Campaign(arguments.cases, arguments.seed)
    campaign.run()
    lines = [f"{count:5} {label} {mode} {status}" for (label, mode, status), count in sorted(campaign.statuses.items())]
    lines += [f"\n--- {kind}\n{text}" for kind, text in campaign.failures.items()]
    lines.append(f"{campaign.num_cases} cases, {len(campaign.failures)} kinds of failures")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
