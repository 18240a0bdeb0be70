"""DeepSpeed's configuration: generated from the recipe and merged with the user's own, one value for each key.

It is a flat mapping with dotted keys (zero_optimization.stage) until it is passed to DeepSpeed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.errors import ModelError
from runner.protocols import Clip, Precision

if TYPE_CHECKING:
    from runner.config.run_spec import RunSpec

AUTO = "auto"
ZERO = "zero_optimization."
HIDDEN_SIZE_KEYS = (  # "auto" is computed from the model's hidden size, as Accelerate and transformers do
    ZERO + "reduce_bucket_size",
    ZERO + "stage3_prefetch_bucket_size",
    ZERO + "stage3_param_persistence_threshold",
)
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
OPTIMIZER_PARAMS = "optimizer.params."
GROUP_SETTINGS = ("lr", "betas", "eps", "weight_decay", "momentum")  # settings of an optimizer's parameter groups
OPTIMIZER_KEYS = tuple(OPTIMIZER_PARAMS + key for key in GROUP_SETTINGS)
LOSS_SCALE_KEYS = tuple(
    f"fp16.{key}" for key in ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")
)
LEFT_TO_DEEPSPEED = (ZERO + "stage3_gather_16bit_weights_on_model_save",)  # "auto" leaves them to DeepSpeed


class Entry(NamedTuple):
    """A value and where it was set."""

    value: Any
    origin: str
    """Where a user would change it: clip.norm, strategy.config.zero_optimization.stage, ds.json: gradient_clipping."""


Source = Mapping[str, Entry]


def flatten(section: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}; lists and empty mappings are values."""
    leaves: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, prefix=f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, key = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return tree


def user_entries(section: Mapping[str, Any], origin: str) -> dict[str, Entry]:
    """Entries of a user's configuration; the origin of each is `origin` followed by its key."""
    return {key: Entry(value, origin + key) for key, value in flatten(section).items()}


def run_entries(precision: Precision, clip: Clip) -> dict[str, Entry]:
    """Entries determined by precision and clipping, which a user's configuration may not change."""
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # DeepSpeed's
    compute, weight = precision.dtypes.param, precision.dtypes.weight
    values = {
        "bf16.enabled": compute == torch.bfloat16,
        "bf16.bf16_master_weights_and_grads": weight == torch.bfloat16,
        "bf16.bf16_optimizer_states": weight == torch.bfloat16,
        "fp16.enabled": compute == torch.float16,
        "fp16.fp16_master_weights_and_grads": weight == torch.float16,
        "torch_autocast.enabled": False,
        # Micro-batches accumulate in the dtype of the weights, as they do in the .grad of such weights in torch.
        "data_types.grad_accum_dtype": names[precision.dtypes.reduce if weight == torch.float32 else weight],
        "communication_data_type": names[precision.dtypes.reduce],
    }
    entries = {key: Entry(value, "precision") for key, value in values.items()}
    return {"gradient_clipping": Entry(clip.norm or 0.0, "clip.norm"), **entries}


def drop_unset(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries whose value is not None."""
    return {key: entry for key, entry in entries.items() if entry.value is not None}


def spec_entries(spec: "RunSpec") -> dict[str, Entry]:
    """Entries that a user's file may repeat but not change: the batch, the optimizer's settings, the loss scale."""
    sizes = (spec.batch.items, spec.batch.micro_items, spec.batch.accumulate)
    origins = ("batch.items", "batch.micro_items", "batch.accumulate")
    entries = {key: Entry(*one) for key, one in zip(BATCH_KEYS, zip(sizes, origins, strict=True), strict=True)}
    for key, value in flatten(spec.config["optimizer"]).items():
        if key in GROUP_SETTINGS:
            entries[OPTIMIZER_PARAMS + key] = Entry(value, "optimizer." + key)
    return entries | _loss_scale_entries(spec.config["precision"])


def _loss_scale_entries(keys: Mapping[str, Any]) -> dict[str, Entry]:
    """How the loss scale is adjusted, under DeepSpeed's keys; empty without one. The precision adjusts it."""
    if not keys.get("scale_loss"):
        return {}
    entries = (
        (0, "precision.scale_loss"),  # 0 = dynamic
        (math.log2(keys["init_scale"]), "precision.init_scale"),
        (keys["growth_interval"], "precision.growth_interval"),
        (1, "precision, whose scale shrinks at the first overflow"),
        (keys["min_scale"], "precision.min_scale"),
    )
    return {key: Entry(*one) for key, one in zip(LOSS_SCALE_KEYS, entries, strict=True)}


def runner_entries() -> dict[str, Entry]:
    """Entries on which the definition of a step and checkpoints by parameter name depend."""
    origin = "the runner, which divides gradients itself"
    return {
        "prescale_gradients": Entry(False, origin),
        "gradient_predivide_factor": Entry(1.0, origin),
        "gradient_allreduce_op": Entry("mean", origin),
        "zero_allow_untested_optimizer": Entry(True, "the runner, which builds the optimizer"),
        "zero_force_ds_cpu_optimizer": Entry(False, "the runner, which builds the optimizer"),
        ZERO + "memory_efficient_linear": Entry(False, "the runner, because it would replace torch's permanently"),
    }


def contradictions(sources: Sequence[Source]) -> list[str]:
    """One line for each key that sources set to different values; "auto" does not count as a value."""
    lines = []
    for key in sorted({key for source in sources for key in source}):
        entries = [source[key] for source in sources if key in source and source[key].value != AUTO]
        if any(entry.value != entries[0].value for entry in entries[1:]):
            lines.append(f"{key} is " + " and ".join(f"{entry.value!r} by {entry.origin}" for entry in entries))
    return lines


def unfilled(sources: Sequence[Source]) -> list[str]:
    """Keys that are "auto" although nothing fills them in."""
    filled = {key for source in sources for key, entry in source.items() if entry.value != AUTO}
    known = {*BATCH_KEYS, *HIDDEN_SIZE_KEYS, *LEFT_TO_DEEPSPEED, *OPTIMIZER_KEYS, *LOSS_SCALE_KEYS, *filled}
    return sorted({key for source in sources for key in source} - known)


def merge_sources(sources: Sequence[Source]) -> dict[str, Any]:
    """Merge sources without contradictions; "auto" remains where it depends on the model."""
    merged: dict[str, Any] = {}
    for source in sources:
        for key, entry in source.items():
            if entry.value != AUTO or (key in HIDDEN_SIZE_KEYS and key not in merged):
                merged[key] = entry.value
    return {key: value for key, value in merged.items() if key not in (*BATCH_KEYS, *OPTIMIZER_KEYS, *LOSS_SCALE_KEYS)}


def placeholder_batch(num_ranks: int) -> dict[str, Any]:
    """Batch sizes that DeepSpeed requires. The runner itself forms micro-batches, weights them and marks the last.

    DeepSpeed only checks whether there may be several (with offload, the gradient norm of a step of several
    micro-batches is wrong if it was configured for one), so that it always gets two, of one item each.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2 * num_ranks,
    }


def drop_auto(merged: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for zero.Init, which is needed before there is a model: without keys that are "auto"."""
    return {key: value for key, value in merged.items() if value != AUTO}


def fill_hidden_size_keys(merged: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Fill in those of three sizes that are "auto", by the rules in Accelerate's documentation.

    Raises:
        ModelError: the model's config has no hidden size.
    """
    wanted = [key for key, value in merged.items() if value == AUTO]
    if not wanted:
        return dict(merged)
    size = _hidden_size(model, wanted)
    rules = dict(zip(HIDDEN_SIZE_KEYS, (size * size, int(0.9 * size * size), 10 * size), strict=True))
    return {**merged, **{key: rules[key] for key in wanted}}


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
        f"{', '.join(wanted)} = auto is computed from the model's hidden size, but {type(model).__name__} has neither "
        "config.hidden_size nor config.hidden_sizes. Give numbers instead of auto."
    )
