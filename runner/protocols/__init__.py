"""The protocols between the rooms of the runner, one file each; everything can be imported from here.

A *part* is what one option file of a config group becomes: a final, frozen, keyword-only dataclass that is both the
schema of its YAML and its behaviour. Building a part touches no device, file or process; `check(spec)` yields its
faults in combination with the rest of the spec. The protocols below define what a part of each group must do. A new
option is one file with such a dataclass and one YAML file whose `_target_` names it.

No torch is imported here at run time: the command line reads this module before it knows whether it needs torch.
"""

from runner.protocols.callback import (
    AfterEval,
    AfterRun,
    AfterSave,
    AfterStep,
    AroundEval,
    AroundStep,
    BeforeRun,
    Callback,
    HoldsTensors,
    Listener,
)
from runner.protocols.checkpoint import Checkpoint, Checkpointer
from runner.protocols.data import (
    BatchSampler,
    IndexedSteps,
    LoaderOptions,
    MicroBatchIndices,
    OpensSource,
    Order,
    Ordering,
    Source,
    SourceRequest,
    StepPlan,
)
from runner.protocols.hardware import Hardware
from runner.protocols.hooks import Data, Loss
from runner.protocols.launch import HandsOverSecrets, Launch, Launcher
from runner.protocols.media import Image, Table
from runner.protocols.mesh import Axes, Axis
from runner.protocols.metric import Meter, Metric
from runner.protocols.optimizer import GraphUpdate, Optimizer, Schedule, Scheduler, UpdatesInGraph
from runner.protocols.part import ChecksModel, Part
from runner.protocols.precision import Dtypes, Precision, Scaler
from runner.protocols.run import Outcome, Run, Trackers
from runner.protocols.state import Progress, SavedState, State, Stateful, StoredTensor
from runner.protocols.step import Clip, MicroBatch, MicroBatchLoss, StepBatches, StepLoss, Update
from runner.protocols.strategy import (
    Builder,
    CompilesSteps,
    Placed,
    SparesCompiler,
    StepGraphs,
    StepsAtOnce,
    Strategy,
    Trainable,
)
from runner.protocols.tracker import (
    HasHandle,
    LogsArtifacts,
    LogsImages,
    LogsTables,
    LogsText,
    RunInfo,
    Tracker,
    TrackerLog,
)
from runner.protocols.world import World

__all__ = [
    "AfterEval",
    "AfterRun",
    "AfterSave",
    "AfterStep",
    "AroundEval",
    "AroundStep",
    "Axes",
    "Axis",
    "BatchSampler",
    "BeforeRun",
    "Builder",
    "Callback",
    "Checkpoint",
    "Checkpointer",
    "ChecksModel",
    "Clip",
    "CompilesSteps",
    "Data",
    "Dtypes",
    "GraphUpdate",
    "HandsOverSecrets",
    "Hardware",
    "HasHandle",
    "HoldsTensors",
    "Image",
    "IndexedSteps",
    "Launch",
    "Launcher",
    "Listener",
    "LoaderOptions",
    "LogsArtifacts",
    "LogsImages",
    "LogsTables",
    "LogsText",
    "Loss",
    "Meter",
    "Metric",
    "MicroBatch",
    "MicroBatchIndices",
    "MicroBatchLoss",
    "OpensSource",
    "Optimizer",
    "Order",
    "Ordering",
    "Outcome",
    "Part",
    "Placed",
    "Precision",
    "Progress",
    "Run",
    "RunInfo",
    "SavedState",
    "Scaler",
    "Schedule",
    "Scheduler",
    "Source",
    "SourceRequest",
    "SparesCompiler",
    "State",
    "Stateful",
    "StepBatches",
    "StepGraphs",
    "StepLoss",
    "StepPlan",
    "StepsAtOnce",
    "StoredTensor",
    "Strategy",
    "Table",
    "Tracker",
    "TrackerLog",
    "Trackers",
    "Trainable",
    "Update",
    "UpdatesInGraph",
    "World",
]
