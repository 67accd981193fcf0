"""The catalogues match the code, and messages come out in the reader's language."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
from support.programs import ROOT, Ended, run

from lockstep.settings import tree
from lockstep.text import language

SCRIPTS = ROOT / "scripts"
FOLDER = SCRIPTS / "lockstep/text" / language.CHINESE
CATALOGUES = sorted(FOLDER.glob("*.json"))
MESSAGES = [file for file in CATALOGUES if file.name not in (language.PAGES, "libraries.json")]
PAGES = sorted((SCRIPTS / "lockstep").rglob("*.html"))
PHRASE = re.compile(r"""\b_\((?:"([^"]+)"|'([^']+)')""")


def entries(file: Path) -> dict[str, str]:
    """A catalogue; fails where a key stands twice."""

    def unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), [key for key in keys if keys.count(key) > 1]
        return dict(pairs)

    catalogue: dict[str, str] = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
    return catalogue


def joined(text: str) -> str:
    """A text as it is compared: placeholders side by side are one, and what joins it to the text before is left out."""
    return re.sub(r"(\{\})+", "{}", text).strip(" :;,")


@functools.cache
def texts_of_code() -> frozenset[str]:
    """Every text that stands in the code, with {} for what is filled in."""
    texts = set()
    for file in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                texts.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"\{[^{}]*\}", "{}", node.value))
    return frozenset(joined(line) for text in texts for line in (text, *text.split("\n")))


def phrases_of_pages() -> set[str]:
    return {double or single for file in PAGES for double, single in PHRASE.findall(file.read_text(encoding="utf-8"))}


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "zh")


@pytest.mark.parametrize("file", MESSAGES, ids=lambda file: file.name)
def test_every_message_of_a_catalogue_stands_in_the_code(file: Path) -> None:
    texts = texts_of_code()
    assert [key for key in entries(file) if joined(language.PLACEHOLDER.sub("{}", key)) not in texts] == []


def test_every_phrase_of_the_pages_is_translated_and_no_other() -> None:
    known, python = entries(FOLDER / language.PAGES), texts_of_code()
    assert sorted(phrases_of_pages() - known.keys()) == []
    unused = [key for key in known if key not in phrases_of_pages()]
    assert [key for key in unused if joined(language.PLACEHOLDER.sub("{}", key)) not in python] == []


@pytest.mark.parametrize("file", CATALOGUES, ids=lambda file: file.name)
def test_a_translation_has_the_placeholders_of_its_text(file: Path) -> None:
    for text, translation in entries(file).items():
        names = language.PLACEHOLDER.findall(text)
        assert len(names) == len(set(names)), text
        assert set(language.PLACEHOLDER.findall(translation)) == set(names), text
        assert translation and (text == text.strip() or file.name == language.PAGES), text


def test_a_message_of_a_catalogue_is_found_whole_and_comes_out_in_chinese(chinese: None) -> None:
    for file in CATALOGUES:
        for text, translation in entries(file).items() if file.name != language.PAGES else ():
            names = language.PLACEHOLDER.findall(text)
            values = {name: f"value{number}" for number, name in enumerate(names)}
            assert language.translated(text.format(**values)) == translation.format(**values), text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, "zh"),
        ({"LC_ALL": "", "LANG": "zh"}, "zh"),
    ],
)
def test_the_language_is_that_of_the_locale(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in language.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language.current() == expected


def test_help_is_in_the_language_that_is_asked_for() -> None:
    """Of every setting, whatever stands before --help."""
    texts = entries(FOLDER / "help.json")
    described = [str(field.description) for _, field in tree.leaves()]
    untranslated = [text for text in described if " " in text and text not in texts]
    assert untranslated == []
    shown = run(ROOT, "02_train_qlora.py", "--lang", "zh", "--help").stdout
    assert "用法：" in shown and "\n选项:" in shown and texts["peak learning rate"] in shown
    assert "阶段 02：" in shown and "Writes  outputs/<run>/adapter/ : adapter_model.safetensors" in shown
    assert "options:" in run(ROOT, "02_train_qlora.py", "--lang", "en", "--help").stdout


def test_values_inside_a_message_stay_and_messages_inside_it_are_translated(chinese: None) -> None:
    assert language.translated("outputs/r/data is up to date (1a2b)") == "outputs/r/data 已是最新（1a2b）"
    assert language.translated("error: outputs/r/data is up to date (1a2b)\n  a line\n") == (
        "错误：outputs/r/data 已是最新（1a2b）\n  a line\n"
    )
    assert language.translated("error: something that nobody translated") == "error: something that nobody translated"
    assert language.translated("note") == "note"  # a word may be anybody's name
    many = "is up to date (" * 20_000
    assert language.translated(many) == many


def test_english_is_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_entries", None)
    assert language.translated("outputs/r/data is up to date (1a2b)") == "outputs/r/data is up to date (1a2b)"


def test_scripts_speak_the_language_of_the_locale_or_of_their_option(tmp_path: Path) -> None:
    def stderr(*words: str, **extra: str) -> str:
        ended: Ended = run(tmp_path, "03_merge_lora.py", "--run", "none-yet", *words, **extra)
        assert ended.returncode == 2
        return ended.stderr

    assert stderr().startswith("error: ")
    chinese = stderr("--lang", "zh")
    assert chinese.startswith("错误：outputs/none-yet/adapter 不存在（没有 manifest.json）：请先执行 `make train ")
    assert stderr(LC_ALL="zh_CN.UTF-8").startswith("错误：")
    assert stderr("--lang", "en", LC_ALL="zh_CN.UTF-8").startswith("error: ")


def test_a_message_of_several_pieces_is_translated_as_far_as_it_is_known(chinese: None) -> None:
    message = (
        "error: 5 of 6 rows were dropped (bad_utf8 5), more than --data.max_reject_share 0.2: save the file as UTF-8; "
        "a/b.jsonl:1: bad_utf8, byte 18 of the line; see outputs/r/data.failed/rejects.jsonl and preview.html beside it"
    )
    assert language.translated(message) == (
        "错误：6 行中剔除了 5 行（bad_utf8 5），超过 --data.max_reject_share 0.2：请把文件另存为 UTF-8；"
        "a/b.jsonl:1：bad_utf8，该行第 18 字节；详见 outputs/r/data.failed/rejects.jsonl 和旁边的 preview.html"
    )


def test_of_two_entries_that_fit_the_one_is_taken_that_leaves_less_over(chinese: None) -> None:
    message = "no row is left for validation (1 rows read, dropped: none)"
    assert language.translated(message) == "validation 一行也没剩下（共读取 1 行，剔除：none）"


def test_commands_are_never_translated(chinese: None) -> None:
    message = "outputs/r/adapter is missing (no manifest.json): run `make train ARGS='is missing'` first"
    assert "`make train ARGS='is missing'`" in language.translated(message)


def test_commands_to_be_pasted_are_no_words_left_over(chinese: None) -> None:
    assert language.translated("next: `make serve CONFIG=a.yaml`, `make evaluate ARGS='--run b'`") == (
        "下一步：`make serve CONFIG=a.yaml`, `make evaluate ARGS='--run b'`"
    )


def test_a_message_deep_inside_others_is_translated(chinese: None) -> None:
    message = (
        "error: 5 of 6 rows were dropped (bad_utf8 5), more than --data.max_reject_share 0.2: save the file as UTF-8; "
        "a/b.jsonl:1: bad_utf8, byte 18 of the line; it looks like GBK: convert it with `iconv -f GB18030 -t UTF-8 "
        "OLD > NEW`; see outputs/r/data.failed/rejects.jsonl and preview.html beside it"
    )
    assert "第 18 字节；看起来是 GBK 编码：请用 `iconv" in language.translated(message)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("interrupted", "已中断"),
        ("terminated after step 12 of 40", "训练在第 12 步（共 40 步）之后终止"),
    ],
)
def test_an_interruption_says_in_chinese_what_remains(chinese: None, what: str, expected: str) -> None:
    remains = "outputs/r/checkpoints/checkpoint-10 remains, and the same command goes on from there"
    assert language.translated(f"error: {what}; {remains}") == (
        f"错误：{expected}；留有 outputs/r/checkpoints/checkpoint-10，重新执行同一条命令即可从那里接着训练"
    )


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ("proof 2 of 4 (stops): 50 of 65 answered", "第 2 项检验，共 4 项（停止符）：65 个问题已答 50 个"),
        ("vLLM loads the model: 31 s so far, of at most 900", "vLLM 正在加载模型：已用 31 秒，最多 900 秒"),
    ],
)
def test_how_far_a_start_is_comes_out_in_order(chinese: None, progress: str, expected: str) -> None:
    assert language.translated(progress) == expected


def test_what_the_gate_has_found_is_translated_part_by_part(chinese: None) -> None:
    message = (
        "in lockstep: 47 golden prompts are the tokens of training, log-probabilities within 0.0243 nats a token of "
        "the trained model's, effect of the training 1.00 of 1, 100% of answers end by themselves (a/gate_report.json)"
    )
    assert language.translated(message) == (
        "步调一致：47 条标准提示词与训练时的 token 相同，对数概率与训练出来的模型平均每个 token 相差不超过 0.0243 nat，"
        "训练的效果为 1.00（满分 1），100% 的回答自行停止（a/gate_report.json）"
    )


def test_a_setting_of_a_config_is_named_in_chinese(chinese: None) -> None:
    assert language.translated("error: train.lr in a.yaml: no such setting (did you mean train.learning_rate?)") == (
        "错误：a.yaml 里的 train.lr：没有这个设置（是不是想写 train.learning_rate？）"
    )
    assert language.translated(
        "error: train.seed in a.yaml: input should be a valid number, unable to parse string as a number (got 'x')"
    ) == ("错误：a.yaml 里的 train.seed：应为数字（给的是 'x'）")
