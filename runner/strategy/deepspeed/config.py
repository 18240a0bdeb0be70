"""DeepSpeed's configuration: generated from the recipe, joined with what the user adds, one value for each key.

Everything is kept flat, by dotted keys (zero_optimization.stage), until DeepSpeed is given it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from runner.errors import ModelError
from runner.protocols import Clip, Precision

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

AUTO = "auto"
ZERO = "zero_optimization."
SHAPED = (  # filled from the model's hidden size, as Accelerate and transformers do
    ZERO + "reduce_bucket_size",
    ZERO + "stage3_prefetch_bucket_size",
    ZERO + "stage3_param_persistence_threshold",
)
BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OF_OPTIMIZER = "optimizer.params."
OF_GROUPS = ("lr", "betas", "eps", "weight_decay", "momentum")  # what an optimizer's parameter groups carry
FILLED = tuple(OF_OPTIMIZER + key for key in OF_GROUPS)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # as DeepSpeed calls them
OF_SCALE = tuple(
    f"fp16.{key}" for key in ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")
)
DEFAULTED = (ZERO + "stage3_gather_16bit_weights_on_model_save",)  # "auto" leaves them to DeepSpeed


class Entry(NamedTuple):
    """A value and who gave it."""

    value: Any
    knob: str
    """What one would change: clip.norm, strategy.config.zero_optimization.stage, ds.json: gradient_clipping."""


Source = Mapping[str, Entry]


def flat(section: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists and empty mappings are values."""
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, prefix=f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` was made of."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, key = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree


def of_user(section: Mapping[str, Any], knob: str) -> dict[str, Entry]:
    """What a user wrote, each key under the place where it stands."""
    return {key: Entry(value, knob + key) for key, value in flat(section).items()}


def of_run(precision: Precision, clip: Clip) -> dict[str, Entry]:
    """What follows from the run and cannot be chosen again."""
    seen, kept = precision.dtypes.param, precision.dtypes.weight
    values = {
        "bf16.enabled": seen == torch.bfloat16,
        "bf16.bf16_master_weights_and_grads": kept == torch.bfloat16,
        "bf16.bf16_optimizer_states": kept == torch.bfloat16,
        "fp16.enabled": seen == torch.float16,
        "fp16.fp16_master_weights_and_grads": kept == torch.float16,
        "torch_autocast.enabled": False,
        # Rounds add up as the weights are kept, as they do in torch's .grad of such weights.
        "data_types.grad_accum_dtype": NAMES[precision.dtypes.reduce if kept == torch.float32 else kept],
        "communication_data_type": NAMES[precision.dtypes.reduce],
    }
    entries = {key: Entry(value, "precision") for key, value in values.items()}
    return {"gradient_clipping": Entry(clip.norm or 0.0, "clip.norm"), **entries}


def given(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Without those that say nothing."""
    return {key: entry for key, entry in entries.items() if entry.value is not None}


def of_spec(spec: "RunSpec") -> dict[str, Entry]:
    """What a user's file may repeat, but not otherwise: the batch, the optimizer's settings, the loss scale."""
    figures = (spec.batch.items, spec.batch.micro_items, spec.batch.accumulate)
    knobs = ("batch.items", "batch.micro_items", "batch.accumulate")
    entries = {key: Entry(*one) for key, one in zip(BATCH, zip(figures, knobs, strict=True), strict=True)}
    for key, value in flat(spec.config["optimizer"]).items():
        if key in OF_GROUPS:
            entries[OF_OPTIMIZER + key] = Entry(value, "optimizer." + key)
    return entries | _of_scale(spec.config["precision"])


def _of_scale(keys: Mapping[str, Any]) -> dict[str, Entry]:
    """How the loss scale moves, in DeepSpeed's words; nothing of a precision that has none. The precision moves it."""
    if not keys.get("scale_loss"):
        return {}
    told = (
        (0, "precision.scale_loss"),  # it moves
        (math.log2(keys["init_scale"]), "precision.init_scale"),
        (keys["growth_interval"], "precision.growth_interval"),
        (1, "precision, whose scale shrinks at the first overflow"),
        (keys["min_scale"], "precision.min_scale"),
    )
    return {key: Entry(*one) for key, one in zip(OF_SCALE, told, strict=True)}


def of_house() -> dict[str, Entry]:
    """What the step's law and checkpoints by name rest on."""
    law = "the runner, which divides gradients itself"
    return {
        "prescale_gradients": Entry(False, law),
        "gradient_predivide_factor": Entry(1.0, law),
        "gradient_allreduce_op": Entry("mean", law),
        "zero_allow_untested_optimizer": Entry(True, "the runner, which builds the optimizer"),
        "zero_force_ds_cpu_optimizer": Entry(False, "the runner, which builds the optimizer"),
        ZERO + "memory_efficient_linear": Entry(False, "the runner, since it would replace torch's for good"),
    }


def contradictions(sources: Sequence[Source]) -> list[str]:
    """A line for each key to which two sources give different values; "auto" is no value."""
    lines = []
    for key in sorted({key for source in sources for key in source}):
        said = [source[key] for source in sources if key in source and source[key].value != AUTO]
        if any(entry.value != said[0].value for entry in said[1:]):
            lines.append(f"{key} is " + " and ".join(f"{entry.value!r} by {entry.knob}" for entry in said))
    return lines


def unfilled(sources: Sequence[Source]) -> list[str]:
    """What is "auto" though nothing fills it."""
    filled = {key for source in sources for key, entry in source.items() if entry.value != AUTO}
    known = {*BATCH, *SHAPED, *DEFAULTED, *FILLED, *OF_SCALE, *filled}
    return sorted({key for source in sources for key in source} - known)


def join(sources: Sequence[Source]) -> dict[str, Any]:
    """One value for each key, of sources without contradictions; "auto" stays where only a model can fill it."""
    joined: dict[str, Any] = {}
    for source in sources:
        for key, entry in source.items():
            if entry.value != AUTO or (key in SHAPED and key not in joined):
                joined[key] = entry.value
    return {key: value for key, value in joined.items() if key not in (*BATCH, *FILLED, *OF_SCALE)}


def told_of_batches(num_ranks: int) -> dict[str, Any]:
    """What DeepSpeed wants to hear of the batch. The runner makes rounds, weighs them and says which is the last.

    DeepSpeed only asks whether there may be several (with offload, the gradient norm of a step of several rounds is
    wrong if it was told one), so that it is always told two, of one item.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2 * num_ranks,
    }


def without_shape(joined: Mapping[str, Any]) -> dict[str, Any]:
    """For zero.Init, which has to be configured before there is a model."""
    return {key: value for key, value in joined.items() if value != AUTO}


def shaped(joined: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The three sizes that are "auto", by the rules of Accelerate's documentation.

    Raises:
        ModelError: the model does not say its hidden size.
    """
    wanted = [key for key, value in joined.items() if value == AUTO]
    if not wanted:
        return dict(joined)
    size = _hidden_size(model, wanted)
    rules = dict(zip(SHAPED, (size * size, int(0.9 * size * size), 10 * size), strict=True))
    return {**joined, **{key: rules[key] for key in wanted}}


def _hidden_size(model: Any, wanted: Sequence[str]) -> int:
    try:
        config = model.config
    except AttributeError:
        config = None
    rules: tuple[Callable[[], Any], ...] = (lambda: config.hidden_size, lambda: max(config.hidden_sizes))
    for read in rules:
        try:
            return int(read())
        except AttributeError:
            continue
    raise ModelError(
        f"{', '.join(wanted)} = auto are computed from the model's hidden size, but {type(model).__name__} has neither "
        "config.hidden_size nor config.hidden_sizes. Give numbers instead of auto."
    )
