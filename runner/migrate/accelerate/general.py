"""Which machines, devices and processes, and in which precision: the arguments outside any section."""

from typing import Any

from runner.migrate.accelerate.fp8 import fp8
from runner.migrate.accelerate.situation import FLAGS, kind_of_run, num_machines
from runner.migrate.accelerate.strategy import strategy
from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import (
    chooses,
    if_on,
    missing,
    missing_unless,
    needless,
    number,
    sets,
    size,
    text,
    whole,
    yes_no,
)

__all__ = ["GENERAL"]

DEVICES = {
    **dict.fromkeys(("NO", "FSDP", "DEEPSPEED", "MEGATRON_LM"), Outcome()),
    "MULTI_CPU": becomes(("hardware", "cpu")),
    "MULTI_GPU": becomes(("hardware", "cuda")),
    "DATA_PARALLEL": becomes(("hardware", "cuda")),
    "MPS": becomes(("hardware", "mps")),
    **{
        name: Outcome(remark=f"no hardware option for {name}: there are cuda, mps and cpu", is_missing=True)
        for name in (
            *(f"MULTI_{kind}" for kind in ("XPU", "HPU", "NPU", "MLU", "SDAA", "MUSA", "NEURON")),
            *("XLA", "TPU"),
        )
    },
    "MODEL_PARALLEL": Outcome(remark="SageMaker's model parallelism is not there", is_missing=True),
}
"""What each distributed_type says of the devices."""


def _kind_of(word: str, values: Values) -> Outcome:
    devices, chosen = chooses(DEVICES)(word, values), strategy(values)
    return Outcome(
        (*devices.settings, *chosen.settings),
        "; ".join(filter(None, (devices.remark, chosen.remark))),
        devices.is_missing or chosen.is_missing,
    )


def _kind(value: object, values: Values) -> Outcome:
    """A distributed_type, unless a flag of the command line replaces it."""
    word = text(value).upper()
    chooses(DEVICES)(word, values)
    if word != kind_of_run(values):
        return Outcome(remark=f"the command line asks for {kind_of_run(values)}")
    return _kind_of(word, values)


def _flag(value: object, values: Values) -> Outcome:
    return _kind_of(kind_of_run(values), values) if yes_no(value) else Outcome(remark="off")


def _processes(value: object, values: Values) -> Outcome:
    """All processes, divided among the machines."""
    total, machines = whole(value), num_machines(values)
    if total == -1:
        return Outcome(remark="left open: hardware.processes is the number on each machine", is_missing=True)
    if total < 1:
        raise ValueError("must be at least 1.")
    if kind_of_run(values) == "NO" and total > 1:
        return Outcome(remark="distributed_type NO starts one; for more: strategy=ddp hardware.processes=N")
    if total % machines:
        raise ValueError(f"cannot be divided among {machines} machines. Use a multiple of {machines}.")
    remark = f"{total} on {machines} machines" if machines > 1 else ""
    found = becomes(("hardware.processes", total // machines), remark=remark)
    is_said = "distributed_type" in values or any(flag in values for flag in FLAGS)
    return found if is_said else Outcome((*found.settings, *strategy(values).settings), remark)


def _machines(value: object, values: Values) -> Outcome:
    count = whole(value)
    if count < 1:
        raise ValueError("must be at least 1.")
    if count == 1:
        return Outcome(remark="one, as by default")
    meets = {"main_process_ip", "mpirun_hostfile", "deepspeed_hostfile"} & set(values)
    remark = "start the same command on each" if meets else "give launch.rendezvous, the host of the first machine"
    return becomes(("launch", "nodes"), ("launch.nodes", count), remark=remark, is_missing=not meets)


def _rendezvous(value: object, values: Values) -> Outcome:
    """Where several machines meet."""
    if num_machines(values) == 1:
        return Outcome(remark="one machine: its processes find each other")
    host = text(values.get("main_process_ip", ""))
    if not host:
        return Outcome(remark="goes with main_process_ip: launch.rendezvous=HOST:PORT", is_missing=True)
    port = size(values, "main_process_port", default=0)
    if not port:
        return becomes(("launch.rendezvous", host))
    bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return becomes(("launch.rendezvous", f"{bare}:{port}"))


def _port(value: object, values: Values) -> Outcome:
    if not 0 <= whole(value) < 1 << 16:
        raise ValueError("must be a port, from 1 to 65535, or 0 for a free one.")
    return _rendezvous(value, values)


def _devices(value: Any, values: Values) -> Outcome:
    found = ",".join(map(str, value)) if isinstance(value, list) else text(value)
    if found == "all":
        return Outcome(remark="all that are visible, as by default")
    return Outcome(remark=f"set CUDA_VISIBLE_DEVICES={found} for the command", is_missing=True)


def _precision(value: object, values: Values) -> Outcome:
    choices = {
        "NO": becomes(("precision", "fp32")),
        "FP16": becomes(("precision", "fp16")),
        "BF16": becomes(("precision", "bf16")),
        "FP8": fp8(values),
    }
    return chooses(choices)(value, values)


def _environment(value: object, values: Values) -> Outcome:
    if str(value).upper() not in ("LOCAL_MACHINE", "AMAZON_SAGEMAKER"):
        raise ValueError("is not one of LOCAL_MACHINE, AMAZON_SAGEMAKER.")
    if str(value).upper() == "LOCAL_MACHINE":
        return Outcome(remark="the machines are your own")
    return Outcome(remark="no job is submitted: `runner train` is what the job of your own starts", is_missing=True)


CPU = if_on(becomes(("hardware", "cpu")), Outcome(remark="hardware=auto takes the best that there is"))
GENERAL: dict[str, Rule] = {
    "compute_environment": _environment,
    "distributed_type": _kind,
    **dict.fromkeys(FLAGS, _flag),
    "num_processes": _processes,
    "num_machines": _machines,
    "machine_rank": needless("each machine finds its number; launch.node_rank gives one", whole),
    "main_process_ip": _rendezvous,
    "main_process_port": _port,
    "rdzv_backend": needless("one way to meet: at launch.rendezvous"),
    "rdzv_conf": needless("its times are launch.join_s and launch.lost_s"),
    "same_network": needless("machines that do not reach launch.rendezvous are told so"),
    "gpu_ids": _devices,
    "use_cpu": CPU,
    "cpu": CPU,
    "num_cpu_threads_per_process": sets("hardware.threads", whole),
    "enable_cpu_affinity": missing_unless(
        False, "not there: start the command under numactl or taskset", convert=yes_no
    ),
    "mixed_precision": _precision,
    "fp16": if_on(becomes(("precision", "fp16")), becomes(("precision", "fp32"))),
    "downcast_bf16": missing_unless(False, "belongs to TPUs, for which there is no option", convert=yes_no),
    "max_restarts": sets("launch.max_restarts", whole, remark="from the last checkpoint"),
    "monitor_interval": sets("launch.monitor_interval_s", number),
    "log_dir": needless("the log of each process is in the run's directory"),
    "tee": needless("the log of each process is in the run's directory"),
    "role": needless("all processes have one role"),
    "debug": needless("the process that failed is named, with its traceback", yes_no),
    "quiet": needless("the process that failed is named, with its traceback"),
    "main_training_function": needless("a recipe names functions: model, data, loss"),
    "module": needless("a recipe names functions, not a script"),
    "no_python": needless("a recipe names functions, not a script"),
    "aws_access_key_id": missing("no job is submitted to Amazon SageMaker"),
    "aws_secret_access_key": missing("no job is submitted to Amazon SageMaker"),
}
"""Arguments outside any section."""
