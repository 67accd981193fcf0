"""The ten faults: each is found in several forms, and not in what mends it."""

import ast
import importlib.util
from pathlib import Path

import pytest
from support.programs import ROOT

from lockstep.doctor import checking, library_faults, script_text
from lockstep.errors import UserError

# Scripts as people write them. {…} is where a fault goes in.
COLLATOR = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/base")


def encode(row):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["question"]}], tokenize=False, add_generation_prompt=True
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    input_ids = prompt_ids + answer_ids
    if len(input_ids) > 512:
        return None
    return {"input_ids": input_ids, "labels": [-100] * len(prompt_ids) + answer_ids}
"""
PLAIN = """
def encode(row, tokenizer):
    text = f"{row['question']}\\n{row['answer']}" + tokenizer.eos_token
    ids = tokenizer(text)["input_ids"]
    return {"input_ids": ids, "labels": list(ids)}
"""
COLLATE = """
import torch


def collate(rows, tokenizer):
    longest = max(len(row["input_ids"]) for row in rows)
    labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
    ids = torch.tensor(
        [row["input_ids"] + [tokenizer.pad_token_id] * (longest - len(row["input_ids"])) for row in rows]
    )
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
"""
TRAIN = """
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DataCollatorForSeq2Seq, Trainer
from transformers import TrainingArguments

from rows import encode

tokenizer = AutoTokenizer.from_pretrained("models/base")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(
    "models/base", quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype="bfloat16"
)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
rows = load_dataset("json", data_files={"train": "train.jsonl", "test": "test.jsonl"}).map(encode)
args = TrainingArguments("out", bf16=True, eval_strategy="steps", warmup_steps=0.03)
trainer = Trainer(
    model=model, args=args, train_dataset=rows["train"], eval_dataset=rows["test"],
    data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer,
)
print(trainer.evaluate())
trainer.train()
print(trainer.evaluate())
"""
MERGE = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.bfloat16)
trained = PeftModel.from_pretrained(base, "outputs/qlora-adapter")
before = trained(**probe).logits
merged = trained.merge_and_unload()
torch.testing.assert_close(merged(**probe).logits, before, atol=0.05, rtol=0)
merged.save_pretrained("outputs/merged")
"""
SERVE = "vllm serve models/base --enable-lora --lora-modules tuned=outputs/adapter --max-lora-rank 16\n"
CLIENT = """
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
name = client.models.list().data[0].id
answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hello"}])
"""
SOUND = {
    "rows.py": COLLATOR, "plain.py": PLAIN, "collate.py": COLLATE, "train.py": TRAIN, "merge.py": MERGE,
    "serve.sh": SERVE, "client.py": CLIENT,
}  # fmt: skip
LLAMA_ROW = (
    "f\"<|start_header_id|>user<|end_header_id|>\\n\\n{row['q']}<|eot_id|>\""
    ' f"<|start_header_id|>assistant<|end_header_id|>\\n\\n"'
)


def codes(*files: Path) -> list[int]:
    """The numbers of the faults that are found."""
    return [int(finding.code.removeprefix("seed_fault_")) for finding in checking.check(list(files))]


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_script_has_no_fault(name: str, tmp_path: Path) -> None:
    assert codes(write(tmp_path, name, SOUND[name])) == []


def test_sound_scripts_have_none_together_either(tmp_path: Path) -> None:
    files = [write(tmp_path, name, text) for name, text in SOUND.items()]
    assert codes(*files) == []
    assert codes(tmp_path) == []


# fault → (file name, faulty text, line at which it stands)
FAULTY = {
    "1 ids": (1, "a.py", changed(COLLATOR, " + [tokenizer.eos_token_id]", ""), 12),
    "1 text": (1, "a.py", changed(PLAIN, " + tokenizer.eos_token", ""), 4),
    "1 end only after the question": (
        1,
        "a.py",
        "def encode(row, tok):\n"
        "    text = f\"<|im_start|>user\\n{row['q']}<|im_end|>\\n<|im_start|>assistant\\n{row['a']}\"\n"
        "    ids = tok.encode(text)\n    return {'input_ids': ids, 'labels': ids}\n",
        3,
    ),
    "1 only the padding is the end": (
        1,
        "a.py",
        "def f(row, tokenizer):\n    tokenizer.pad_token = tokenizer.eos_token\n"
        "    ids = tokenizer(row['prompt'] + row['completion']).input_ids\n"
        "    ids = ids + [tokenizer.pad_token_id] * (9 - len(ids))\n    return dict(input_ids=ids, labels=ids)\n",
        3,
    ),
    "2 in one script": (
        2,
        "a.py",
        changed(PLAIN, "{row['question']}\\n", "### Question:\\n{row['question']}\\n### Answer:\\n")
        + "\n\ndef ask(tokenizer, messages):\n"
        "    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)\n",
        3,
    ),
    "2 chinese": (
        2,
        "a.py",
        changed(PLAIN, "{row['question']}\\n", "问题：{row['question']}\\n回答："),
        3,
    ),
    "3 damaged": (
        3,
        "a.py",
        "HEAD = '<|im_start|>user\\n{q}<|im_end>\\n'\n\n\ndef ask(llm, q):\n    return llm.generate(HEAD.format(q=q))\n",
        1,
    ),
    "3 another family's": (
        3,
        "a.py",
        "from vllm import LLM\nllm = LLM('Qwen/Qwen2.5-7B-Instruct')\n"
        "print(llm.generate('<|start_header_id|>user<|end_header_id|>\\n\\nhello<|eot_id|>'))\n",
        3,
    ),
    "3 stop word": (
        3,
        "a.py",
        "from vllm import LLM, SamplingParams\nllm = LLM('google/gemma-2-2b-it')\n"
        "llm.chat([], SamplingParams(stop=['<|im_end|>']))\n",
        3,
    ),
    "4 mask": (
        4,
        "a.py",
        "def collate(rows, tokenizer):\n    tokenizer.pad_token = tokenizer.eos_token\n"
        "    ids = tokenizer.pad({'input_ids': rows}, return_tensors='pt')['input_ids']\n"
        "    return {'input_ids': ids, 'attention_mask': (ids != tokenizer.pad_token_id).long()}\n",
        4,
    ),
    "4 labels": (
        4,
        "a.py",
        "def collate(batch, tok):\n    tok.pad_token_id = tok.eos_token_id\n    labels = batch['input_ids'].clone()\n"
        "    labels[labels == tok.pad_token_id] = -100\n    return labels\n",
        4,
    ),
    "4 ne": (
        4,
        "a.py",
        "def mask_of(ids, tokenizer):\n    mask = ids.ne(tokenizer.pad_token_id)\n    return mask\n",
        2,
    ),
    "4 the library's collator": (
        4,
        "a.py",
        "from transformers import AutoTokenizer, DataCollatorForLanguageModeling\n"
        "tok = AutoTokenizer.from_pretrained('x')\ntok.pad_token = tok.eos_token\n"
        "collator = DataCollatorForLanguageModeling(tok, mlm=False)\n",
        4,
    ),
    "5 lists": (
        5,
        "a.py",
        "def encode(row, tokenizer):\n    prompt = row['q'] + '\\n'\n    whole = prompt + row['a'] + tokenizer.eos_token\n"
        "    p = tokenizer(prompt)['input_ids']\n    f = tokenizer(whole)['input_ids']\n"
        "    return {'input_ids': f, 'labels': [-100] * len(p) + f[len(p):]}\n",
        6,
    ),
    "5 assigned": (
        5,
        "a.py",
        "def encode(messages, tokenizer):\n    ids = tokenizer.apply_chat_template(messages)\n"
        "    start = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)\n"
        "    labels = list(ids)\n    labels[: len(start)] = [-100] * len(start)\n"
        "    tokenizer('')\n    return {'input_ids': ids, 'labels': labels}\n",
        5,
    ),
    "6 slices": (
        6,
        "a.py",
        changed(COLLATOR, "    if len(input_ids) > 512:\n        return None\n", "    input_ids = input_ids[:512]\n"),
        14,
    ),
    "6 option": (6, "a.py", changed(PLAIN, "tokenizer(text)", "tokenizer(text, truncation=True, max_length=512)"), 4),
    "7 option": (7, "a.sh", "python -m vllm.entrypoints.openai.api_server --model m \\\n  --adapter out/adapter\n", 1),
    "7 equals": (7, "a.txt", "vllm serve m --adapter=out/adapter\n", 1),
    "7 docker": (7, "a.sh", "docker run --gpus all vllm/vllm-openai --model m --lora-path out\n", 1),
    "7 subprocess": (
        7,
        "a.py",
        "import subprocess\nsubprocess.run(['vllm', 'serve', 'm', '--adapter', 'out'])\n",
        2,
    ),
    "7 name": (7, "a.py", changed(CLIENT, "model=name", 'model="any-name"').replace("client.models.list()", "x"), 6),
    "7 name in curl": (
        7,
        "a.sh",
        "vllm serve out/merged --served-model-name tuned\n"
        "curl http://localhost:8000/v1/chat/completions -d '{\n"
        '  "model": "tuned-2", "messages": []\n}\'\n',
        2,
    ),
    "8 merge": (
        8,
        "a.py",
        changed(MERGE, "torch.testing.assert_close(merged(**probe).logits, before, atol=0.05, rtol=0)\n", "").replace(
            "before = trained(**probe).logits\n", ""
        ),
        8,
    ),
    "8 dtype": (8, "a.sh", "vllm serve Qwen/Qwen3-8B --dtype half\n", 1),
    "8 training": (8, "a.py", changed(TRAIN, 'dtype="bfloat16"', "torch_dtype=torch.float16"), 12),
    "9 digits": (9, "a.py", "import json\nfrom scripts.2_rows import encode\nprint(encode)\n", 2),
    "9 labels": (
        9,
        "a.py",
        "def collate(rows, tokenizer):\n"
        "    batch = {'input_ids': [r['input_ids'] for r in rows], 'labels': [r['labels'] for r in rows]}\n"
        "    return tokenizer.pad(batch, return_tensors='pt')\n",
        3,
    ),
    "9 columns": (
        9,
        "a.py",
        changed(TRAIN, ".map(encode)", "").replace("DataCollatorForSeq2Seq(tokenizer)", "encode"),
        17,
    ),
    "9 arguments": (9, "a.py", changed(TRAIN, "eval_strategy", "evaluation_strategy"), 16),
    "9 four bits": (
        9,
        "a.py",
        changed(TRAIN, "quantization_config=BitsAndBytesConfig(load_in_4bit=True)", "load_in_4bit=True"),
        12,
    ),
    "9 targets": (9, "a.py", changed(TRAIN, ', target_modules="all-linear"', ""), 14),
    "9 python 2": (9, "a.py", "print 'hello'\n", 1),
    "10 nothing held out": (
        10,
        "a.py",
        changed(TRAIN, ' eval_dataset=rows["test"],', "").replace("print(trainer.evaluate())\n", ""),
        21,
    ),
    "10 nothing before": (
        10,
        "a.py",
        changed(TRAIN, "print(trainer.evaluate())\ntrainer.train()\n", "trainer.train()\n"),
        21,
    ),
}

FAULTY |= {
    "1 and no labels of its own": (
        1,
        "a.py",
        "from trl import DataCollatorForLanguageModeling\n\n\ndef render(row):\n"
        "    return {'text': f\"{row['q']} {row['a']}\"}\n\n\n"
        "rows = rows.map(render).map(lambda row: tokenizer(row['text']))\ncollate = DataCollatorForLanguageModeling(0)\n",
        8,
    ),
    "2 by a function of the trainer's": (
        2,
        "a.py",
        "def render(row):\n    return f\"### Instruction:\\n{row['q']}\\n### Response:\\n{row['a']}\"\n\n\n"
        "trainer = SFTTrainer('base', eval_dataset=held, train_dataset=rows, formatting_func=render)\n"
        "trainer.evaluate()\ntrainer.train()\ntrainer.evaluate()\n",
        2,
    ),
    "5 by a helper and a number": (
        5,
        "a.py",
        "def ids_of(text):\n    return tokenizer(text + tokenizer.eos_token)['input_ids']\n\n\ndef encode(row):\n"
        "    whole = ids_of(render(row['q'], row['a']))\n    start = len(ids_of(render(row['q'])))\n"
        "    return {'input_ids': whole, 'labels': [-100] * start + whole[start:]}\n",
        8,
    ),
    "5 by a shape": (
        5,
        "a.py",
        "def encode(turns, tokenizer):\n    whole = tokenizer.apply_chat_template(turns, tokenize=False)\n"
        "    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False)\n"
        "    ids = tokenizer(whole, return_tensors='pt').input_ids\n"
        "    n = tokenizer(prompt, return_tensors='pt').input_ids.shape[1]\n"
        "    labels = ids.clone()\n    labels[:, :n] = -100\n    return ids, labels\n",
        7,
    ),
    "7 in a file of docker": (
        7,
        "a.yaml",
        "services:\n  llm:\n    image: vllm/vllm-openai\n    command:\n      - --model\n      - m\n      - --adapter\n",
        4,
    ),
    "7 beside redirections": (
        7,
        "a.sh",
        "nohup vllm serve m --served-model-name a > log 2>&1 &\n"
        'curl localhost:8000/v1/completions -d "{\\"model\\": \\"b\\", \\"prompt\\": \\"x\\"}"\n',
        2,
    ),
    "7 by requests": (
        7,
        "a.py",
        "import requests\nurl = 'http://localhost:8000/v1/chat/completions'\n"
        "requests.post(url, json={'model': 'my-model', 'messages': []})\n",
        3,
    ),
    "9 no collator": (
        9,
        "a.py",
        changed(TRAIN, "    data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer,\n", "")
        .replace("from rows import encode\n", "")
        .replace("rows = load", PLAIN.replace(", tokenizer)", ")").strip() + "\n\n\nrows = load"),
        22,
    ),
    "9 removed from Trainer": (9, "a.py", changed(TRAIN, "processing_class=tokenizer", "tokenizer=tokenizer"), 19),
    "10 a loop": (
        10,
        "a.py",
        "model = AutoModelForCausalLM.from_pretrained('m')\nfor batch in batches:\n    loss = model(**batch).loss\n"
        "    loss.backward()\n    optimizer.step()\n    optimizer.zero_grad()\n",
        4,
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_each_fault_is_found_with_its_line_and_no_other_with_it(case: str, tmp_path: Path) -> None:
    number, name, text, line = FAULTY[case]
    findings = checking.check([write(tmp_path, name, text)])
    assert [finding.code for finding in findings] == [f"seed_fault_{number}"]
    assert str(line) in findings[0].lines
    assert findings[0].text.count("\n") == 0 and findings[0].next


# What looks like a fault, and is none.
FINE = {
    "own template that completions ask with": (
        "a.py",
        "TEXT = '### Question:\\n{q}\\n### Answer:\\n'\n\n\ndef encode(row, tokenizer):\n"
        "    ids = tokenizer(TEXT.format(q=row['q']) + row['a'] + tokenizer.eos_token)['input_ids']\n"
        "    return {'input_ids': ids, 'labels': ids}\n\n\ndef ask(client, name, q):\n"
        "    return client.completions.create(model=name, prompt=TEXT.format(q=q))\n",
    ),
    "own template that is the chat template": (
        "a.py",
        "def encode(row, tokenizer):\n    tokenizer.chat_template = open('t.jinja').read()\n"
        "    text = '### Question:\\n' + row['q'] + '\\n### Answer:\\n' + row['a'] + tokenizer.eos_token\n"
        "    ids = tokenizer(text)['input_ids']\n    return {'input_ids': ids, 'labels': ids}\n",
    ),
    "padding with a token of its own": (
        "a.py",
        "def collate(ids, tokenizer):\n    tokenizer.add_special_tokens({'pad_token': '<|pad|>'})\n"
        "    mask = ids != tokenizer.pad_token_id\n    return mask\n",
    ),
    "a beginning that is compared": (
        "a.py",
        "def encode(row, tokenizer):\n    prompt = row['q'] + '\\n'\n    whole = prompt + row['a'] + tokenizer.eos_token\n"
        "    p = tokenizer(prompt)['input_ids']\n    f = tokenizer(whole)['input_ids']\n"
        "    assert f[:len(p)] == p\n    return {'input_ids': f, 'labels': [-100] * len(p) + f[len(p):]}\n",
    ),
    "long rows are counted": (
        "a.py",
        "def encode(row, tokenizer, counts):\n    ids = tokenizer(row['q'] + row['a'] + tokenizer.eos_token).input_ids\n"
        "    if len(ids) > 512:\n        counts['cut'] += 1\n        ids = ids[:512]\n"
        "    return {'input_ids': ids, 'labels': ids}\n",
    ),
    "long rows are filtered": (
        "a.py",
        changed(PLAIN, "tokenizer(text)", "tokenizer(text, truncation=True, max_length=512)")
        + "\n\nrows = rows.filter(lambda row: len(row['text']) < 512)\n",
    ),
    "a prompt that is cut for an answer": (
        "a.py",
        "def answer(model, tokenizer, prompt):\n"
        "    return model.generate(**tokenizer(prompt, truncation=True, max_length=512))\n",
    ),
    "tokens of every family": (
        "a.py",
        "STOPS = {'Qwen2.5': '<|im_end|>', 'Llama-3': '<|eot_id|>'}\nmodel.generate(stop=STOPS[name])\n",
    ),
    "llama's tokens for llama": (
        "a.py",
        f"from vllm import LLM\nllm = LLM('meta-llama/Llama-3.1-8B-Instruct')\nllm.generate({LLAMA_ROW})\n",
    ),
    "a plain adapter is merged": ("a.py", "merged = model.merge_and_unload()\nmerged.save_pretrained('out')\n"),
    "served in float16 as trained": ("a.sh", "vllm serve out/merged --dtype float16\n"),
    "a name that the server has": (
        "a.sh",
        "vllm serve m --served-model-name my-model\n"
        'curl localhost:8000/v1/completions --json \'{"model": "my-model", "prompt": "x"}\'\n',
    ),
    "another server": (
        "a.py",
        "from openai import OpenAI\nclient = OpenAI()\nclient.chat.completions.create(model='gpt-4o', messages=[])\n",
    ),
    "labels are filled up by hand": (
        "a.py",
        "def collate(rows, tokenizer):\n    n = max(len(r['labels']) for r in rows)\n"
        "    labels = [r['labels'] + [-100] * (n - len(r['labels'])) for r in rows]\n"
        "    return tokenizer.pad({'input_ids': [r['input_ids'] for r in rows], 'labels': labels})\n",
    ),
    "columns are kept": (
        "a.py",
        changed(TRAIN, ".map(encode)", "")
        .replace("DataCollatorForSeq2Seq(tokenizer)", "encode")
        .replace("bf16=True,", "bf16=True, remove_unused_columns=False,"),
    ),
    "a mode of a model": ("a.py", "model.train()\nfor batch in batches:\n    step(model, batch)\n"),
    "measured at the start and on": (
        "a.py",
        changed(TRAIN, "print(trainer.evaluate())\n", "").replace("bf16=True,", "bf16=True, eval_on_start=True,"),
    ),
    "offsets": (
        "a.py",
        "def encode(row, tokenizer):\n    prompt = f\"<|im_start|>user\\n{row['q']}<|im_end|>\\n<|im_start|>assistant\\n\"\n"
        "    coded = tokenizer(prompt + row['a'] + '<|im_end|>', return_offsets_mapping=True)\n"
        "    pairs = zip(coded['input_ids'], coded['offset_mapping'])\n"
        "    return {'labels': [token if start >= len(prompt) else -100 for token, (start, _) in pairs]}\n",
    ),
    "a trainer that renders and ends rows itself": (
        "a.py",
        "from trl import SFTConfig, SFTTrainer\n"
        "trainer = SFTTrainer('m', args=SFTConfig('out', max_length=2048), train_dataset=rows, eval_dataset=held)\n"
        "trainer.evaluate()\ntrainer.train()\ntrainer.evaluate()\n",
    ),
    "a classifier": (
        "a.py",
        "model = AutoModelForSequenceClassification.from_pretrained('m')\n\n\ndef encode(row):\n"
        "    coded = tokenizer(row['title'] + row['answer'], truncation=True)\n    coded['labels'] = row['label']\n"
        "    return coded\n\n\ncollate = DataCollatorWithPadding(tokenizer)\n",
    ),
    "a loop that measures": (
        "a.py",
        "model = AutoModelForCausalLM.from_pretrained('m')\nprint(evaluate(model, held))\nfor batch in batches:\n"
        "    model(**batch).loss.backward()\n    optimizer.step()\n    optimizer.zero_grad()\nprint(evaluate(model, held))\n",
    ),
    "tokens with one bar": (
        "a.py",
        "TURN = '<|turn>user\\n{q}<turn|>\\n<|channel>thought<channel|>'\nllm.generate(TURN)\n",
    ),
    "comments and docstrings": ("a.py", '"""Do not write <|end_header_id> by hand."""\n# vllm serve m --adapter x\n'),
}


@pytest.mark.parametrize("case", FINE)
def test_what_only_looks_like_a_fault_is_none(case: str, tmp_path: Path) -> None:
    assert codes(write(tmp_path, *FINE[case])) == []


def test_a_fault_that_shows_only_beside_another_file(tmp_path: Path) -> None:
    rows = write(
        tmp_path, "rows.py", "def mask(ids, tokenizer):\n    mask = ids != tokenizer.pad_token_id\n    return mask\n"
    )
    own = write(tmp_path, "own.py", "tokenizer.pad_token = '<|pad|>'\n")
    same = write(tmp_path, "same.py", "tokenizer.pad_token = tokenizer.eos_token\n")
    assert codes(rows, own) == []
    assert codes(rows, same) == [4]
    serve = write(tmp_path, "serve.sh", "vllm serve out/merged --served-model-name tuned\n")
    client = write(
        tmp_path, "client.py", changed(CLIENT, "model=name", "model='base'").replace("client.models.list()", "x")
    )
    assert codes(client) == [] and codes(client, serve) == [7]


def test_a_notebook_with_magic_lines_has_its_cells_and_lines(tmp_path: Path) -> None:
    cells = [
        '{"cell_type": "markdown", "source": ["text"]}',
        '{"cell_type": "code", "source": ["%pip install x\\n", "!vllm serve m --adapter a\\n", "x = 1"]}',
        '{"cell_type": "code", "source": "import a\\nfrom 1_b import c"}',
        '{"cell_type": "code", "source": "files = !ls\\n!vllm serve m \\\\\\n  --dtype auto\\n%time x = 1"}',
        '{"cell_type": "code", "source": ["%%bash\\n", "vllm serve m --adapter b"]}',
    ]
    notebook = write(tmp_path, "a.ipynb", '{"cells": [' + ",".join(cells) + "]}")
    findings = checking.check([notebook])
    assert [(f.code, f.lines) for f in findings] == [
        ("seed_fault_7", ("cell 2, line 2",)),
        ("seed_fault_7", ("cell 5, line 2",)),
        ("seed_fault_9", ("cell 3, line 2",)),
    ]


def test_the_code_blocks_of_a_document_have_its_lines(tmp_path: Path) -> None:
    text = f"# Title\n\n```bash\n{SERVE.replace('--lora-modules', '--adapter')}```\n\n- item:\n\n  ```python\n  from 1_a import b\n  ```\n"
    findings = checking.check([write(tmp_path, "a.md", text)])
    assert [(f.code, f.lines) for f in findings] == [("seed_fault_7", ("4",)), ("seed_fault_9", ("10",))]


@pytest.mark.parametrize("encoding", ["gbk", "utf-8-sig", "utf-16"])
def test_other_encodings_are_read(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(("# 这是训练脚本，其中的注释是中文\n" * 20 + "from 1_a import b\n").encode(encoding))
    assert codes(file) == [9]


def test_what_is_no_script_is_one_line(tmp_path: Path) -> None:
    large = tmp_path / "large.py"
    large.write_bytes(b"#" * (script_text.LARGEST + 1))
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\x00\x01" * 100)
    broken = write(tmp_path, "a.ipynb", "{")
    for file in (large, binary, broken, tmp_path / "missing.py"):
        with pytest.raises(UserError) as error:
            checking.check([file])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", "total = " + " + ".join(["1"] * 900), []),
        ("a.py", "x = " + "(" * 3000 + ")" * 3000, [9]),
        ("a.py", "from .1_a import b\n", [9]),
        ("a.txt", "[INST]" * 200_000, []),
        ("a.sh", "curl -d \"never closed\nvllm serve '", []),
        ("a.py", "", []),
    ],
)
def test_odd_scripts_are_read_as_far_as_they_go(name: str, text: str, expected: list[int], tmp_path: Path) -> None:
    assert codes(write(tmp_path, name, text)) == expected


def test_our_own_stages_have_no_fault() -> None:
    lockstep = ROOT / "scripts/lockstep"
    files = [*(ROOT / "scripts").glob("*.*"), lockstep / "training", lockstep / "data/encoding.py"]
    assert [finding.text for finding in checking.check(files)] == []


def fields_of(file: str, name: str) -> set[str]:
    """The fields of a class of the installed transformers, or the arguments of its constructor; it is not imported."""
    (folder,) = (Path(place) for place in transformers_folders())
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    constructors = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return fields | {argument.arg for node in constructors for argument in node.args.args}


def transformers_folders() -> list[str]:
    spec = importlib.util.find_spec("transformers")
    assert spec and spec.submodule_search_locations
    return list(spec.submodule_search_locations)


def test_the_arguments_that_are_said_to_be_gone_are_gone_from_the_installed_library() -> None:
    arguments = fields_of("training_args.py", "TrainingArguments")
    assert not set(library_faults.OF_TRAINING_ARGUMENTS) & arguments
    assert not set(library_faults.OF_TRAINER) & fields_of("trainer.py", "Trainer")
    for instead in library_faults.OF_TRAINING_ARGUMENTS.values():
        first = instead.replace(":", ",").split(",")[0]
        assert first in arguments or first == "nothing" or first.startswith("the environment"), first
