"""What `accelerate config` can write becomes overrides that a recipe accepts; what has no place here is named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.composition.compose import compose
from runner.config.run_spec import RunSpec
from runner.errors import SpecError
from runner.migrate.accelerate.config import TABLE
from runner.migrate.outcome import shown
from runner.migrate.read import read_file
from runner.migrate.report import report
from tests.migrate.conftest import DIGITS

Spec = Callable[[Sequence[str]], RunSpec]
# What the questionnaire writes whatever is answered, apart from what the cases say.
ALWAYS = """
compute_environment: LOCAL_MACHINE
debug: false
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
"""
CASES = {
    "one_device": (
        "distributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: false\nnum_processes: 1\n"
        "num_machines: 1\ngpu_ids: all",
        "strategy=single precision=fp32 hardware.processes=1",
        "",
    ),
    "no_as_yaml_reads_it": (
        "distributed_type: NO\nmixed_precision: no\nfsdp_config:\n  fsdp_sync_module_states: false\n"
        "deepspeed_config:\n  deepspeed_config_file: not/there.json",
        "strategy=single precision=fp32",
        "",
    ),
    "cpus": (
        "distributed_type: MULTI_CPU\nmixed_precision: bf16\nuse_cpu: true\nnum_processes: 4\nnum_machines: 1\n"
        "mpirun_config:\n  mpirun_hostfile: hosts",
        "hardware=cpu strategy=ddp precision=bf16 hardware.processes=4",
        "",
    ),
    "two_machines": (
        "distributed_type: MULTI_GPU\nmixed_precision: fp16\nnum_processes: 8\nnum_machines: 2\nmachine_rank: 1\n"
        "main_process_ip: 10.0.0.1\nmain_process_port: 9901\nuse_cpu: false\ngpu_ids: 0,1,2,3",
        "hardware=cuda strategy=ddp precision=fp16 launch=nodes launch.nodes=2 launch.rendezvous='10.0.0.1:9901' "
        "hardware.processes=4",
        "gpu_ids",
    ),
    "another_accelerator": (
        "distributed_type: MULTI_NPU\nmixed_precision: bf16\nnum_processes: 2",
        "strategy=ddp precision=bf16 hardware.processes=2",
        "distributed_type",
    ),
    "fsdp_1": (
        "distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 1\n"
        "  fsdp_reshard_after_forward: SHARD_GRAD_OP\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
        "  fsdp_transformer_layer_cls_to_wrap: GPT2Block,GPT2MLP\n  fsdp_backward_prefetch: NO_PREFETCH\n"
        "  fsdp_state_dict_type: FULL_STATE_DICT\n  fsdp_forward_prefetch: true\n  fsdp_use_orig_params: true\n"
        "  fsdp_offload_params: true\n  fsdp_cpu_ram_efficient_loading: true\n  fsdp_sync_module_states: true\n"
        "  fsdp_activation_checkpointing: true",
        "strategy=fsdp_grad_op precision=bf16 hardware.processes=2 strategy.wrap=auto "
        "blocks.classes=[GPT2Block,GPT2MLP] strategy.backward_prefetch=0 checkpoint=full strategy.forward_prefetch=1 "
        "strategy.offload=true strategy.build=rank_0 activation_checkpointing.what=blocks",
        "",
    ),
    "fsdp_2": (
        "distributed_type: FSDP\nmixed_precision: 'no'\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 2\n"
        "  fsdp_reshard_after_forward: false\n  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_min_num_params: 2000\n"
        "  fsdp_state_dict_type: SHARDED_STATE_DICT\n  fsdp_cpu_ram_efficient_loading: false\n"
        "  fsdp_activation_checkpointing: false\n  fsdp_offload_params: false",
        "strategy=fsdp_grad_op precision=fp32 hardware.processes=2 strategy.wrap=size strategy.wrap_min_params=2000 "
        "checkpoint=sharded strategy.build=every_rank activation_checkpointing.what=none strategy.offload=false",
        "",
    ),
    "fsdp_of_2022": (
        "distributed_type: FSDP\nfp16: true\nnum_processes: 2\nfsdp_config:\n  sharding_strategy: 4\n"
        "  min_num_params: 0\n  offload_params: false\n  fsdp_backward_prefetch_policy: BACKWARD_POST\n"
        "  fsdp_state_dict_type: 3",
        "strategy=hsdp precision=fp16 hardware.processes=2 strategy.offload=false strategy.backward_prefetch=0 "
        "checkpoint=sharded",
        "fsdp_config.fsdp_backward_prefetch_policy",
    ),
    "fsdp_that_does_not_shard": (
        "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_sharding_strategy: NO_SHARD\n"
        "  fsdp_offload_params: true\n  fsdp_auto_wrap_policy: NO_WRAP\n  fsdp_state_dict_type: LOCAL_STATE_DICT",
        "strategy=ddp hardware.processes=2",
        "fsdp_config.fsdp_state_dict_type",
    ),
    "parallelism": (
        "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_version: 2\n"
        "  fsdp_reshard_after_forward: true\nparallelism_config:\n  parallelism_config_dp_replicate_size: 2\n"
        "  parallelism_config_dp_shard_size: 2\n"
        "  parallelism_config_tp_size: 2\n  parallelism_config_cp_size: 1\n"
        "  parallelism_config_cp_comm_strategy: allgather",
        "strategy=parallel strategy.replicate=2 strategy.shard=auto strategy.tensor=2 hardware.processes=8",
        "",
    ),
    "hybrid": (
        "distributed_type: FSDP\nnum_processes: 4\nfsdp_config:\n  fsdp_version: 2\n"
        "  fsdp_reshard_after_forward: true\nparallelism_config:\n  parallelism_config_dp_replicate_size: 2\n"
        "  parallelism_config_dp_shard_size: 2\n  parallelism_config_tp_size: 1\n  parallelism_config_sp_size: 2",
        "strategy=hsdp strategy.shard_size=2 hardware.processes=4",
        "parallelism_config.parallelism_config_sp_size",
    ),
    "replicas of a divided model": (
        "distributed_type: FSDP\nnum_processes: 4\nfsdp_config:\n  fsdp_version: 2\nparallelism_config:\n"
        "  parallelism_config_dp_replicate_size: 2\n  parallelism_config_tp_size: 2",
        "strategy=parallel strategy.replicate=2 strategy.shard=1 strategy.tensor=2 hardware.processes=4",
        "",
    ),
    "context": (
        "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_version: 2\n"
        "  fsdp_reshard_after_forward: false\nparallelism_config:\n  parallelism_config_dp_replicate_size: 2\n"
        "  parallelism_config_dp_shard_size: 1\n  parallelism_config_cp_size: 4\n"
        "  parallelism_config_cp_comm_strategy: alltoall\n  parallelism_config_cp_backend: torch",
        "strategy=parallel strategy.replicate=2 strategy.shard=auto strategy.context=4 "
        "strategy.sharding=shard_grad_op hardware.processes=8",
        "parallelism_config.parallelism_config_cp_comm_strategy",
    ),
    "zero_3": (
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 3\n"
        "  offload_optimizer_device: cpu\n  offload_param_device: cpu\n  gradient_accumulation_steps: 4\n"
        "  gradient_clipping: 0.5\n  zero3_init_flag: true\n  zero3_save_16bit_model: true\n"
        "  deepspeed_moe_layer_cls_names: MixtralSparseMoeBlock\n  offload_optimizer_nvme_path: none",
        "strategy=deepspeed_zero3 precision=bf16 hardware.processes=2 strategy.offload_optimizer=cpu "
        "strategy.offload_param=cpu batch.accumulate=4 clip.norm=0.5 strategy.zero_init=true "
        "strategy.moe_leaf_modules=[MixtralSparseMoeBlock]",
        "",
    ),
    "zero_2": (
        "distributed_type: DEEPSPEED\nmixed_precision: fp16\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n"
        "  offload_optimizer_device: none\n  offload_param_device: cpu\n  gradient_accumulation_steps: 1\n"
        "  zero3_init_flag: false",
        "strategy=deepspeed_zero2 precision=fp16 hardware.processes=2 strategy.offload_optimizer=none",
        "",
    ),
    "zero_0": (
        "distributed_type: DEEPSPEED\nmixed_precision: 'no'\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 0\n"
        "  gradient_clipping: 1.0\n  zero3_init_flag: false",
        "strategy=ddp precision=fp32 hardware.processes=2 clip.norm=1.0",
        "",
    ),
    "megatron_without_its_axes": (
        "distributed_type: MEGATRON_LM\nmixed_precision: bf16\nnum_processes: 4\nmegatron_lm_config:\n"
        "  megatron_lm_tp_degree: 1\n  megatron_lm_sequence_parallelism: true\n  megatron_lm_pp_degree: 1\n"
        "  megatron_lm_num_micro_batches: 2\n  megatron_lm_recompute_activations: true\n"
        "  megatron_lm_use_distributed_optimizer: true\n  megatron_lm_optimizer_cpu_offload: true\n"
        "  megatron_lm_gradient_clipping: 0",
        "strategy=fsdp_grad_op precision=bf16 hardware.processes=4 batch.accumulate=2 "
        "activation_checkpointing.what=selective clip.norm=null strategy.offload=true",
        "",
    ),
    "fp8_of_torchao": (
        "distributed_type: 'NO'\nmixed_precision: fp8\nfp8_config:\n  backend: AO\n"
        "  enable_fsdp_float8_all_gather: true\n  pad_inner_dim: false",
        "strategy=single precision=fp8 precision.fsdp_float8_all_gather=true precision.pad_inner_dim=false",
        "",
    ),
    "fp8_of_ms_amp": (
        "distributed_type: 'NO'\nmixed_precision: fp8\nfp8_config:\n  backend: MS-AMP\n  optimization_level: O2",
        "strategy=single precision=fp8",
        "mixed_precision fp8_config.backend fp8_config.optimization_level",
    ),
    "dynamo": (
        "distributed_type: 'NO'\ndynamo_config:\n  dynamo_backend: INDUCTOR\n  dynamo_mode: max-autotune\n"
        "  dynamo_use_dynamic: false\n  dynamo_use_fullgraph: true\n  dynamo_use_regional_compilation: true",
        "strategy=single compile.what=blocks compile.backend=inductor compile.mode=max-autotune compile.dynamic=false",
        "dynamo_config.dynamo_use_fullgraph",
    ),
    "dynamo_of_2022": (
        "distributed_type: 'NO'\ndynamo_backend: NVPRIMS_NVFUSER",
        "strategy=single compile.what=model compile.backend=inductor",
        "dynamo_backend",
    ),
    "compiled_under_zero_3": (
        "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 3}\n"
        "dynamo_config: {dynamo_backend: AOT_EAGER, dynamo_mode: default}",
        "strategy=deepspeed_zero3 hardware.processes=2 compile.what=blocks compile.backend=aot_eager compile.mode=null",
        "",
    ),
    "tpu": (
        "distributed_type: XLA\nmixed_precision: 'no'\nnum_processes: 8\ndowncast_bf16: 'yes'\ntpu_name: pod\n"
        "tpu_zone: us-central1-a\ntpu_use_cluster: true\ntpu_use_sudo: true\ntpu_vm: [a, b]\ncommands: [echo hello]\n"
        "command_file: setup.sh",
        "strategy=ddp precision=fp32 hardware.processes=8",
        "distributed_type downcast_bf16 tpu_name tpu_zone tpu_use_cluster tpu_use_sudo tpu_vm commands command_file",
    ),
    "sagemaker": (
        "compute_environment: AMAZON_SAGEMAKER\ndistributed_type: DATA_PARALLEL\nec2_instance_type: ml.p4d.24xlarge\n"
        "iam_role_name: role\nprofile: default\nregion: us-east-1\nmixed_precision: bf16\nnum_machines: 1\n"
        "base_job_name: job\npytorch_version: 1.10.2\ntransformers_version: 4.17.0\npy_version: py38\n"
        "sagemaker_inputs_file: in.tsv\nsagemaker_metrics_file: out.tsv\nadditional_args: {keep_alive: 1}\n"
        "image_uri: image\nuse_cpu: false",
        "hardware=cuda strategy=ddp precision=bf16",
        "compute_environment ec2_instance_type iam_role_name profile region base_job_name sagemaker_inputs_file "
        "additional_args image_uri",
    ),
}


# As Accelerate's documentation shows, and with everything that its plugin reads from the section.
PARALLEL = {
    "as_documented": (
        "distributed_type: MEGATRON_LM\nmixed_precision: bf16\nnum_processes: 4\nmegatron_lm_config:\n"
        "  megatron_lm_gradient_clipping: 1.0\n  megatron_lm_num_micro_batches: 2\n  megatron_lm_pp_degree: 2\n"
        "  megatron_lm_recompute_activations: true\n  megatron_lm_sequence_parallelism: true\n"
        "  megatron_lm_tp_degree: 2\n  megatron_lm_use_distributed_optimizer: true",
        "strategy=parallel strategy.replicate=1 strategy.shard=auto strategy.sharding=shard_grad_op strategy.tensor=2 "
        "strategy.sequence_parallel=true strategy.pipeline=2 strategy.schedule='1f1b' batch.accumulate=2 "
        "precision=bf16 hardware.processes=4 activation_checkpointing.what=selective clip.norm=1.0",
        "",
    ),
    "everything": (
        "distributed_type: MEGATRON_LM\nnum_processes: 8\nmegatron_lm_config:\n  megatron_lm_tp_degree: 2\n"
        "  megatron_lm_pp_degree: 1\n  megatron_lm_context_parallel_size: 2\n"
        "  megatron_lm_expert_model_parallel_size: 2\n  megatron_lm_expert_tensor_parallel_size: 2\n"
        "  megatron_lm_num_micro_batches: 4\n  megatron_lm_use_distributed_optimizer: false\n"
        "  megatron_lm_recompute_granularity: full\n  megatron_lm_recompute_method: uniform\n"
        "  megatron_lm_recompute_num_layers: 1\n  megatron_lm_recompute_activations: false\n"
        "  megatron_lm_use_custom_fsdp: true\n  megatron_lm_optimizer_cpu_offload: true\n"
        "  megatron_lm_overlap_cpu_optimizer_d2h_h2d: true\n  megatron_lm_use_precision_aware_optimizer: true\n"
        "  megatron_lm_no_load_optim: true\n  megatron_lm_no_save_optim: true\n  megatron_lm_eod_mask_loss: true\n"
        "  megatron_lm_decoder_last_pipeline_num_layers: 3\n  megatron_lm_calculate_per_token_loss: true\n"
        "  megatron_lm_attention_backend: true\n  megatron_lm_attention_dropout: 0.1\n"
        "  megatron_lm_hidden_dropout: 0.1\n  megatron_lm_attention_softmax_in_fp32: true\n"
        "  megatron_lm_use_rotary_position_embeddings: true",
        "strategy=parallel strategy.replicate=auto strategy.shard=1 strategy.tensor=2 "
        "strategy.expert=2 hardware.processes=8 batch.accumulate=4 activation_checkpointing.what=blocks",
        "context_parallel_size expert_tensor_parallel_size use_custom_fsdp optimizer_cpu_offload "
        "overlap_cpu_optimizer_d2h_h2d use_precision_aware_optimizer no_load_optim no_save_optim eod_mask_loss "
        "decoder_last_pipeline_num_layers "
        "attention_backend attention_dropout hidden_dropout attention_softmax_in_fp32 use_rotary_position_embeddings",
    ),
    "parts_of_sequences": (
        "distributed_type: MEGATRON_LM\nnum_processes: 4\nmegatron_lm_config:\n  megatron_lm_context_parallel_size: 2",
        "strategy=parallel strategy.replicate=auto strategy.shard=1 strategy.context=2 hardware.processes=4",
        "",
    ),
    "recomputed_otherwise": (
        "distributed_type: MEGATRON_LM\nnum_processes: 2\nmegatron_lm_config:\n  megatron_lm_tp_degree: 2\n"
        "  megatron_lm_recompute_method: block\n  megatron_lm_recompute_num_layers: 4",
        "strategy=parallel strategy.replicate=auto strategy.shard=1 strategy.tensor=2 hardware.processes=2",
        "recompute_method recompute_num_layers",
    ),
}


def written(tmp_path: Path, text: str) -> Path:
    """A configuration, in which the first of two equal keys stands for both."""
    keys = [line.partition(":")[0] for line in text.splitlines()]
    others = [line for line in ALWAYS.strip().splitlines() if line.partition(":")[0] not in keys]
    path = tmp_path / "accelerate.yaml"
    path.write_text("\n".join([text, *others]))
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_becomes_overrides_that_a_recipe_accepts(tmp_path: Path, spec: Spec, case: str) -> None:
    text, overrides, missing = CASES[case]
    found = read_file(written(tmp_path, text))
    settings = [str(setting) for setting in found.settings]
    assert sorted(settings) == sorted(overrides.split())
    assert {line.argument.key for line in found.lines if line.outcome.is_missing} == set(missing.split())
    spec(settings)


@pytest.mark.parametrize("case", PARALLEL)
def test_the_axes_of_megatron_lm_become_those_of_one_strategy(tmp_path: Path, spec: Spec, case: str) -> None:
    text, overrides, missing = PARALLEL[case]
    found = read_file(written(tmp_path, text))
    assert sorted(str(setting) for setting in found.settings) == sorted(overrides.split())
    keys = {line.argument.key for line in found.lines if line.outcome.is_missing}
    assert keys == {f"megatron_lm_config.megatron_lm_{name}" for name in missing.split()}
    spec([str(setting) for setting in found.settings])


@pytest.mark.parametrize("text", [text for text, *_ in (CASES | PARALLEL).values()], ids=[*CASES, *PARALLEL])
def test_every_key_is_told_with_what_became_of_it(tmp_path: Path, text: str) -> None:
    found = read_file(written(tmp_path, text))
    said = " ".join(report(found).split())
    for key, value in (line.argument for line in found.lines):
        assert f" {key}: {shown(value)}".rstrip() in said
    assert all(line.outcome.settings or line.outcome.remark for line in found.lines)


def test_transformer_engine_gets_its_keys(tmp_path: Path) -> None:
    """It is not installed here, and `runner check` would say so: the keys and their types are checked."""
    text = (
        "distributed_type: MULTI_GPU\nmixed_precision: fp8\nnum_processes: 2\nfp8_config:\n  backend: TE\n"
        "  amax_history_length: 512\n  amax_compute_algorithm: most_recent\n  fp8_format: E4M3\n  interval: 2\n"
        "  margin: 1\n  override_linear_precision: (false, true, false)\n  use_autocast_during_eval: true"
    )
    settings = [str(setting) for setting in read_file(written(tmp_path, text)).settings]
    compose(DIGITS, settings).outline()
    assert set(settings) >= {
        "precision=fp8_te",
        "precision.amax_history_len=512",
        "precision.amax_compute_algo=most_recent",
        "precision.override_linear_precision=[false,true,false]",
    }


def test_the_hosts_of_mpi_and_of_deepspeed_are_those_of_the_launch(tmp_path: Path, spec: Spec) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=4\nb slots=4\n")
    text = (
        f"distributed_type: MULTI_CPU\nnum_machines: 2\nnum_processes: 8\nmpirun_config: {{mpirun_hostfile: {hosts}}}"
    )
    settings = [str(setting) for setting in read_file(written(tmp_path, text)).settings]
    assert spec(settings).launch.nodes == 2
    assert f"launch.hostfile={hosts}" in settings


def test_a_deepspeed_file_is_read_from_beside_its_configuration(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": {"stage": 3, "sub_group_size": 1e8}, "bf16": {"enabled": "auto"},'
        ' "fp16": {"enabled": "auto", "loss_scale_window": 500}, "train_micro_batch_size_per_gpu": "auto"}'
    )
    text = (
        "distributed_type: DEEPSPEED\nnum_processes: 2\nmixed_precision: fp16\n"
        "deepspeed_config: {deepspeed_config_file: ds.json, zero3_init_flag: true}"
    )
    settings = [str(setting) for setting in read_file(written(tmp_path, text)).settings]
    assert set(settings) == {
        "strategy=deepspeed_zero3",
        "precision=fp16",
        "hardware.processes=2",
        "strategy.zero_init=true",
        "strategy.sub_group_size=100000000",
        "precision.growth_interval=500",
    }
    spec(settings)


def test_all_unknown_keys_and_wrong_values_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimisation": {"stage": 2}, "gradient_clipping": "much"}')
    text = (
        "distributed_type: DEEPSPEED\nnum_proceses: 2\nmixed_precision: bf17\nnum_machines: 0\n"
        "deepspeed_config: {deepspeed_config_file: ds.json, zero_stages: 1}"
    )
    with pytest.raises(SpecError) as raised:
        read_file(written(tmp_path, text))
    said = {fault.key: fault.message for fault in raised.value.faults}
    assert said == {
        "num_proceses": "is not known to this format. Did you mean num_processes? Correct or remove it.",
        "mixed_precision": "bf17 is not one of NO, FP16, BF16, FP8. Did you mean BF16?",
        "num_machines": "0 must be at least 1.",
        "deepspeed_config.zero_stages": "is not known to this format. Did you mean zero_stage? Correct or remove it.",
        "ds.json: zero_optimisation.stage": "is not known to this format. Did you mean zero_optimization.stage? "
        "Correct or remove it.",
        "ds.json: gradient_clipping": "much must be a number.",
    }


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("distributed_type: MULTI_GPV", "distributed_type", "MULTI_GPV is not one of NO, FSDP"),
        ("distributed_type: MULTI_GPU\nnum_processes: 3\nnum_machines: 2", "num_processes", "Use a multiple of 2."),
        ("distributed_type: FSDP\nfsdp_config: yes", "fsdp_config", "must be a section of keys."),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_offload_params: maybe}",
            "fsdp_config.fsdp_offload_params",
            "maybe must be true or false.",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}",
            "deepspeed_config.deepspeed_config_file",
            "nowhere.json cannot be read: No such file or directory.",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}",
            "deepspeed_config.zero_stage",
            "4 must be 0, 1, 2 or 3.",
        ),
        (
            "distributed_type: 'NO'\nmixed_precision: fp8\n"
            "fp8_config: {backend: TE, override_linear_precision: [true, no]}",
            "fp8_config.override_linear_precision",
            "must be three truth values",
        ),
        (
            "distributed_type: 'NO'\ndynamo_config: {dynamo_backend: indctor}",
            "dynamo_config.dynamo_backend",
            "indctor is not one of no, eager",
        ),
        (
            "distributed_type: 'NO'\ndynamo_config: {dynamo_backend: inductor, dynamo_mode: fast}",
            "dynamo_config.dynamo_mode",
            "fast is not one of default",
        ),
        ("compute_environment: MOON", "compute_environment", "MOON is not one of LOCAL_MACHINE, AMAZON_SAGEMAKER."),
        ("distributed_type: [FSDP]", "distributed_type", '["FSDP"] must be text.'),
        ("num_processes: 0", "num_processes", "0 must be at least 1."),
        ("num_processes: 2\nmain_process_port: abc", "main_process_port", "abc must be a whole number."),
        ("num_processes: 2\nmain_process_port: 70000", "main_process_port", "70000 must be a port"),
        ("num_processes: 2\ndebug: maybe", "debug", "maybe must be true or false."),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 3}", "fsdp_config.fsdp_version", "3 must be 1 or 2."),
        (
            "distributed_type: MEGATRON_LM\nmegatron_lm_config: {tp_degree: 0}",
            "megatron_lm_config.tp_degree",
            "0 must be at least 1.",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, offload_param_device: tape}",
            "deepspeed_config.offload_param_device",
            "tape is not one of none, cpu, nvme.",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule(tmp_path: Path, text: str, key: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        read_file(written(tmp_path, text))
    (fault,) = (fault for fault in raised.value.faults if fault.key == key)
    assert message in fault.message
    name = f"{key.rpartition('.')[2]}:"
    line = next(number for number, one in enumerate(text.split("\n"), 1) if name in one)
    assert fault.origin == f"{tmp_path / 'accelerate.yaml'}:{line}"


def test_two_keys_that_mean_different_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}')
    text = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_config_file: ds.json\n  gradient_clipping: 0.5"
    with pytest.raises(
        SpecError, match=r"means clip.norm=1.0, but deepspeed_config.gradient_clipping means clip.norm="
    ):
        read_file(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 0.1", "none of its keys is one of Accelerate's or DeepSpeed's."),
        ("distributed_type: !!python/name:os.system", "line 1 has a value tagged"),
        ("- 1", "the file holds a list"),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as raised:
        read_file(path)
    assert message in str(raised.value)


def test_a_key_given_twice_with_one_value_is_read_once(tmp_path: Path) -> None:
    """As in a file of Accelerate's own tests, which its reader takes."""
    path = tmp_path / "twice.yaml"
    path.write_text("debug: false\ndistributed_type: 'NO'\ndebug: false\n")
    assert [str(setting) for setting in read_file(path).settings] == ["strategy=single"]
    path.write_text("debug: false\ndistributed_type: 'NO'\ndebug: true\n")
    with pytest.raises(SpecError, match="line 3 gives the key debug again"):
        read_file(path)


# What `accelerate launch` of Accelerate 1.15 takes; its configuration has the same names.
OPTIONS = """
    aws_access_key_id aws_secret_access_key cpu debug deepspeed_config_file deepspeed_exclusion_filter
    deepspeed_hostfile deepspeed_inclusion_filter deepspeed_moe_layer_cls_names deepspeed_multinode_launcher
    downcast_bf16 dynamo_backend dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph dynamo_use_regional_compilation
    enable_cpu_affinity env fp8_amax_compute_algo fp8_amax_history_len fp8_backend fp8_enable_fsdp_float8_all_gather
    fp8_format fp8_interval fp8_margin fp8_opt_level fp8_override_linear_precision fp8_pad_inner_dim
    fp8_use_autocast_during_eval fsdp_activation_checkpointing fsdp_auto_wrap_policy fsdp_backward_prefetch
    fsdp_cpu_ram_efficient_loading fsdp_forward_prefetch fsdp_min_num_params fsdp_offload_params
    fsdp_reshard_after_forward fsdp_sharding_strategy fsdp_state_dict_type fsdp_sync_module_states
    fsdp_transformer_layer_cls_to_wrap fsdp_use_orig_params fsdp_version gpu_ids gradient_accumulation_steps
    gradient_clipping log_dir machine_rank main_process_ip main_process_port main_training_function max_restarts
    megatron_lm_attention_backend megatron_lm_attention_dropout megatron_lm_attention_softmax_in_fp32
    megatron_lm_calculate_per_token_loss megatron_lm_context_parallel_size
    megatron_lm_decoder_last_pipeline_num_layers megatron_lm_eod_mask_loss megatron_lm_expert_model_parallel_size
    megatron_lm_expert_tensor_parallel_size megatron_lm_gradient_clipping megatron_lm_hidden_dropout
    megatron_lm_no_load_optim megatron_lm_no_save_optim megatron_lm_num_micro_batches megatron_lm_optimizer_cpu_offload
    megatron_lm_overlap_cpu_optimizer_d2h_h2d megatron_lm_pp_degree megatron_lm_recompute_activations
    megatron_lm_recompute_granularity megatron_lm_recompute_method megatron_lm_recompute_num_layers
    megatron_lm_sequence_parallelism megatron_lm_tp_degree megatron_lm_use_custom_fsdp
    megatron_lm_use_distributed_optimizer megatron_lm_use_precision_aware_optimizer
    megatron_lm_use_rotary_position_embeddings mixed_precision module monitor_interval mpirun_hostfile multi_gpu
    no_python no_tpu_cluster num_cpu_threads_per_process num_machines num_processes offload_optimizer_device
    offload_optimizer_nvme_path offload_param_device offload_param_nvme_path parallelism_config_cp_backend
    parallelism_config_cp_comm_strategy parallelism_config_cp_size parallelism_config_dp_replicate_size
    parallelism_config_dp_shard_size parallelism_config_sp_attn_implementation parallelism_config_sp_backend
    parallelism_config_sp_seq_length parallelism_config_sp_seq_length_is_variable parallelism_config_sp_size
    parallelism_config_tp_size quiet rdzv_backend rdzv_conf role same_network tee tpu tpu_cluster tpu_use_sudo
    use_deepspeed use_fsdp use_megatron_lm use_parallelism_config vm zero3_init_flag zero3_save_16bit_model zero_stage
    compute_environment distributed_type use_cpu tpu_name tpu_zone tpu_use_cluster command_file commands tpu_vm tpu_env
    ec2_instance_type iam_role_name image_uri profile region base_job_name pytorch_version transformers_version
    py_version sagemaker_inputs_file sagemaker_metrics_file additional_args
"""


def test_every_option_of_accelerate_has_a_rule() -> None:
    assert sorted(set(OPTIONS.split()) - set(TABLE)) == []


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "MULTI_GPU"])
def test_a_rule_refuses_a_value_and_never_breaks(kind: str) -> None:
    """Whatever stands in a stranger's file: a value that is not taken is told with the rule."""
    values: list[Any] = [-1, 10**30, float("inf"), True, "${oc.env:HOME}", [1, {}], {"a": {"b": 1}}, "é' \\"]
    base = {"distributed_type": kind, "mixed_precision": "fp8", "num_machines": 2, "dynamo_backend": "inductor"}
    said = [message for name in TABLE for value in values if (message := refusal(name, value, base))]
    assert len(said) > len(TABLE)
    assert all(message.endswith((".", "?")) for message in said)


def refusal(name: str, value: Any, base: dict[str, Any]) -> str:
    """What a rule says of a value that it does not take."""
    try:
        TABLE[name](value, {**base, name: value})
    except ValueError as wrong:
        return str(wrong)
    return ""
