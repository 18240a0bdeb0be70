"""The config groups: which there are, and what wraps a `_target_` that is not a part of the runner."""

from collections.abc import Mapping

__all__ = ["GROUPS", "MANY_GROUPS"]

GROUPS: Mapping[str, str | None] = {
    "hardware": None,
    "launch": None,
    "strategy": None,
    "precision": None,
    "optimizer": "runner.optimizer.foreign.ForeignOptimizer",
    "order": None,
    "schedule": "runner.schedule.foreign.ForeignSchedule",
    "checkpoint": None,
}
"""Groups of which a run has one option, each with the part that wraps a target which is not a part, if it has one."""
MANY_GROUPS: Mapping[str, str | None] = {
    "tracker": None,
    "metric": "runner.metric.foreign.ForeignMetric",
    "callback": None,
}
"""Groups of which a run has any number of options, each under its own name; with the part that wraps a target, too."""
