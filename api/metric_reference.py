"""The table of `docs/observability.md`, from the metrics themselves; `python -m api.metric_reference` prints it."""

import sys

from api.metric_families import Definition
from api.metrics import Metrics, MetricsOptions

_INFO = dict.fromkeys(("version", "model", "engine", "topology"), "")


def reference() -> str:
    """One Markdown row per metric, in the order of a scrape."""
    metrics = Metrics(MetricsOptions(info=_INFO))
    head = ["| metric | kind | labels | tells | vLLM's name |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(_row(family.definition) for family in metrics.families)]) + "\n"


def _row(definition: Definition) -> str:
    labels = ", ".join(f"`{label}`" for label in definition.labels)
    alias = f"`{definition.alias}`" if definition.alias else ""
    return f"| `{definition.name}` | {definition.kind} | {labels} | {definition.help} | {alias} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
