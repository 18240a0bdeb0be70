"""Scores of classifiers, computed by torchmetrics from the predictions of all items."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, final

from runner.errors import Fault
from runner.metric.in_recipe import INSTALL, key_of
from runner.protocols import Meter

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec


class Score(Enum):
    """What is computed; the values name torchmetrics' classes."""

    ACCURACY = "Accuracy"
    AUROC = "AUROC"
    F1 = "F1Score"
    PRECISION = "Precision"
    RECALL = "Recall"


class Average(Enum):
    """How the scores of several classes become one."""

    MACRO = "macro"
    """Their mean."""
    MICRO = "micro"
    """Computed over all classes at once."""
    WEIGHTED = "weighted"
    """Their mean, weighted by the items of each class."""
    NONE = "none"
    """Not at all: one value for each class."""


@final
@dataclass(frozen=True, kw_only=True)
class Classification:
    """A score over two classes, or several."""

    score: Score = Score.AUROC
    """What is computed."""
    classes: int | None = None
    """The number of classes; null = two, of which class 1 is the one to be found."""
    average: Average = Average.MACRO
    """How the scores of several classes become one; not used for two."""
    preds: str = "preds"
    """The loss hook's output with predictions: classes or probabilities [items], or scores [items, classes]."""
    target: str = "target"
    """The loss hook's output with the true classes [items]."""

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2, or null for two classes.")
        if self.score is Score.AUROC and self.average is Average.MICRO and self.classes is not None:
            raise ValueError("average=micro is not defined for score=AUROC. Use macro, weighted or none.")

    def check(self, spec: "RunSpec") -> Iterable[Fault]:
        """Requires torchmetrics."""
        if find_spec("torchmetrics") is None:
            rule = f"needs torchmetrics, which is not installed: {INSTALL}"
            yield Fault(key=key_of(self, spec), message=rule)

    def build(self, *, name: str, on_device: bool) -> Meter:
        """A meter without updates."""
        from torchmetrics import classification

        from runner.metric.torch_metric import open_meter

        kind = vars(classification)[self.score.value]
        metric = (
            kind(task="binary")
            if self.classes is None
            else kind(task="multiclass", num_classes=self.classes, average=self.average.value)
        )
        return open_meter(metric, name, {"preds": self.preds, "target": self.target})
