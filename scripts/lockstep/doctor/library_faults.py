"""Fault 9: what does not run with today's libraries, or does not do there what it seems to."""

import ast
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import TRAINERS, Project, fault
from lockstep.doctor.script_tree import Script, dotted, holds_ignored_label, keyword, last_name, names_in

# Arguments that are gone → what took their place; checked against the installed library by a test.
OF_TRAINING_ARGUMENTS = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps, which takes a share below 1",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "nothing: leave it out",
    "no_cuda": "use_cpu",
    "use_mps_device": "nothing: leave it out",
    "save_safetensors": "nothing: safetensors is the only format",
    "group_by_length": "train_sampling_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "fp16_backend": "nothing: leave it out",
    "fp16_opt_level": "nothing: leave it out",
    "half_precision_backend": "nothing: leave it out",
    "include_inputs_for_metrics": "include_for_metrics",
    "evaluate_during_training": "eval_strategy",
    "adafactor": "optim",
    "torchdynamo": "torch_compile_backend",
    "tpu_num_cores": "nothing: leave it out",
    "past_index": "nothing: leave it out",
    "ray_scope": "nothing: leave it out",
    "jit_mode_eval": "nothing: leave it out",
    "use_ipex": "nothing: leave it out",
    "include_tokens_per_second": "include_num_input_tokens_seen",
}
OF_TRAINER = {"tokenizer": "processing_class"}
OF_FROM_PRETRAINED = {
    "load_in_4bit": "quantization_config=BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "quantization_config=BitsAndBytesConfig(load_in_8bit=True)",
    "use_auth_token": "token",
    "use_flash_attention_2": 'attn_implementation="flash_attention_2"',
    "bnb_4bit_compute_dtype": "quantization_config=BitsAndBytesConfig(…)",
    "bnb_4bit_quant_type": "quantization_config=BitsAndBytesConfig(…)",
    "bnb_4bit_use_double_quant": "quantization_config=BitsAndBytesConfig(…)",
}
OF_GENERATE: dict[str, str] = {}
GONE_IMPORTS = {
    "AdamW": "torch.optim.AdamW",
    "AutoModelWithLMHead": "AutoModelForCausalLM",
    "prepare_model_for_int8_training": "prepare_model_for_kbit_training",
}
RENAMED = "these arguments are gone from today's libraries: the script ends with a TypeError"


def does_not_run(project: Project) -> Iterator[Finding]:
    """Fault 9 in all its forms."""
    for script in project.scripts:
        yield from _imports(script)
        yield from _arguments(script)
        yield from _unpadded_labels(script)
        yield from _lists_of_many_lengths(script, project)
        yield from _dropped_columns(script, project)
        yield from _few_targets(script)


def _imports(script: Script) -> Iterator[Finding]:
    nodes = [ast.Pass(lineno=line, col_offset=0) for line, _ in script.digit_imports]
    if nodes:
        names = ", ".join(name for _, name in script.digit_imports)
        yield fault(
            9,
            f"{names} begins with a digit, and no import can name it: Python ends with a SyntaxError before anything "
            f"runs",
            "give what is imported a module of its own whose name begins with a letter",
            script,
            *nodes,
        )
    if script.syntax_error and not script.unit.is_fragment:
        line, words = script.syntax_error
        yield fault(
            9,
            f"this is no Python that runs here ({words}), so that nothing else of it could be looked at",
            "mend this line, or convert the script from Python 2, and check it again",
            script,
            ast.Pass(lineno=line, col_offset=0),
        )
    for node in script.nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("transformers", "peft"):
            gone = [alias.name for alias in node.names if alias.name in GONE_IMPORTS]
            if gone:
                instead = ", ".join(f"{name} → {GONE_IMPORTS[name]}" for name in gone)
                yield fault(
                    9, f"{', '.join(gone)} can no longer be imported: the script ends there", instead, script, node
                )


def _arguments(script: Script) -> Iterator[Finding]:
    nodes: dict[str, list[ast.AST]] = {}
    instead: dict[str, str] = {}
    maps = {
        "TrainingArguments": OF_TRAINING_ARGUMENTS,
        "Seq2SeqTrainingArguments": OF_TRAINING_ARGUMENTS,
        "SFTConfig": OF_TRAINING_ARGUMENTS,
        **dict.fromkeys(TRAINERS, OF_TRAINER),
        "from_pretrained": OF_FROM_PRETRAINED,
    }
    for call in script.calls:
        gone = maps.get(last_name(call), {})
        if last_name(call) == "from_pretrained" and re.search(r"Config|Tokenizer", dotted(call.func)):
            gone = {"use_auth_token": "token"}
        if last_name(call) == "SFTTrainer":
            gone = OF_TRAINER | dict.fromkeys(("dataset_text_field", "max_seq_length", "packing"), "SFTConfig")
        values = [(k.arg, k.value) for k in call.keywords] + _unpacked(script, call)
        for name, value in values:
            if name in gone:
                nodes.setdefault(name, []).append(value)
                instead[name] = gone[name]
    if nodes:
        yield fault(
            9,
            f"{', '.join(nodes)}: {RENAMED}",
            "; ".join(f"{name} → {instead[name]}" for name in nodes),
            script,
            *(node for group in nodes.values() for node in group),
        )


def _unpacked(script: Script, call: ast.Call) -> list[tuple[str | None, ast.expr]]:
    """The arguments of `f(**options)` where options is a dictionary of the script's."""
    pairs: list[tuple[str | None, ast.expr]] = []
    for argument in call.keywords:
        if argument.arg is not None or not isinstance(argument.value, ast.Name | ast.Dict):
            continue
        values: list[ast.expr] = [argument.value]
        if isinstance(argument.value, ast.Name):
            values = [v for s in script.functions for v in script.assigned(s).get(argument.value.id, [])]
        for value in values:
            if isinstance(value, ast.Dict):
                pairs += [
                    (str(key.value), inner)
                    for key, inner in zip(value.keys, value.values, strict=True)
                    if isinstance(key, ast.Constant)
                ]
            elif isinstance(value, ast.Call) and last_name(value) == "dict":
                pairs += [(k.arg, k.value) for k in value.keywords]
    return pairs


def _unpadded_labels(script: Script) -> Iterator[Finding]:
    """`tokenizer.pad` and DataCollatorWithPadding fill up ids and masks, and leave labels as they are."""
    for scope in script.functions:
        pads = [
            call
            for call in ast.walk(scope)
            if isinstance(call, ast.Call) and dotted(call.func).endswith(".pad") and _hands_over_labels(script, call)
        ]
        if pads and not _fills_labels(scope):
            yield fault(
                9,
                "tokenizer.pad does not fill up labels: a batch of rows of different lengths ends with a ValueError",
                "fill labels up with -100 to the longest row, or use DataCollatorForSeq2Seq",
                script,
                *pads,
            )
            break
    for call in script.calls:
        if last_name(call) == "DataCollatorWithPadding" and script.label_makers:
            yield fault(
                9,
                "DataCollatorWithPadding does not fill up labels: a batch of rows of different lengths ends with a "
                "ValueError",
                "DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)",
                script,
                call,
            )


def _lists_of_many_lengths(script: Script, project: Project) -> Iterator[Finding]:
    """Labels that nothing fills up: without a collator Trainer fills up ids and masks alone."""
    for call in script.calls:
        if last_name(call) not in ("Trainer", "Seq2SeqTrainer") or not script.label_makers:
            continue
        given = {argument.arg for argument in call.keywords}
        even = any(is_padded(node) for node in script.nodes) or any(map(_fills_labels, script.functions))
        if not given & {"data_collator", None} and len(call.args) < 3 and not even:
            yield fault(
                9,
                "Trainer without a data_collator does not fill up labels: a batch of rows of different lengths ends "
                "with a ValueError",
                "data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)",
                script,
                call,
            )


def is_padded(node: ast.AST) -> bool:
    """Whether rows are filled up when they are encoded: `padding="max_length"`."""
    return (
        isinstance(node, ast.keyword)
        and node.arg == "padding"
        and not (isinstance(node.value, ast.Constant) and node.value.value in (False, None))
    )


def _hands_over_labels(script: Script, call: ast.Call) -> bool:
    given = call.args[0] if call.args else next((k.value for k in call.keywords), None)
    if isinstance(given, ast.Name):
        given = next((v for s in script.functions for v in script.assigned(s).get(given.id, [])), given)
    return given is not None and any(isinstance(n, ast.Constant) and n.value == "labels" for n in ast.walk(given))


def _fills_labels(scope: ast.AST) -> bool:
    """Whether rows are filled up with -100 as far as another one is longer: `[-100] * (n - len(row))`."""
    for node in ast.walk(scope):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and holds_ignored_label(node):
            if any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Sub) for n in ast.walk(node)):
                return True
            if any(re.search(r"pad|missing|fill|rest|remainder", name) for name in names_in(node)):
                return True
        if isinstance(node, ast.Call) and last_name(node) in ("pad_sequence", "full") and holds_ignored_label(node):
            return True
    return False


def _dropped_columns(script: Script, project: Project) -> Iterator[Finding]:
    """Rows as text go to a collator of one's own, and the Trainer takes their columns away before it sees them."""
    for call in script.calls:
        collator, rows = keyword(call, "data_collator"), keyword(call, "train_dataset")
        if last_name(call) not in ("Trainer", "Seq2SeqTrainer") or collator is None or rows is None:
            continue
        scope = script.scope_of(call)
        made_by = _origin(script, scope, collator)
        if not re.search(r"[A-Za-z]", made_by) or _is_a_librarys(script, made_by) or _keeps_columns(script):
            continue
        if _is_raw(script, scope, rows):
            yield fault(
                9,
                "Trainer drops the columns that the model does not take (remove_unused_columns), before the collator "
                "sees the rows: it gets empty ones",
                "remove_unused_columns=False",
                script,
                call,
            )


def _origin(script: Script, scope: ast.AST, node: ast.expr) -> str:
    """The name of the class or function that a value comes from."""
    if isinstance(node, ast.Call):
        return last_name(node)
    for place in (scope, script.tree):
        for value in script.assigned(place).get(dotted(node), []):  # type: ignore[arg-type]
            return last_name(value) if isinstance(value, ast.Call) else dotted(value)
    return dotted(node)


def _is_a_librarys(script: Script, name: str) -> bool:
    for node in script.nodes:
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return (node.module or "").split(".")[0] in ("transformers", "trl", "torch", "peft")
    return name.startswith("DataCollator") and not any(
        isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name for n in script.nodes
    )


def _keeps_columns(script: Script) -> bool:
    for node in script.nodes:
        if isinstance(node, ast.keyword) and node.arg == "remove_unused_columns":
            return isinstance(node.value, ast.Constant) and node.value.value is False
        if isinstance(node, ast.Constant) and node.value == "remove_unused_columns":
            return True
    return False


def _is_raw(script: Script, scope: ast.AST, rows: ast.expr) -> bool:
    """Whether rows come from a file as they are."""
    while isinstance(rows, ast.Subscript):
        rows = rows.value
    values = [rows] if isinstance(rows, ast.Call) else []
    for place in (scope, script.tree):
        values += values or script.assigned(place).get(dotted(rows), [])  # type: ignore[arg-type]
    calls = [last_name(n) for value in values for n in ast.walk(value) if isinstance(n, ast.Call)]
    loads = any(
        re.search(r"^load_dataset$|^from_(json|list|dict|pandas|csv|parquet)$|^load_from_disk$", c) for c in calls
    )
    return loads and not any(call in ("map", "with_transform", "set_transform") for call in calls)


def _few_targets(script: Script) -> Iterator[Finding]:
    for call in script.calls:
        if last_name(call) not in ("LoraConfig", "AdaLoraConfig") or any(k.arg is None for k in call.keywords):
            continue
        targets = keyword(call, "target_modules")
        absent = targets is None or (isinstance(targets, ast.Constant) and targets.value is None)
        if absent and keyword(call, "target_parameters") is None and call.keywords:
            yield fault(
                9,
                "target_modules=None means q_proj and v_proj alone for most models, not all linear layers: the "
                "adapter learns less than it seems to",
                'target_modules="all-linear"',
                script,
                targets or call,
            )
