"""The page for those who come from Accelerate names every key that its documentation does, and only keys that exist."""

import re
from functools import cache
from typing import Any

import pytest
import torch
import yaml

from runner.world.collectives import Collectives, Trigger
from runner.world.solo import SoloWorld
from tests.docs.test_commands import CHECKOUT

ALONE = SoloWorld(torch.device("cpu"))
CONF = CHECKOUT / "conf"
PAGE = (CHECKOUT / "docs" / "from_accelerate.md").read_text()
ROW = re.compile(r"^\| (?!Accelerate|DeepSpeed JSON)(.+?) \| (.+) \|$", re.MULTILINE)
QUOTED = re.compile(r"`([^`]+)`")
KEY = re.compile(r"^[a-z_]+(\.\w+)+$")
OWNERS = {"world": Collectives(ALONE, ALONE), "trigger": Trigger(ALONE)}
CALLED = re.compile(r"^(?:@|with |trigger = )?(world|trigger)\.(\w+)")

# As the documentation of Accelerate has them: usage guides fsdp and deepspeed, `accelerate launch`, the plugins.
FSDP = """
    fsdp_sharding_strategy FULL_SHARD SHARD_GRAD_OP NO_SHARD HYBRID_SHARD HYBRID_SHARD_ZERO2 fsdp_offload_params
    fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP SIZE_BASED_WRAP NO_WRAP fsdp_transformer_layer_cls_to_wrap
    fsdp_min_num_params fsdp_backward_prefetch_policy fsdp_backward_prefetch BACKWARD_PRE BACKWARD_POST NO_PREFETCH
    fsdp_forward_prefetch fsdp_state_dict_type FULL_STATE_DICT LOCAL_STATE_DICT SHARDED_STATE_DICT fsdp_use_orig_params
    fsdp_cpu_ram_efficient_loading fsdp_sync_module_states fsdp_activation_checkpointing sync_each_batch
    state_dict_config optim_state_dict_config enable_fsdp_ram_efficient_loading disable_fsdp_ram_efficient_loading
    merge_fsdp_weights fsdp_plugin fsdp_version fsdp_reshard_after_forward fsdp_activation_checkpointing_offload
    sharding_strategy reshard_after_forward backward_prefetch mixed_precision_policy auto_wrap_policy cpu_offload
    ignored_modules state_dict_type limit_all_gathers use_orig_params param_init_fn sync_module_states forward_prefetch
    activation_checkpointing activation_checkpointing_offload cpu_ram_efficient_loading transformer_cls_names_to_wrap
    min_num_params
"""
DEEPSPEED = """
    zero_stage gradient_accumulation_steps gradient_clipping offload_optimizer_device offload_optimizer_nvme_path
    offload_param_device offload_param_nvme_path zero3_init_flag zero3_save_16bit_model mixed_precision
    deepspeed_moe_layer_cls_names deepspeed_hostfile deepspeed_exclusion_filter deepspeed_inclusion_filter
    deepspeed_multinode_launcher deepspeed_config_file deepspeed_plugin deepspeed_plugins hf_ds_config "auto"
    train_batch_size train_micro_batch_size_per_gpu steps_per_print wall_clock_breakdown bf16 enabled fp16 loss_scale
    loss_scale_window initial_scale_power hysteresis min_loss_scale auto_cast optimizer type params lr weight_decay
    scheduler total_num_steps warmup_num_steps warmup_min_lr warmup_max_lr zero_optimization stage offload_optimizer
    offload_param device nvme_path pin_memory allgather_partitions allgather_bucket_size overlap_comm reduce_scatter
    reduce_bucket_size contiguous_gradients sub_group_size stage3_prefetch_bucket_size
    stage3_param_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance
    stage3_gather_16bit_weights_on_model_save zero_hpz_partition_size zero_quantized_weights zero_quantized_gradients
    DummyOptim DummyScheduler zero_to_fp32.py is_train_batch_min transformer_moe_cls_names enable_msamp msamp_opt_level
"""
MEGATRON = """
    tp_degree pp_degree use_custom_fsdp overlap_cpu_optimizer_d2h_h2d no_load_optim eod_mask_loss no_save_optim
    optimizer_cpu_offload use_precision_aware_optimizer decoder_last_pipeline_num_layers recompute_granularity
    recompute_method recompute_num_layers attention_backend expert_model_parallel_size context_parallel_size
    attention_dropout hidden_dropout attention_softmax_in_fp32 expert_tensor_parallel_size calculate_per_token_loss
    use_rotary_position_embeddings num_micro_batches gradient_clipping sequence_parallelism recompute_activations
    use_distributed_optimizer pipeline_model_parallel_split_rank num_layers_per_virtual_pipeline_stage
    is_train_batch_min train_iters train_samples weight_decay_incr_style start_weight_decay end_weight_decay
    lr_decay_style lr_decay_iters lr_decay_samples lr_warmup_iters lr_warmup_samples lr_warmup_fraction min_lr
    consumed_samples no_wd_decay_cond scale_lr_cond lr_mult megatron_dataset_flag seq_length encoder_seq_length
    decoder_seq_length tensorboard_dir set_all_logging_options eval_iters eval_interval return_logits
    custom_train_step_class custom_train_step_kwargs custom_model_provider_function custom_prepare_model_function
    custom_megatron_datasets_provider_function custom_get_batch_function custom_loss_function other_megatron_args
    MegatronLMDummyScheduler MegatronLMDummyDataLoader data_path splits_string micro_batch_size AbstractTrainStep
    GPTTrainStep BertTrainStep T5TrainStep avg_losses_across_data_parallel_group megatron_generate
    checkpoint_reshaping_and_interoperability.py
"""
FP8 = """
    fp8_config mixed_precision backend AO TE MSAMP opt_level optimization_level O1 O2 config module_filter_func
    pad_inner_dim enable_fsdp_float8_all_gather use_autocast_during_eval margin interval fp8_format format
    amax_history_len amax_history_length amax_compute_algo amax_compute_algorithm override_linear_precision
    use_mxfp8_block_scaling convert_model apply_fp8_autowrap has_transformer_engine_layers contextual_fp8_autocast
"""
METHODS = """
    prepare backward accumulate no_sync clip_grad_norm_ clip_grad_value_ autocast save_state load_state
    skip_first_batches register_for_checkpointing save_model save get_state_dict unwrap_model log init_trackers
    get_tracker end_training free_memory profile
"""
COLLECTIVES = """
    gather gather_for_metrics use_gather_object gather_object gather_across_data_parallel_groups reduce
    pad_across_processes broadcast broadcast_object_list concatenate convert_outputs_to_fp32 convert_to_fp32 listify
    recursively_apply send_to_device slice_tensors find_batch_size join_uneven_inputs even_batches wait_for_everyone
    main_process_first local_main_process_first on_main_process on_local_main_process on_process on_last_process
    on_local_process is_main_process is_local_main_process is_last_process process_index local_process_index get_logger
    print set_trigger check_trigger set_breakpoint check_breakpoint DistributedOperationException ACCELERATE_DEBUG_MODE
    debug split_between_processes apply_padding PartialState prepare_pippy split_points num_chunks gather_output
"""
HANDLERS = """
    DistributedDataParallelKwargs comm_hook comm_wrapper comm_state_option AutocastKwargs GradScalerKwargs
    InitProcessGroupKwargs FP8RecipeKwargs AORecipeKwargs TERecipeKwargs MSAMPRecipeKwargs
    ProfileKwargs
"""
LAUNCH = """
    cpu multi_gpu tpu ipex mixed_precision num_processes num_machines num_cpu_threads_per_process enable_cpu_affinity
    use_deepspeed use_fsdp use_megatron_lm use_xpu gpu_ids same_network machine_rank main_process_ip main_process_port
    tee log_dir role rdzv_backend rdzv_conf max_restarts monitor_interval main_training_function downcast_bf16 module
    no_python debug quiet
"""
WANTED = {
    "FSDP": FSDP,
    "DeepSpeed": DEEPSPEED,
    "Megatron-LM": MEGATRON,
    "FP8": FP8,
    "Keyword handlers": HANDLERS,
    "Accelerator": METHODS,
    "Evaluation and collectives": COLLECTIVES,
    "Launch": LAUNCH,
}
# Which option files the keys under `strategy` of a section must stand in.
STRATEGIES = {"FSDP": "?sdp*", "DeepSpeed": "deepspeed*", "Megatron-LM": "parallel", "Keyword handlers": "ddp"}


def rows(section: Any) -> Any:
    """First and second column of the tables under a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return ROW.findall(text)


SECTIONS = [heading for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE) if rows(heading)]


@cache
def loaded(pattern: Any) -> Any:
    """The files, as they stand."""
    found = [yaml.safe_load(path.read_text()) for path in CONF.glob(pattern)]
    assert found, pattern
    return found


def is_key(key: Any, strategies: Any) -> Any:
    """Whether base.yaml has it, or an option of its group; all options that match, for strategies."""
    group, _, name = key.partition(".")
    if group == "strategy":
        return all(name in option for option in loaded(f"strategy/{strategies}.yaml"))
    if (CONF / group).is_dir():
        return any(name in option for option in loaded(f"{group}/*.yaml"))
    return name in loaded("base.yaml")[0].get(group, {})


@pytest.mark.parametrize("section", WANTED)
def test_the_page_has_every_key_of_the_documentation(section: str) -> None:
    named = {quoted for first, _ in rows(section) for quoted in QUOTED.findall(first)}
    assert sorted(set(WANTED[section].split()) - named) == []


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_that_the_page_gives_exists(section: Any) -> None:
    given = [quoted for _, second in rows(section) for quoted in QUOTED.findall(second)]
    assert given
    for quoted in given:
        if called := CALLED.match(quoted):
            assert called[2] in dir(OWNERS[called[1]]), quoted
            continue
        key, equals, value = quoted.partition("=")
        if KEY.match(key):
            assert is_key(key, STRATEGIES.get(section, "*")), quoted
        elif equals:  # an option of a group, or several
            assert all((CONF / key / f"{option}.yaml").is_file() for option in value.strip("[]").split(",")), quoted


@pytest.mark.parametrize("section", SECTIONS)
def test_every_row_has_an_answer(section: Any) -> None:
    for first, second in rows(section):
        assert len(second) > 3, first
