"""Command lines of launchers become overrides that a recipe accepts; nothing of them is executed."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from runner.config.run_spec import RunSpec
from runner.errors import SpecError
from runner.migrate.command_line import read_command
from runner.migrate.launchers import TORCHRUN, TORCHRUN_FLAGS

Spec = Callable[[Sequence[str]], RunSpec]
CASES = {
    "torchrun --nproc_per_node 2 train.py --lr 0.1": ("hardware.processes=2 strategy=ddp", ""),
    "torchrun --standalone --nproc-per-node=1 train.py": ("hardware.processes=1 strategy=single", ""),
    "torchrun --nproc_per_node=gpu train.py": ("hardware=cuda strategy=ddp", "--nproc_per_node"),
    "/opt/bin/torchrun --nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr a --master_port 29501 t.py": (
        "launch=nodes launch.nodes=2 strategy=ddp hardware.processes=4 launch.rendezvous='a:29501'",
        "",
    ),
    "python -m torch.distributed.run --nnodes=1:4 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=h:29400 "
    "--rdzv_id job --max_restarts 3 --monitor_interval 5 --shutdown_timeout 60 -m my.module": (
        "launch=nodes launch.nodes=4 strategy=ddp hardware.processes=2 launch.rendezvous='h:29400' "
        "launch.max_restarts=3 launch.monitor_interval_s=5.0 launch.grace_s=60.0",
        "--nnodes",
    ),
    "CUDA_VISIBLE_DEVICES=0,1 OMP_NUM_THREADS=4 ACCELERATE_MIXED_PRECISION=bf16 accelerate launch train.py": (
        "hardware.threads=4",
        "ACCELERATE_MIXED_PRECISION",
    ),
    "accelerate launch --num_processes 2 --mixed_precision=bf16 train.py -- --x": (
        "hardware.processes=2 strategy=ddp precision=bf16",
        "",
    ),
    "accelerate launch --cpu train.py": ("hardware=cpu", ""),
    "accelerate-launch --multi-gpu --num-processes 4 --num-machines 2 --machine-rank 0 --main-process-ip 10.0.0.1 "
    "--main-process-port 29500 --same-network -m train": (
        "hardware=cuda strategy=ddp hardware.processes=2 launch=nodes launch.nodes=2 "
        "launch.rendezvous='10.0.0.1:29500'",
        "",
    ),
    "accelerate launch --use_fsdp --num_processes 2 --fsdp_version 2 --fsdp_reshard_after_forward true "
    "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap Block train.py": (
        "strategy=fsdp hardware.processes=2 strategy.wrap=auto blocks.classes=[Block]",
        "",
    ),
    "accelerate launch --use_deepspeed --zero_stage 3 --offload_param_device cpu --zero3_init_flag true "
    "--gradient_accumulation_steps 2 --gradient_clipping 1.0 --num_processes 2 train.py": (
        "strategy=deepspeed_zero3 strategy.offload_param=cpu strategy.zero_init=true batch.accumulate=2 "
        "clip.norm=1.0 hardware.processes=2",
        "",
    ),
    "accelerate launch --dynamo_backend inductor --dynamo_use_dynamic --enable_cpu_affinity train.py": (
        "compile.what=model compile.backend=inductor compile.dynamic=true",
        "--enable_cpu_affinity",
    ),
    "deepspeed --num_gpus 2 --include localhost:0,1 train.py --deepspeed_config ds.json": (
        "hardware.processes=2 strategy=ddp",
        "--include",
    ),
}


@pytest.mark.parametrize("command", CASES)
def test_a_command_line_becomes_overrides_that_a_recipe_accepts(spec: Spec, command: str) -> None:
    overrides, missing = CASES[command]
    found = read_command(command.split())
    settings = [str(setting) for setting in found.settings]
    assert sorted(settings) == sorted(overrides.split())
    assert {line.argument.key for line in found.lines if line.outcome.is_missing} == set(missing.split())
    spec(settings)


def test_an_option_replaces_what_the_configuration_says(tmp_path: Path, spec: Spec) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text("distributed_type: MULTI_GPU\nmixed_precision: bf16\nnum_processes: 4\nmain_process_port: 29501\n")
    found = read_command(["accelerate", "launch", "--config_file", str(path), "--num_processes", "2", "train.py"])
    settings = [str(setting) for setting in found.settings]
    assert settings == ["hardware=cuda", "strategy=ddp", "precision=bf16", "hardware.processes=2"]
    remarks = {line.argument.key: line.outcome.remark for line in found.lines}
    assert remarks["accelerate.yaml: num_processes"] == "the command line says otherwise"
    spec(settings)


def test_a_flag_replaces_the_kind_of_run(tmp_path: Path) -> None:
    path = tmp_path / "accelerate.yaml"
    path.write_text("distributed_type: MULTI_GPU\nfsdp_config: {fsdp_offload_params: true}\n")
    found = read_command(["accelerate", "launch", "--config_file", str(path), "--use_fsdp", "train.py"])
    assert [str(setting) for setting in found.settings] == ["strategy=fsdp", "strategy.offload=true"]


def test_every_option_of_torchrun_is_known_as_it_is_parsed_there() -> None:
    parser = get_args_parser()
    actions = {
        action.option_strings[0].lstrip("-").replace("-", "_"): action
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    }
    names = {{"m": "module", "r": "redirects", "t": "tee"}.get(name, name): one for name, one in actions.items()}
    assert sorted(set(names) - set(TORCHRUN)) == []
    assert {name for name, one in names.items() if one.nargs == 0} == TORCHRUN_FLAGS & set(names)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("torchrun --nproc_per_nod 2 --nnode 1 t.py", "--nproc_per_nod: is not an option of torchrun. Did you mean"),
        ("torchrun --nproc_per_nod 2 --nnode 1 t.py", "--nnode: is not an option of torchrun. Did you mean nnodes?"),
        ("torchrun --nproc_per_node 2", "names no script to start"),
        ("torchrun --nproc_per_node", "--nproc_per_node: needs a value after it."),
        ("torchrun --nproc_per_node many t.py", "many must be a whole number, auto, cpu, gpu, xpu."),
        ("torchrun --nproc_per_node 0 t.py", "0 must be at least 1."),
        ("torchrun --nnodes 3:2 t.py", "3:2 must be at least 1, and a range from fewer to more."),
        ("python train.py", "python train.py is not a launcher that is known. Known are torchrun, accelerate launch"),
        ("accelerate launch --num_processes two t.py", "--num_processes: two must be a whole number."),
        ("A=1", "it is not a launcher that is known."),
    ],
)
def test_a_wrong_command_line_is_refused(command: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        read_command(command.split())
    assert message in str(raised.value)
