"""What a metric's faults say: where it stands in the recipe, and how to install what it needs."""

from typing import TYPE_CHECKING

from runner.protocols import Metric

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

INSTALL = "pip install 'hydra-runner[metrics]'"


def key_of(part: Metric, spec: "RunSpec") -> str:
    """The key of a metric in a recipe."""
    return next((f"metric.{name}" for name, one in spec.metric.items() if one is part), "metric")
