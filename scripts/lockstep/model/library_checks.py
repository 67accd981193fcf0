"""What libraries make of a stranger's model: the steps that `limited_process` takes, from the simplest on."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model.limited_process import Step
from lockstep.prompts import contract, golden_tools, template, template_source, tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEBIBYTE = 2**20
# Limits for files that are large in large models, and for a template and a tokenizer on short texts.
SECONDS, MEMORY = 15, 4096 * MEBIBYTE
QUICK_SECONDS, QUICK_MEMORY = 5, 512 * MEBIBYTE
BYTES_A_SECOND = 256 * MEBIBYTE  # of weights that are read
# A prompt is the texts of a conversation and some frame around them, not a library.
FRAME, TIMES = 100_000, 20
# Long runs of one kind, and an end that does not fit: where a bad pattern tries every way to split them.
RUNS = [character * 1000 + "\t?x" for character in ("a", "A", " ", "0", "!", "\n", "_", "你")]

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def model_steps(folder: Path) -> Iterator[Step]:
    """Every look at a model."""
    from transformers import AutoConfig, GenerationConfig

    weights = _size_of_weights(folder)  # mapped, not read
    seconds, memory = SECONDS + weights / BYTES_A_SECOND, MEMORY + 2 * weights
    infinite: list[str] = []  # filled by the first step
    yield Step("weights", seconds, memory, partial(_check_weights, folder, infinite))
    load_config = partial(AutoConfig.from_pretrained, folder, **LOCAL)
    yield Step(filenames.CONFIG, QUICK_SECONDS, QUICK_MEMORY, load_config)
    if (folder / filenames.GENERATION_CONFIG).exists():
        load_defaults = partial(GenerationConfig.from_pretrained, folder, local_files_only=True)
        yield Step(filenames.GENERATION_CONFIG, QUICK_SECONDS, QUICK_MEMORY, load_defaults)
    yield Step("weights", SECONDS, memory, partial(_check_fit, folder, infinite))
    yield from tokenizer_steps(folder)


def adapter_steps(folder: Path, base: Path, tokenizer: bool) -> Iterator[Step]:
    """Every look at an adapter, whose config may hold regular expressions for PEFT.

    Args:
        base: the folder of its base.
        tokenizer: whether the adapter brings one that is taken.
    """
    import peft.utils.other  # noqa: F401 - takes seconds, which are not the adapter's

    from lockstep.model import adapter_files

    weights = _size_of_weights(folder)
    seconds, memory = SECONDS + weights / BYTES_A_SECOND, MEMORY + 4 * weights
    yield Step("adapter", seconds, memory, partial(adapter_files.read, folder))
    yield Step("adapter", SECONDS, MEMORY, partial(_try_patterns, folder, base))
    if tokenizer:
        yield from tokenizer_steps(folder)


def tokenizer_steps(folder: Path) -> Iterator[Step]:
    """A tokenizer is loaded, encodes texts, and renders its chat template."""
    from transformers import AutoTokenizer

    loaded: list[PreTrainedTokenizerBase] = []  # filled by the first step
    yield Step("tokenizer", SECONDS, MEMORY, lambda: loaded.append(AutoTokenizer.from_pretrained(folder, **LOCAL)))
    (tokenizer,) = loaded
    yield Step("tokenizer", QUICK_SECONDS, QUICK_MEMORY, partial(_try_tokenizer, tokenizer))
    if template_source.of_folder(folder) is not None:
        yield Step("chat template", QUICK_SECONDS, QUICK_MEMORY, partial(_try_template, tokenizer))


def _size_of_weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _check_weights(folder: Path, infinite: list[str]) -> None:
    """Every shard is there, has a sound header, and holds numbers: one NaN makes all that is computed NaN.

    Args:
        infinite: takes the names of tensors that hold infinities, which are right as bounds and nowhere else.
    """
    from safetensors import SafetensorError

    shards = {file.name for file in folder.glob("*.safetensors")}
    _check_index(folder / filenames.WEIGHTS_INDEX, shards)
    for shard in sorted(shards):
        try:
            _check_shard(folder / shard, infinite)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard} of the model is damaged ({error})") from error


def _check_index(index: Path, shards: set[str]) -> None:
    if not index.exists():
        return
    content = atomic.read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    # names are compared and never opened: one that leads out of the folder is not there either
    if not isinstance(named, dict) or not all(isinstance(name, str) and name in shards for name in named.values()):
        raise UserError(f"{index.name} of the model names shards that are not there")


def _check_shard(file: Path, infinite: list[str]) -> None:
    import torch
    from safetensors import safe_open

    floats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            weight = tensors.get_tensor(name)
            if weight.dtype not in floats or not weight.numel():
                continue
            ends = torch.stack(weight.aminmax())
            if ends.isnan().any():
                raise UserError(f"{name} in {file.name} of the model holds values that are not finite: refused")
            if ends.isinf().any():
                infinite.append(name)


def _check_fit(folder: Path, infinite: list[str]) -> None:
    """The config's model has these weights, and none is missing: libraries fill in random ones without an error.

    Args:
        infinite: names in the files of tensors that hold infinities.
    """
    from lockstep.model import checkpoint_names, networks

    config = networks.config_of(folder)
    if quantized := getattr(config, "quantization_config", None):
        kind = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise UserError(
            f"the model is quantized already ({kind}), and an adapter cannot be merged onto such weights: take the "
            "model that it was made from, and --method qlora quantizes that"
        )
    try:
        _, report = networks.auto_class(config).from_pretrained(
            folder, device_map="meta", output_loading_info=True, use_safetensors=True, **LOCAL
        )
    except ImportError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise UserError(
            f"the model needs a package that is not installed here, for parts that are not trained anyway: take a "
            f"checkpoint of its text part alone ({reason[:150]})"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights of the model lack {missing[0]} ({len(missing)} tensors that config.json asks for)"
        )
    if infinite:
        names = checkpoint_names.of_folder(folder)
        bounds = {
            tensor for group in names.groups if group.parameters.keys() <= names.buffers for tensor in group.tensors
        }
        for name in sorted(set(infinite) - bounds):
            raise UserError(f"{name} of the model holds values that are not finite: refused")


def _try_patterns(folder: Path, base: Path) -> None:
    """Ask of each of the base's modules, as PEFT does, whether the adapter belongs to it."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    from lockstep.model import networks

    network = networks.empty(base)
    config = PeftConfig.from_pretrained(str(folder))
    for name, _ in network.named_modules():
        check_target_module_exists(config, name)


def _try_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    for text in (*RUNS, *tokenizer_folder.PROBES):
        tokenizer.encode(text, add_special_tokens=False)
    for _, messages in contract.golden():
        for message in messages:
            tokenizer.encode(message["content"], add_special_tokens=False)


def _try_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Render the golden conversations in all ways that a run may ask for."""
    ways: list[dict[str, Any]] = [{}, {"tools": [golden_tools.TOOL]}]
    ways += [dict.fromkeys(template_source.THINKING_FLAGS, thinking) for thinking in (True, False)]
    for _, messages in contract.golden():
        answered = [*messages, {"role": "assistant", "content": "A"}]
        for way in ways:
            _try_rendering(tokenizer, messages, add_generation_prompt=True, **way)
            _try_rendering(tokenizer, answered, add_generation_prompt=False, **way)


def _try_rendering(tokenizer: "PreTrainedTokenizerBase", messages: list[template.Message], **way: Any) -> None:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **way)
    except MemoryError:
        raise
    except template.FAILURES:
        return  # that a template refuses some conversations is stage 01's matter
    size = sum(len(message["content"]) for message in messages)
    if len(text) > FRAME + TIMES * size:
        raise UserError(f"the chat template of the model makes {len(text):,} characters of a short text: refused")
