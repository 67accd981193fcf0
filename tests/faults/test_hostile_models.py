"""Models made to harm: refused before anything of theirs runs, in bounded time and memory, with one line."""

import json
import multiprocessing
import os
import pickle
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from support import hub as hub_stub
from support.edits import edit_json

from lockstep.errors import UserError
from lockstep.model import inspection
from lockstep.prompts import template
from lockstep.settings.tree import Data

pytestmark = pytest.mark.promise("Models made to harm are refused before anything of theirs runs")

LONGEST = 60  # seconds that a test allows; what is measured and printed is far below, on a machine that is not busy
Change = Callable[[Path], None]


@pytest.fixture
def hostile(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_model, folder)
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What a model's code would make, were it run."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


class Bomb:
    """An object whose unpickling runs a program."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def edit(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda folder: edit_json(folder / name, change)


def put(name: str, text: str | bytes) -> Change:
    return lambda folder: void((folder / name).write_bytes(text if isinstance(text, bytes) else text.encode()))


def void(_: object) -> None:
    pass


def header(text: str, payload: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + payload


def grow(name: str, mebibytes: int) -> Change:
    return lambda folder: os.truncate(folder / name, mebibytes * 2**20)


def tensors(**entries: list[int]) -> bytes:
    made = {n: {"dtype": "U8", "shape": [e[1] - e[0]], "data_offsets": e} for n, e in entries.items()}
    return header(json.dumps(made))


def loop(body: str, depth: int = 3) -> str:
    opened = "".join("{% for i" + str(n) + " in range(99999) %}" for n in range(depth))
    return opened + body + "{% endfor %}" * depth


# name → (what is done to a sound model, what must be said of it); each is refused by stage 00's inspection.
BYTES: dict[str, tuple[Change, str]] = {
    "auto_map": (edit("config.json", lambda c: c | {"auto_map": {"AutoModel": "evil.Model"}}), "auto_map"),
    "auto_map_of_the_tokenizer": (
        edit("tokenizer_config.json", lambda c: c | {"auto_map": {"AutoTokenizer": ["evil.T", None]}}), "auto_map"),
    "auto_map_inside": (edit("config.json", lambda c: c | {"text_config": {"auto_map": "evil.Model"}}), "auto_map"),
    "auto_map_in_generation": (put("generation_config.json", '{"a": [{"auto_map": {"x": "evil"}}]}'), "auto_map"),
    "a_key_twice": (put("config.json", '{"model_type": "llama", "model_type": "qwen2"}'), "stands twice"),
    "auto_map_twice": (put("config.json", '{"auto_map": {"AutoModel": "evil.M"}, "auto_map": null}'), "stands twice"),
    "nested_without_end": (put("config.json", "[" * 10**6), "nested without end"),
    "nested_objects": (put("generation_config.json", '{"a":' * 10**5), "nested without end"),
    "huge_config": (grow("config.json", 17), "more than 16 MiB"),
    "huge_template": (put("chat_template.jinja", "x" * (2**20 + 1)), "more than 1 MiB"),
    "config_is_a_list": (put("config.json", "[]"), "holds no JSON object"),
    "tokenizer_is_a_number": (put("tokenizer.json", "1"), "holds no JSON object"),
    "not_utf8": (put("config.json", b'{"model_type": "\xff"}'), "not JSON"),
    "a_number_of_5000_digits": (put("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), "not JSON"),
}  # fmt: skip
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"
TRIED: dict[str, tuple[Change, str]] = {
    "index_to_the_parent": (put(INDEX, '{"weight_map": {"a": "../model.safetensors"}}'), "shards that are not there"),
    "index_to_the_root": (put(INDEX, '{"weight_map": {"a": "/etc/passwd"}}'), "shards that are not there"),
    "index_of_lists": (put(INDEX, '{"weight_map": {"a": ["model.safetensors"]}}'), "shards that are not there"),
    "index_is_a_list": (put(INDEX, "[]"), "shards that are not there"),
    "header_longer_than_the_file": (put("model.safetensors", header("{}", length=10**9)), "is damaged"),
    "header_of_2_to_63": (put("model.safetensors", header("{}", length=2**63 - 1)), "is damaged"),
    "overlapping_tensors": (put("model.safetensors", tensors(a=[0, 40], b=[24, 64])), "is damaged"),
    "a_hole_between_tensors": (put("model.safetensors", tensors(a=[0, 10], b=[20, 64])), "is damaged"),
    "negative_offsets": (put("model.safetensors", header(
        '{"a": {"dtype": "U8", "shape": [64], "data_offsets": [-64, 0]}}')), "is damaged"),
    "tensor_past_the_end": (put("model.safetensors", header(
        '{"a": {"dtype": "U8", "shape": [1000], "data_offsets": [0, 1000]}}')), "is damaged"),
    "shape_that_overflows": (put("model.safetensors", header(
        '{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 64]}}')), "is damaged"),
    "header_nested_without_end": (put("model.safetensors", header("[" * 10**6)), "is damaged"),
    "weights_are_a_pickle": (lambda f: void((f / "model.safetensors").write_bytes(pickle.dumps(Bomb(f.parent / "canary")))), "is damaged"),
    "no_model_type": (put("config.json", "{}"), "no model that transformers can load"),
    "wrong_types": (edit("config.json", lambda c: c | {"hidden_size": "many", "num_attention_heads": [1]}), "."),
    "negative_sizes": (edit("config.json", lambda c: c | {"hidden_size": -64}), "."),
    "quantized_already": (edit("config.json", lambda c: c | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
                          r"the model is quantized already \(bitsandbytes\)"),
    "billions_of_layers": (edit("config.json", lambda c: c | {"num_hidden_layers": 10**9}), "."),
    "a_layer_more_than_there_is": (edit("config.json", lambda c: c | {"num_hidden_layers": 3}), "the weights of the model lack"),
    "another_hidden_size": (edit("config.json", lambda c: c | {"hidden_size": 128}), "no model that transformers can load"),
    "vocabulary_of_10_to_12": (edit("config.json", lambda c: c | {"vocab_size": 10**12}), "no model that transformers can load"),
    "generation_nonsense": (put("generation_config.json", '{"temperature": {"a": 1}, "max_new_tokens": "many", "num_beams": -7, "cache_implementation": 3}'), "no model that transformers can load"),
    "template_that_indents_for_ever": (put(TEMPLATE, "{{ messages | tojson(indent='x' * 10**10) }}"), "chat template"),
    "endless_template": (put(TEMPLATE, loop("")), "chat template of the model took too much"),
    "endless_template_for_tools": (put(TEMPLATE, "{% if tools %}" + loop("") + "{% endif %}"), "chat template of the model took too much"),
    "endless_template_for_thinking": (put(TEMPLATE, "{% if enable_thinking is false %}" + loop("") + "{% endif %}"), "chat template of the model took too much"),
    "template_of_10_to_9_characters": (put(TEMPLATE, loop("a" * 1000, 2)), "chat template"),
    "template_that_multiplies": (put(TEMPLATE, "{{ 'a' * 10**9 }}"), "chat template"),
    "template_of_a_million_characters": (put(TEMPLATE, "{{ 'a' * 9999999 }}"), "characters of a short text"),
    "template_with_a_giant_power": (put(TEMPLATE, "{{ (7 ** (7 ** 11)) % 2 }}"), "chat template of the model took too much"),
    "tokenizer_whose_pattern_has_no_end": (edit("tokenizer.json", lambda t: t | {"pre_tokenizer": {
        "type": "Split", "pattern": {"Regex": "(a|a|aa|b?)+$"}, "behavior": "Isolated", "invert": False}}), "."),
    "tokenizer_that_normalizes_without_end": (edit("tokenizer.json", lambda t: t | {"normalizer": {
        "type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}] * 12}}), "tokenizer of the model"),
    "tokenizer_of_wrong_types": (edit("tokenizer.json", lambda t: t | {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": 3}}), "no model that transformers can load"),
}  # fmt: skip
FEW = {"index_to_the_root", "endless_template", "a_layer_more_than_there_is"}  # enough for every `make test`


@pytest.mark.parametrize("name", BYTES)
def test_what_its_bytes_show(hostile: Path, canary: Path, name: str) -> None:
    change, words = BYTES[name]
    change(hostile)
    with pytest.raises(UserError, match=words):
        inspection.check_model(hostile)


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.faults) for n in TRIED])
def test_what_its_use_would_do(
    hostile: Path, canary: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    change, words = TRIED[name]
    change(hostile)
    started = time.monotonic()
    with pytest.raises(UserError, match=words) as refused:
        inspection.check_model(hostile)
    seconds = time.monotonic() - started
    record_property("said", f"{seconds:.1f} s: {refused.value}")
    assert "\n" not in str(refused.value) and seconds < LONGEST
    assert not multiprocessing.active_children()


def no_change(_: Path) -> None:
    pass


FAR = {"id": 4 * 10**9, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}  # fmt: skip
HARMLESS: dict[str, Change] = {
    "sound": no_change,
    # as trainers elsewhere leave it: paths of their own machine, which nobody follows
    "paths_of_elsewhere": edit("tokenizer_config.json", lambda t: t | {"vocab_file": "/etc/passwd", "tokenizer_file": "../../etc/passwd"}),
    "a_word_of_the_vocabulary": put("vocab.json", '{"auto_map": 7}'),
    "a_class_of_no_tokenizer": edit("tokenizer_config.json", lambda t: t | {"tokenizer_class": "os.system"}),
    "an_id_past_all": edit("tokenizer.json", lambda t: t | {"added_tokens": [*t["added_tokens"], FAR]}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.faults] if n != "sound" else []) for n in HARMLESS]
)
def test_what_harms_nobody_passes(hostile: Path, canary: Path, name: str) -> None:
    HARMLESS[name](hostile)
    inspection.check_model(hostile)
    chat = template.load(hostile, (hostile / TEMPLATE).read_text())
    assert max(chat.encode(["a<x>b root"])[0]) < 512


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__.__base__ }}", "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os.system('true') }}", "{% extends 'a' %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "{{ 1 / 0 }}", "{{ 10.0 ** 400 }}", "{{ 'a'.encode('none') }}",
        "{{ messages.append(1) }}", "{{ range(10**9) | list }}", "{{ raise_exception('no') }}", "{% if %}", "{{ self.f() }}",
        "{{ '%c' % 1114112 }}", "{{ ''.format(a) }}{{ '{0.__class__}'.format(1) }}", "{{ [] | first | upper }}{{ {}['a'].b }}",
        "{{ namespace(a=1).b.c }}", "{{ 'a' | attr('__class__') | attr('mro') }}", "{{ dict(**1) }}",
    ],
)  # fmt: skip
def test_a_template_that_breaks_out_or_down_is_one_line(tiny_model: Path, text: str) -> None:
    with pytest.raises(UserError) as refused:
        template.load(tiny_model, text)
    assert "\n" not in " ".join(str(refused.value).split())


# --- stage 00 as a program ---

LOCAL = ("--model.source", "local", "--model.path", "hostile", "--model.name", "tiny")
HUB = ("--model.source", "hub", "--model.id", "org/tiny")


def refused_by_the_program(stage: Run, words: tuple[str, ...], **extra: str) -> str:
    answer = stage("00_download_model.py", *words, **extra)
    lines = [line for line in answer.stderr.splitlines() if line.startswith("error:")]
    assert answer.returncode == 2, answer.stderr
    assert len(lines) == 1 and "Traceback" not in answer.stderr
    return lines[0]


def only_pickles(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))


def test_weights_as_pickle_alone(stage: Run, hostile: Path, canary: Path, tmp_path: Path) -> None:
    only_pickles(hostile, canary)
    assert "pytorch_model.bin, which can run code" in refused_by_the_program(stage, LOCAL)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").glob("[!.]*"))


def odd_files(tmp_path: Path) -> dict[str, Change]:
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "canary"}')

    def link(name: str, target: Path) -> Change:
        return lambda folder: void(((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target)))

    return {
        "link_to_a_secret": link("generation_config.json", secret),
        "link_to_a_device": link("config.json", Path("/dev/zero")),
        "link_to_itself": link("config.json", Path("config.json")),
        "link_to_nothing": link("LICENSE", Path("nowhere")),
        "pipe": lambda folder: void(((folder / "config.json").unlink(), os.mkfifo(folder / "config.json"))),
        "folder": lambda folder: (folder / "odd.json").mkdir(),
    }


@pytest.mark.parametrize(
    "name", ["link_to_a_secret", "link_to_a_device", "link_to_itself", "link_to_nothing", "pipe", "folder"]
)
def test_a_local_model_of_odd_files(stage: Run, hostile: Path, tmp_path: Path, name: str) -> None:
    odd_files(tmp_path)[name](hostile)
    said = refused_by_the_program(stage, LOCAL)
    assert "is no regular file of the model's folder" in said
    assert not (tmp_path / "models/tiny").exists()


def test_a_local_model_with_a_name_that_is_no_text(stage: Run, hostile: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(hostile) + b"/caf\xe9.json")).write_text("{}")
    assert "a name that cannot be written down" in refused_by_the_program(stage, LOCAL)
    assert not (tmp_path / "models/tiny").exists()


@pytest.mark.faults
def test_a_snapshot_in_the_hubs_own_cache_is_links_and_is_taken(stage: Run, hostile: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--org--x/snapshots/c0", tmp_path / "models--org--x/blobs"
    snapshot.mkdir(parents=True)
    shutil.move(hostile, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    words = ("--model.source", "local", "--model.path", str(snapshot), "--model.name", "tiny")
    assert stage("00_download_model.py", *words).returncode == 0
    assert not any(path.is_symlink() for path in (tmp_path / "models/tiny").iterdir())


HUBS: dict[str, tuple[Callable[[dict[str, bytes], Path], None], str]] = {
    "path_to_the_parent": (lambda files, _: files.update({"../evil.json": b"{}"}), "no safe path"),
    "absolute_path": (lambda files, _: files.update({"/tmp/evil.json": b"{}"}), "no safe path"),
    "windows_path": (lambda files, _: files.update({"..\\evil.json": b"{}"}), "no safe path"),
    "line_break_in_a_name": (lambda files, _: files.update({"a\nb.json": b"{}"}), "no safe path"),
    "endless_template": (lambda files, _: files.update({TEMPLATE: loop("").encode()}), "chat template"),
    "auto_map_with_its_code": (lambda files, canary: files.update({
        "config.json": json.dumps(json.loads(files["config.json"]) | {"auto_map": {"AutoConfig": "evil.Config"}}).encode(),
        "evil.py": f"open({str(canary)!r}, 'w')".encode()}), "auto_map"),
    "name_of_300_characters": (lambda files, _: files.update({"a" * 300 + ".json": b"{}"}), "."),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", HUBS)
def test_a_hostile_repository_on_a_hub(stage: Run, hostile: Path, canary: Path, tmp_path: Path, name: str) -> None:
    change, words = HUBS[name]
    with hub_stub.serve(hostile) as hub:
        change(hub.files, canary)
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
        assert words in refused_by_the_program(stage, HUB, **settings)
    assert not (tmp_path / "models/tiny").exists() and not list(tmp_path.rglob("evil*"))


@pytest.mark.faults
def test_code_and_pickles_beside_sound_weights_are_left_behind(
    stage: Run, hostile: Path, canary: Path, tmp_path: Path
) -> None:
    (hostile / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    (hostile / "training_args.bin").write_bytes(pickle.dumps(Bomb(canary)))
    assert stage("00_download_model.py", *LOCAL).returncode == 0
    assert not {path.suffix for path in (tmp_path / "models/tiny").iterdir()} & {".py", ".bin"}
    assert stage("01_data_collator.py", *LOCAL, "--data.train_file", str(rows(tmp_path))).returncode == 0
    assert Data().template == "model" and sys.version


def rows(folder: Path) -> Path:
    from support import tiny

    return tiny.rows(folder / "rows.jsonl", 40)
