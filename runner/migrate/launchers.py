"""The options of torchrun and of DeepSpeed's launcher. `accelerate launch` has the keys of its configuration."""

from runner.migrate.outcome import Outcome, Rule, Values, becomes
from runner.migrate.rules import missing, needless, number, sets, size, text, whole

__all__ = ["DEEPSPEED", "DEEPSPEED_FLAGS", "TORCHRUN", "TORCHRUN_FLAGS"]

SCRIPT = needless("a recipe names functions, not a script")
LOGS = needless("the log of each process is in the run's directory")
NUMBER = needless("each machine finds its number; launch.node_rank gives one")
COUNTED = {"auto": None, "cpu": "cpu", "gpu": "cuda", "xpu": None}
"""Words for the number of devices, and the hardware that they name."""
REPLICAS = ("strategy", "ddp")
IN_SCRIPT = "the script says how it uses them: strategy=ddp, fsdp, deepspeed_zero2 …"


def _nodes(values: Values) -> int:
    """The number of machines; of a range, the most."""
    name = "nnodes" if "nnodes" in values else "num_nodes"
    return size({name: str(values.get(name, 1)).rpartition(":")[2]}, name)


def _machines(value: object, values: Values) -> Outcome:
    least, _, most = text(value).rpartition(":")
    count = whole(most)
    if count < 1 or (least and whole(least) > count):
        raise ValueError("must be at least 1, and a range from fewer to more.")
    if count == 1:
        return Outcome(remark="one, as by default")
    ranged = least and whole(least) != count
    remark = "all of them must join" if ranged else "start the same command on each"
    meets = {"rdzv_endpoint", "master_addr", "hostfile"} & set(values)
    remark += "" if meets else "; give launch.rendezvous, the host of the first machine"
    return becomes(
        ("launch", "nodes"), ("launch.nodes", count), REPLICAS, remark=remark, is_missing=bool(ranged) or not meets
    )


def _processes(value: object, values: Values) -> Outcome:
    if not str(value).isdecimal():
        if str(value).lower() not in COUNTED:
            raise ValueError(f"must be a whole number, {', '.join(COUNTED)}.")
        hardware = COUNTED[str(value).lower()]
        settings = [("hardware", hardware)] if hardware else []
        rule = "as many as there are devices: give hardware.processes their number"
        return becomes(*settings, REPLICAS, remark=f"{rule}; {IN_SCRIPT}", is_missing=True)
    count = whole(value)
    if count < 1:
        raise ValueError("must be at least 1.")
    if count == 1 and _nodes(values) == 1:
        return becomes(("hardware.processes", 1), ("strategy", "single"))
    return becomes(("hardware.processes", count), REPLICAS, remark=IN_SCRIPT)


def _place(value: object, values: Values) -> Outcome:
    if _nodes(values) == 1:
        return Outcome(remark="one machine: its processes find each other")
    if "rdzv_endpoint" in values:
        return becomes(("launch.rendezvous", text(values["rdzv_endpoint"])))
    host = text(values.get("master_addr", ""))
    if not host:
        return Outcome(remark="goes with the host of the first machine: launch.rendezvous=HOST:PORT", is_missing=True)
    port = size(values, "master_port", default=0)
    return becomes(("launch.rendezvous", f"{host}:{port}" if port else host))


MEETING = {
    "master_addr": _place,
    "master_port": _place,
    "node_rank": NUMBER,
}
TORCHRUN: dict[str, Rule] = {
    "nnodes": _machines,
    "nproc_per_node": _processes,
    **MEETING,
    "rdzv_endpoint": _place,
    "rdzv_backend": needless("one way to meet: at launch.rendezvous"),
    "rdzv_id": needless("the run's directory names the run"),
    "rdzv_conf": needless("its times are launch.join_s and launch.lost_s"),
    "standalone": needless("one machine, as by default"),
    "max_restarts": sets("launch.max_restarts", whole, remark="from the last checkpoint"),
    "monitor_interval": sets("launch.monitor_interval_s", number),
    "shutdown_timeout": sets("launch.grace_s", number),
    "start_method": needless("launch.fork says whether ranks are forked"),
    "role": needless("all processes have one role"),
    **dict.fromkeys(("module", "no_python", "run_path"), SCRIPT),
    **dict.fromkeys(
        (
            "log_dir",
            "redirects",
            "tee",
            "logs_specs",
            "local_ranks_filter",
            "duplicate_stdout_filters",
            "duplicate_stderr_filters",
            "event_log_handler",
        ),
        LOGS,
    ),
    "local_addr": missing("launch.interface names the network interface of a machine"),
    "numa_binding": missing("not there: start the command under numactl or taskset"),
    "signals_to_handle": needless("SIGTERM, SIGUSR2 and SIGINT save a checkpoint and stop"),
    "virtual_local_rank": needless("a rank takes the device of its local rank"),
    "use_env": needless("a rank's place is found by the runner"),
}
TORCHRUN_FLAGS = frozenset({"standalone", "module", "no_python", "run_path", "virtual_local_rank", "use_env"})


def _hosts(value: object, values: Values) -> Outcome:
    if _nodes(values) == 1:
        return Outcome(remark="for several machines: launch=nodes launch.nodes=N launch.hostfile=FILE", is_missing=True)
    return becomes(("launch.hostfile", text(value)))


DEEPSPEED: dict[str, Rule] = {
    "num_gpus": _processes,
    "num_accelerators": _processes,
    "num_nodes": _machines,
    "hostfile": _hosts,
    **MEETING,
    "include": missing("devices go by CUDA_VISIBLE_DEVICES, machines by the lines of the hostfile"),
    "exclude": missing("devices go by CUDA_VISIBLE_DEVICES, machines by the lines of the hostfile"),
    "launcher": needless("pdsh, srun or a terminal on each machine starts the same command"),
    "launcher_args": needless("pdsh, srun or a terminal on each machine starts the same command"),
    **dict.fromkeys(("no_ssh", "no_ssh_check", "ssh_port", "force_multi"), needless("no other machine is logged into")),
    **dict.fromkeys(("module", "no_python", "no_local_rank"), SCRIPT),
    "save_pid": needless("run.lock in the run's directory names the process"),
    **dict.fromkeys(("enable_each_rank_log", "log_level", "quiet"), LOGS),
    "autotuning": missing("batch.micro_items=auto finds the largest micro-batch; -m sweeps any key"),
    "bind_cores_to_rank": missing("hardware.threads divides the cores among ranks"),
    "bind_core_list": missing("start the command under numactl or taskset"),
    "venv_script": needless("the command runs in the environment that it is started in"),
}
DEEPSPEED_FLAGS = frozenset(
    {
        "module",
        "no_python",
        "no_local_rank",
        "no_ssh",
        "no_ssh_check",
        "force_multi",
        "save_pid",
        "bind_cores_to_rank",
        "quiet",
    }
)
