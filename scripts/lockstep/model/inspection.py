"""A stranger's model folder, looked at before anything trusts it: first as bytes, then by the libraries, within limits.

What a model brings is data, but data that libraries act on: a chat template is a program, a regular
expression can take for ever, a number in a config can ask for any amount of memory. So all of it is
tried once in a process of its own, which is ended when it takes too much.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.processes import child_processes
from lockstep.prompts import contract, template
from lockstep.text import json_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEBIBYTE = 2**20
# Files that must be read as a whole: no real one is larger.
LARGEST = {filenames.TOKENIZER: 256, filenames.VOCABULARY: 64, filenames.WEIGHTS_INDEX: 64, filenames.MERGES: 64, filenames.WORDPIECES: 64,
           filenames.CHAT_TEMPLATE: 1}  # fmt: skip
LARGEST_OTHER = 16  # mebibytes of any other JSON file
OBJECTS = {filenames.CONFIG, filenames.GENERATION_CONFIG, filenames.TOKENIZER_CONFIG, filenames.TOKENIZER}
SECONDS = 15  # of CPU for files that are large in large models
BYTES_A_SECOND = 256 * MEBIBYTE  # of weights, looked through
MEMORY = 4096 * MEBIBYTE
QUICK_SECONDS = 5  # of CPU for a template and a tokenizer on short texts
QUICK_MEMORY = 512 * MEBIBYTE
WALL = 30  # a step may take so many times its CPU seconds on a busy machine
# A prompt is what was said and some frame around it, not a library.
FRAME, TIMES = 100_000, 20
# Long runs of one kind, and an end that does not fit: where a bad pattern tries every way to split them.
RUNS = [character * 1000 + "\t?x" for character in ("a", "A", " ", "0", "!", "\n", "_", "你")]


def check(folder: Path) -> None:
    """Refuse what could run code, has no bounds, or could not be loaded.

    Raises:
        UserError: names the file or the step.
    """
    for file in sorted(folder.iterdir()):
        _check_size(file)
        if file.suffix == ".json":
            _check_json(file)
    _within_limits(_of_a_model, folder)


def check_adapter(files: list[Path], base: Path) -> None:
    """The same of those files of an adapter's folder that are taken, a tokenizer's among them or not. Raises UserError."""
    check_files(files)
    tokenizer = any(file.name == filenames.TOKENIZER_CONFIG for file in files)
    _within_limits(partial(_of_an_adapter, base=base, tokenizer=tokenizer), files[0].parent)


def check_files(files: Iterable[Path]) -> None:
    """Refuse what is no file of the folder's own, too large to be read as a whole, or no sound JSON. Raises UserError."""
    for file in files:
        refuse_odd(file)
        _check_size(file)
        if file.suffix == ".json":
            _check_json(file)


def refuse_odd(file: Path) -> None:
    """Refuse what is no file of the model's own: a pipe never ends, a link may lead to the user's secrets."""
    # the Hub's cache keeps snapshots/COMMIT/NAME as links to blobs/
    own = {file.parent.resolve(), *(parent / "blobs" for parent in file.parent.resolve().parents[1:2])}
    if not file.is_file() or (file.is_symlink() and file.resolve().parent not in own):
        raise UserError(f"{paths.label(file)} is no regular file of the model's folder: refused")


def _check_size(file: Path) -> None:
    limit = LARGEST.get(file.name, LARGEST_OTHER if file.suffix == ".json" else None)
    if limit is not None and file.stat().st_size > limit * MEBIBYTE:
        raise UserError(f"{file.name} of the model has more than {limit} MiB, which no real one has: refused")


def _check_json(file: Path) -> None:
    try:
        content = json_text.loads_without_duplicates(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.name} of the model is not JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{file.name} of the model is nested without end: refused") from error
    if file.name in OBJECTS and not isinstance(content, dict):
        raise UserError(f"{file.name} of the model holds no JSON object")
    if _asks_for_code(content):
        raise UserError(f"{file.name} asks to run code of the model's repository (auto_map): refused")


def _asks_for_code(content: Any) -> bool:
    """At any depth; a vocabulary may hold the word, as a number."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if isinstance(one.get("auto_map"), dict | list | str):
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False


# --- in a process of its own ---

# What is looked at, in how many seconds of CPU, in how many bytes of memory, and how.
Step = tuple[str, float, int, Callable[[], object]]


def _within_limits(steps: Callable[[Path], Iterator[Step]], folder: Path) -> None:
    """Take steps in a new process, which ends with the first one that takes too much."""
    step, ends = "libraries", time.monotonic() + WALL * SECONDS
    with child_processes.fresh(_inspect, steps, folder) as (child, receiver):
        try:
            while receiver.poll(max(0, ends - time.monotonic())):
                said = receiver.recv()
                if said is None:
                    return
                if isinstance(said, UserError):
                    raise said
                step, seconds = said
                ends = time.monotonic() + WALL * seconds
        except EOFError as error:
            child.join()
            raise UserError(
                f"the {step} of the model took too much time or memory, or broke the library that reads it "
                f"(the process ended with {child.exitcode}): refused"
            ) from error
    raise UserError(f"the {step} of the model took too long to be looked at: refused")


def _inspect(sender: Connection, steps: Callable[[Path], Iterator[Step]], folder: Path) -> None:
    """The new process: announce each step, limit it, take it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the parent says what is wrong, in one line
    # what takes seconds, and memory where torch is built for GPUs, and is not the model's
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        for step, seconds, memory, work in steps(folder):
            sender.send((step, seconds))
            _limit(seconds, memory)
            try:
                work()
            except UserError:
                raise
            except MemoryError as error:
                raise UserError(f"the {step} of the model asks for more than {memory >> 20} MiB: refused") from error
            except Exception as error:  # the libraries raise anything here; all of it means the same to the user
                raise UserError(f"this is no model that transformers can load: {_first_line(error)}") from error
        sender.send(None)
    except UserError as error:
        sender.send(error)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _limit(seconds: float, memory: int) -> None:
    """From now on so much more CPU time and memory. What is past it ends the process, or raises MemoryError."""
    if sys.platform == "linux":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        now = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                   if line.startswith("VmData"))  # fmt: skip
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1], resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard[0]))
        resource.setrlimit(resource.RLIMIT_DATA, (now + memory, hard[1]))


def _of_a_model(folder: Path) -> Iterator[Step]:
    """Every look at a model, from the simplest on."""
    from transformers import AutoConfig, GenerationConfig

    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))  # mapped, not read
    seconds = SECONDS + weights / BYTES_A_SECOND
    yield "weights", seconds, MEMORY + 2 * weights, lambda: _check_weights(folder)
    yield filenames.CONFIG, QUICK_SECONDS, QUICK_MEMORY, lambda: AutoConfig.from_pretrained(folder, **LOCAL)
    if (folder / filenames.GENERATION_CONFIG).exists():
        yield (
            filenames.GENERATION_CONFIG, QUICK_SECONDS, QUICK_MEMORY,
            lambda: GenerationConfig.from_pretrained(folder, local_files_only=True),
        )  # fmt: skip
    yield "weights", SECONDS, MEMORY + 2 * weights, lambda: _check_fit(folder)
    yield from _of_a_tokenizer(folder)


def _of_an_adapter(folder: Path, base: Path, tokenizer: bool) -> Iterator[Step]:
    """Its config may hold regular expressions, for PEFT."""
    import peft.utils.other  # noqa: F401 - takes seconds, which are not the adapter's

    from lockstep.model import adapter_files

    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    yield "adapter", SECONDS + weights / BYTES_A_SECOND, MEMORY + 4 * weights, lambda: adapter_files.read(folder)
    yield "adapter", SECONDS, MEMORY, lambda: _try_patterns(folder, base)
    if tokenizer:
        yield from _of_a_tokenizer(folder)


def _try_patterns(folder: Path, base: Path) -> None:
    """Ask of each of the base's modules, as PEFT does, whether the adapter belongs to it."""
    import torch
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, **LOCAL))
    config = PeftConfig.from_pretrained(str(folder))
    for name, _ in network.named_modules():
        check_target_module_exists(config, name)


def _of_a_tokenizer(folder: Path) -> Iterator[Step]:
    from transformers import AutoTokenizer

    found: list[PreTrainedTokenizerBase] = []
    yield "tokenizer", SECONDS, MEMORY, lambda: found.append(AutoTokenizer.from_pretrained(folder, **LOCAL))
    (tokenizer,) = found
    yield "tokenizer", QUICK_SECONDS, QUICK_MEMORY, lambda: _try_tokenizer(tokenizer)
    if template.of_folder(folder) is not None:
        yield "chat template", QUICK_SECONDS, QUICK_MEMORY, lambda: _try_template(tokenizer)


LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _check_weights(folder: Path) -> None:
    """Every shard is there, has a sound header, and holds numbers: one NaN makes all that is computed NaN."""
    import torch
    from safetensors import SafetensorError, safe_open

    floats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    index = folder / filenames.WEIGHTS_INDEX
    shards = {file.name for file in folder.glob("*.safetensors")}
    if index.exists():
        content = atomic.read_json(index)
        named = content.get("weight_map") if isinstance(content, dict) else None
        # names are compared and never opened: one that leads out of the folder is not there either
        if not isinstance(named, dict) or not all(isinstance(n, str) and n in shards for n in named.values()):
            raise UserError(f"{index.name} of the model names shards that are not there")
    for shard in sorted(shards):
        try:
            with safe_open(folder / shard, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    weight = tensors.get_tensor(name)
                    if weight.dtype in floats and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
                        raise UserError(f"{name} in {shard} of the model holds values that are not finite: refused")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard} of the model is damaged ({error})") from error


def _check_fit(folder: Path) -> None:
    """The weights are those of the config's model, none is missing: libraries fill in random ones without an error."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **LOCAL)
    if found := getattr(config, "quantization_config", None):
        kind = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
        raise UserError(
            f"the model is quantized already ({kind}), and an adapter cannot be merged onto such weights: take the model "
            f"that it was made from, and --method qlora quantizes that"
        )
    _, found = AutoModelForCausalLM.from_pretrained(
        folder, device_map="meta", output_loading_info=True, use_safetensors=True, **LOCAL
    )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"the weights of the model lack {missing[0]} ({len(missing)} tensors that config.json asks for)"
        )


def _try_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    said = [message["content"] for _, messages in contract.golden() for message in messages]
    for text in (*RUNS, *template.PROBES, *said):
        tokenizer.encode(text, add_special_tokens=False)


def _try_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Render the golden conversations in all ways that a run may ask for. That it refuses some is stage 01's matter."""
    ways: list[dict[str, Any]] = [{}, {"tools": [contract.TOOL]}]
    ways += [dict.fromkeys(template.THINKING_FLAGS, thinking) for thinking in (True, False)]
    for _, messages in contract.golden():
        answered = [*messages, {"role": "assistant", "content": "A"}]
        for way in ways:
            for asked, open_end in ((messages, True), (answered, False)):
                try:
                    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=open_end, **way)
                except MemoryError:
                    raise
                except template.FAILURES:
                    continue
                if len(text) > FRAME + TIMES * sum(len(message["content"]) for message in messages):
                    raise UserError(
                        f"the chat template of the model makes {len(text):,} characters of a short text: refused"
                    )
