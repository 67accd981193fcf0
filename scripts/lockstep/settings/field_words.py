"""What other tools call the settings: a setting that is mistyped in the field's words is guessed in the error.

The words are those of transformers, PEFT, TRL, bitsandbytes, LLaMA-Factory, Axolotl, Unsloth and vLLM, and what people
say. Words that differ from the setting's own name in spelling only are not needed here: `yaml_file.suggest` is lenient.
"""

# setting → words for it, without sections, in lower case and with underscores
_WORDS = {
    "run": "run_name output_dir out_dir output output_path output_name experiment experiment_name project "
    "exp_name adapter_name_or_path",
    "model.id": "base_model model_name_or_path model_name model_id pretrained_model_name_or_path base "
    "base_model_name base_model_config pretrained_model repo_id model",
    "model.path": "model_path model_dir local_path base_model_path",
    "model.revision": "model_revision commit branch",
    "data.train_file": "dataset datasets dataset_name dataset_path dataset_dir data_path data_file data_files "
    "train_data train_dataset training_file train_path file files train_files path_to_data",
    "data.validation_file": "eval_file val_file valid_file dev_file eval_dataset val_dataset validation_data "
    "test_datasets eval_data val_data",
    "data.test_file": "test_data test_dataset test_path",
    "data.validation_share": "val_set_size val_size validation_split eval_split val_ratio validation_size "
    "validation_ratio eval_ratio validation_split_percentage dev_ratio",
    "data.test_share": "test_size test_ratio test_split",
    "data.template": "chat_template prompt_template conversation_template prompt_format prompt_style",
    "data.system_prompt": "system default_system system_message system_prompt_text",
    "data.thinking": "enable_thinking think reasoning enable_reasoning",
    "data.format": "formatting dataset_format data_format dataset_type",
    "data.columns": "column_mapping field_mapping dataset_text_field columns_mapping",
    "data.max_length": "max_seq_length max_seq_len cutoff_len sequence_len seq_len seq_length sequence_length "
    "max_len model_max_length block_size max_sequence_length max_input_length max_source_length max_target_length",
    "data.truncation": "truncate truncation_mode excess_length_strategy",
    "data.supervise": "train_on_inputs train_on_prompt mask_history completion_only_loss assistant_only_loss "
    "train_on_responses_only roles_to_train train_on_eos",
    "method": "finetuning_type tuning_type peft_type peft_method training_type load_in_4bit load_in_8bit "
    "quantization_bit use_qlora use_lora use_peft full_finetuning train_type",
    "lora.r": "rank lora_r lora_rank lora_dim",
    "lora.lora_alpha": "alpha",
    "lora.lora_dropout": "dropout",
    "lora.target_modules": "lora_target lora_target_modules target targets target_module lora_target_linear "
    "lora_modules",
    "lora.modules_to_save": "additional_target lora_modules_to_save modules_to_train",
    "lora.use_rslora": "rslora peft_use_rslora",
    "lora.use_dora": "dora peft_use_dora",
    "lora.init_lora_weights": "init_weights peft_init_lora_weights pissa_init lora_init",
    "lora.loraplus_lr_ratio": "loraplus lora_plus loraplus_ratio",
    "lora.start_from": "resume_adapter lora_model_dir adapter_path init_from",
    "quantization.bnb_4bit_quant_type": "quant_type quantization_type bnb_quant_type",
    "quantization.bnb_4bit_use_double_quant": "double_quant double_quantization use_double_quant use_nested_quant",
    "train.learning_rate": "lr base_lr max_lr peak_lr",
    "train.min_learning_rate": "min_lr lr_min cosine_min_lr min_lr_rate",
    "train.num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs num_epoch train_epochs",
    "train.max_steps": "steps num_steps max_train_steps total_steps num_train_steps iters iterations max_iters",
    "train.per_device_train_batch_size": "batch_size bs bsz micro_batch_size mini_batch_size train_batch_size "
    "batchsize per_device_batch_size per_gpu_train_batch_size",
    "train.per_device_eval_batch_size": "eval_batch_size val_batch_size per_gpu_eval_batch_size",
    "train.gradient_accumulation_steps": "grad_accum grad_accumulation gradient_accumulation accumulation_steps "
    "grad_accumulation_steps accum_steps gas grad_acc grad_acc_steps",
    "train.auto_batch": "auto_find_batch_size find_batch_size",
    "train.padding_free": "packing sample_packing pack use_packing neat_packing group_by_length",
    "train.lr_scheduler_type": "scheduler lr_scheduler lr_schedule scheduler_type schedule",
    "train.warmup_steps": "warmup warmup_ratio warmup_proportion num_warmup_steps lr_warmup_steps",
    "train.weight_decay": "wd decay",
    "train.max_grad_norm": "grad_clip gradient_clipping clip_grad_norm grad_norm clip gradient_clip max_gradient_norm",
    "train.optim": "optimizer optimiser",
    "train.neftune_noise_alpha": "neftune noise_alpha neftune_alpha",
    "train.dtype": "bf16 fp16 tf32 precision mixed_precision compute_dtype bnb_4bit_compute_dtype torch_dtype "
    "fp32 pure_bf16 compute_type",
    "train.gradient_checkpointing": "grad_checkpoint use_gradient_checkpointing checkpointing activation_checkpointing",
    "train.use_liger_kernel": "liger use_liger enable_liger_kernel liger_kernel",
    "train.attn_implementation": "flash_attn flash_attention use_flash_attention attention flash_attn_2 "
    "sdp_attention use_flash_attention_2 attn",
    "train.early_stopping_patience": "early_stopping patience early_stop early_stopping_steps",
    "train.eval_steps": "eval_every evaluation_steps evals_per_epoch evaluation_strategy eval_strategy val_interval",
    "train.save_steps": "save_every checkpoint_steps saves_per_epoch save_strategy save_interval",
    "train.logging_steps": "log_steps log_every log_interval logging",
    "train.seed": "random_seed",
    "train.dataloader_num_workers": "num_workers workers dataloader_workers preprocessing_num_workers",
    "train.training_args": "deepspeed fsdp report_to adam_beta1 adam_beta2 adam_epsilon",
    "merge.strategy": "merge_method",
    "serve.host": "listen bind address server_name ip",
    "serve.port": "server_port api_port",
    "serve.max_model_len": "context_length ctx_len context_len max_context max_context_length vllm_maxlen n_ctx ctx",
    "serve.max_num_seqs": "max_concurrency max_batch max_seqs",
    "serve.gpu_memory_utilization": "gpu_memory gpu_util gpu_memory_fraction vllm_gpu_util mem_fraction "
    "gpu_utilization",
    "serve.tensor_parallel_size": "tp tp_size tensor_parallel num_gpus gpus tensor_parallelism",
    "serve.pipeline_parallel_size": "pp pp_size pipeline_parallel",
    "serve.data_parallel_size": "dp dp_size data_parallel",
    "serve.served_model_name": "model_alias alias served_name",
    "serve.enforce_eager": "eager",
    "serve.vllm_args": "vllm_config extra_args engine_args "
    "enable_auto_tool_choice swap_space quantization_method enable_prefix_caching",
    "serve.startup_timeout": "start_timeout",
    "sampling.temperature": "temp",
    "sampling.top_k": "topk",
    "sampling.top_p": "topp",
    "sampling.max_tokens": "max_new_tokens max_completion_tokens max_output_tokens num_predict max_gen_tokens",
    "sampling.repetition_penalty": "rep_penalty repeat_penalty repetition",
}
SETTING_OF = {word: setting for setting, words in _WORDS.items() for word in words.split()}
# names of sections, as other tools cut their files
SECTION_OF = {
    **dict.fromkeys(("training", "trainer", "training_arguments", "training_args", "sft", "hyperparameters"), "train"),
    **dict.fromkeys(("dataset", "datasets", "dataloader"), "data"),
    **dict.fromkeys(("peft", "lora_config", "peft_config", "qlora"), "lora"),
    **dict.fromkeys(("bnb", "bnb_config", "quant", "bitsandbytes", "quantization_config"), "quantization"),
    **dict.fromkeys(("vllm", "server", "serving", "inference", "deploy"), "serve"),
    **dict.fromkeys(("generation", "generate", "generation_config", "sampling_params"), "sampling"),
    **dict.fromkeys(("eval", "evaluation"), "evaluate"),
    **dict.fromkeys(("base_model", "base"), "model"),
    **dict.fromkeys(("gradio", "web", "chat"), "ui"),
}
# what a value of another kind needs to know; and words for what is no setting at all
REMARKS = {
    "warmup_ratio": "below 1 it is a share of all steps",
    "warmup_proportion": "below 1 it is a share of all steps",
    **dict.fromkeys(
        ("bf16", "fp16", "tf32", "fp32", "pure_bf16", "torch_dtype"), "it takes bfloat16, float16, float32"
    ),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit"), "it is qlora, lora or full; qlora: 4 bits"),
    **dict.fromkeys(("train_on_inputs", "train_on_prompt"), "prompt_too trains prompts as well"),
    **dict.fromkeys(("output_dir", "out_dir"), "a name: the folder is outputs/RUN"),
}
ELSEWHERE = {
    **dict.fromkeys(("api_key", "openai_api_key", "vllm_api_key"), "set LOCKSTEP_API_KEY in the environment"),
    **dict.fromkeys(("hf_token", "use_auth_token", "hub_token", "hf_hub_token"), "set HF_TOKEN in the environment"),
    "trust_remote_code": "no code of a model's is ever run",
    "resume_from_checkpoint": "an interrupted training goes on when the same command runs again",
    "overwrite_output_dir": "--force replaces what is there",
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "nothing is uploaded: take the files from outputs/"),
}
