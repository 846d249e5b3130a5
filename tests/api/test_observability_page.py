"""The page about metrics says what there is."""

from pathlib import Path

from api.metric_reference import reference
from api.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"


def test_the_table_is_the_metrics_own() -> None:
    assert reference() in PAGE.read_text()


def test_every_metric_has_a_name_of_its_own_and_says_what_it_tells() -> None:
    definitions = [family.definition for family in Metrics().families]
    names = [name for one in definitions for name in (one.name, one.alias) if name]
    assert len(names) == len(set(names))
    assert all(one.help and (one.kind == "histogram") == bool(one.bounds) for one in definitions)
    assert all(one.name.endswith("_total") == (one.kind == "counter") for one in definitions)
