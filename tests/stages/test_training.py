"""Stage 02 as a program: kinds of training, interruption, exhaustion, several processes."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import programs, rounding, tiny
from support.programs import ROOT, script_environment

SHORT = (
    "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2", "--train.max_steps", "8",
    "--train.save_steps", "4", "--train.eval_steps", "4", "--train.learning_rate", "1e-2", "--lora.r", "4", "--train.sample_tokens", "4",
)  # fmt: skip
LONG = (
    *SHORT[:4], "--train.num_train_epochs", "12", *SHORT[6:], "--lora.lora_dropout", "0.1", "--train.logging_steps", "1",
    "--train.eval_steps", "40",
)  # fmt: skip
Step = subprocess.CompletedProcess[str]


def words(home: Path, run: str) -> tuple[str, ...]:
    return (
        "--run", run, "--model.source", "local", "--model.path", str(home / "tiny"), "--model.name", "tiny",
        "--data.train_file", str(home / "rows.jsonl"), "--data.max_length", "200",
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model and the data of run `r`."""
    home = tmp_path_factory.mktemp("home")
    tiny.model(home / "tiny")
    tiny.rows(home / "rows.jsonl", 40)
    for script in ("00_download_model.py", "01_data_collator.py"):
        step = programs.run(home, script, *words(home, "r"))
        assert step.returncode == 0, step.stderr
    return home


def fresh(home: Path, run: str) -> Path:
    """A run of its own on the same data."""
    folder = home / "outputs" / run
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "outputs/r/data", folder / "data", copy_function=shutil.copy2)
    return folder


def train(home: Path, run: str, *given: str, **extra: str) -> Step:
    return programs.run(home, "02_train_qlora.py", *words(home, run), *given, **extra)


@pytest.mark.parametrize(
    ("name", "given", "files"),
    [
        ("dora", ("--lora.use_dora", "true"), {"adapter_model.safetensors"}),
        ("plus", ("--lora.use_rslora", "true", "--lora.loraplus_lr_ratio", "4"), {"adapter_model.safetensors"}),
        ("head", ("--lora.modules_to_save", "lm_head"), {"adapter_model.safetensors"}),
        ("pissa", ("--method", "lora", "--lora.init_lora_weights", "pissa"), {"adapter_model.safetensors"}),
        ("full", ("--method", "full", "--train.learning_rate", "1e-3"), {"model.safetensors", "config.json"}),
        ("neft", ("--method", "lora", "--train.dtype", "float32", "--train.neftune_noise_alpha", "5",
                  "--train.gradient_checkpointing", "true", "--train.optim", "adafactor",
                  "--train.training_args", '{"adam_beta2": 0.95}'), {"adapter_model.safetensors"}),
    ],
)  # fmt: skip
def test_every_kind_of_training_is_remembered_and_merges_to_what_was_trained(
    made: Path, name: str, given: tuple[str, ...], files: set[str]
) -> None:
    folder = fresh(made, name)
    step = train(made, name, *SHORT, *given)
    assert step.returncode == 0, step.stderr
    assert files <= {path.name for path in (folder / "adapter").iterdir()}
    was_on(folder, name)
    reference = json.loads((folder / "adapter/reference.json").read_text(encoding="utf-8"))
    contract = json.loads((folder / "adapter/contract.json").read_text(encoding="utf-8"))
    assert len(reference["golden"]) > 30 <= len(contract["conversations"])
    for row in reference["rows"]:
        assert len(row["places"]) == len(row["trained"]) and max(row["trained"]) <= 0
        assert row["end"]["id"] == contract["special_ids"]["end_of_turn"]
        assert (row["base"] is None) == (name == "full") and row["base"] != row["trained"]
    assert "[More Information Needed]" not in (folder / "adapter/README.md").read_text(encoding="utf-8")
    merged = programs.run(made, "03_merge_lora.py", *words(made, name))
    assert merged.returncode == 0, merged.stderr
    report = json.loads((folder / "merged/merge_report.json").read_text(encoding="utf-8"))
    assert report["trained"]["reference_gap"] < 0.01
    assert report["candidates"][report["strategy"]]["kl_mean"] < 1e-3


def was_on(folder: Path, name: str) -> None:
    """Whether the kind of training that a case names is what the run did."""
    config = folder / "adapter/adapter_config.json"
    lora = json.loads(config.read_text()) if config.exists() else {}
    hashes = json.loads((folder / "adapter/base_tensors.json").read_text())["dequantized"]
    assert bool(hashes) == (name in {"dora", "plus", "head"}), "those train on 4-bit weights"
    checkpoint = next(folder.glob("checkpoints/checkpoint-*"))
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    rates = {group["initial_lr"] for group in optimizer["param_groups"]}
    assert lora.get("use_dora", False) == (name == "dora")
    assert lora.get("use_rslora", False) == (len(rates) > 1) == (name == "plus")
    assert lora.get("modules_to_save") == (["lm_head"] if name == "head" else None)
    assert lora.get("r") == {"full": None, "pissa": 8}.get(name, 4)  # PiSSA's start is taken off: twice the rank
    is_adafactor = "exp_avg_sq_row" in set().union(*optimizer["state"].values())
    assert is_adafactor == (name == "neft")


@pytest.mark.long
def test_training_goes_on_from_an_earlier_adapter(made: Path) -> None:
    fresh(made, "first"), fresh(made, "second")
    assert train(made, "first", *SHORT).returncode == 0
    step = train(
        made,
        "second",
        *SHORT,
        "--lora.start_from",
        str(made / "outputs/first/adapter"),
        "--train.learning_rate",
        "1e-5",
    )
    assert step.returncode == 0, step.stderr
    losses = [
        json.loads((made / f"outputs/{name}/adapter/metrics.json").read_text())["eval_loss"]
        for name in ("first", "second")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)  # hardly moved from there, far from the base
    record = json.loads((made / "outputs/second/adapter/manifest.json").read_text())
    assert any(name.endswith("first/adapter/adapter_model.safetensors") for name in record["inputs"])


@pytest.mark.long
def test_the_best_weights_are_published_and_a_stuck_training_stops(made: Path) -> None:
    # ever faster, until it goes wrong whatever the rounding
    wild = (
        "--train.learning_rate", "20", "--train.warmup_steps", "24", "--train.max_grad_norm", "0", "--train.max_steps", "24",
    )  # fmt: skip
    folder = fresh(made, "best")
    step = train(made, "best", *SHORT, *wild, "--train.load_best_model_at_end", "true")
    assert step.returncode == 0, step.stderr
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min(record["eval_loss"] for record in log if "eval_loss" in record)
    metrics = json.loads((folder / "adapter/metrics.json").read_text())
    assert metrics["eval_loss"] == best < log[-1]["eval_loss"]
    number = next(record["step"] for record in log if record.get("eval_loss") == best)
    weights = folder / f"checkpoints/checkpoint-{number}/adapter_model.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(spoilt)
    shutil.rmtree(folder / "adapter")
    step = train(made, "best", *SHORT, *wild, "--train.load_best_model_at_end", "true")
    assert step.returncode == 2 and f"checkpoint-{number} is gone, or is not what was saved" in step.stderr
    assert not (folder / "adapter").exists()
    fresh(made, "stuck")
    still = ("--train.learning_rate", "1e-12", "--train.max_steps", "24")
    step = train(made, "stuck", *SHORT, *still, "--train.early_stopping_patience", "1")
    assert step.returncode == 0 and "got no better in 1 evaluations" in step.stdout
    assert json.loads((made / "outputs/stuck/adapter/metrics.json").read_text())["steps"] < 24


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--train.training_args", '{"adam_betaX": 1}'), "adam_betaX"),
        (("--train.training_args", '{"learning_rate": 1}'), "--train.learning_rate"),
        (("--train.training_args", '{"bf16": false}'), "the pipeline decides it"),
        (("--train.training_args", "nonsense"), "must be a JSON object"),
        (("--train.optim", "nonsense"), "nonsense is not a valid OptimizerNames"),
        (("--train.min_learning_rate", "1"), "must be below learning_rate"),
        (("--train.lr_scheduler_type", "constant", "--train.min_learning_rate", "1e-6"), "linear and cosine"),
        (("--lora.use_dora", "true", "--serve.mode", "lora"), "vLLM serves no adapter"),
        (("--method", "full", "--quantization.bnb_4bit_quant_type", "fp4"), "quantizes nothing"),
        (("--lora.modules_to_save", "lm_haed"), "--lora.modules_to_save: lm_haed is not found in the model"),
        (("--lora.target_modules", "q_proj,v_porj"), "--lora.target_modules: v_porj is not found in the model"),
        (("--train.training_args", '{"report_to": "wandb"}'), "--train.training_args asks for does not work"),
        (("--train.training_args", '{"adam_beta2": 1.5}'), "--train.optim adamw_torch does not work"),
        (
            ("--train.training_args", '{"lr_scheduler_kwargs": {"x": 1}}'),
            "--train.lr_scheduler_type linear does not work",
        ),
        (("--train.training_args", '{"data_seed": 3}'), "the pipeline decides it"),
        (("--train.optim", "grokadamw"), "--train.optim grokadamw does not work"),
        (("--method", "full", "--train.dtype", "float16"), "--train.dtype float16 needs a GPU"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(made: Path, given: tuple[str, ...], says: str) -> None:
    fresh(made, "no")
    step = train(made, "no", *SHORT, *given)
    assert step.returncode == 2 and says in step.stderr and step.stderr.count("\n") == 1
    assert not (made / "outputs/no/adapter").exists()


def started(home: Path, run: str, *given: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/02_train_qlora.py"), *words(home, run), *given],
        env=script_environment(home), cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(made: Path) -> bytes:
    """The weights of the uninterrupted training."""
    fresh(made, "whole")
    step = train(made, "whole", *LONG)
    assert step.returncode == 0, step.stderr
    return (made / "outputs/whole/adapter/adapter_model.safetensors").read_bytes()


def wait_for_steps(training: "subprocess.Popen[str]", folder: Path, steps: int) -> None:
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > steps):
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def newest_checkpoint(folder: Path) -> str:
    steps = [int(path.parent.name[11:]) for path in folder.glob("checkpoints/checkpoint-*/manifest.json")]
    return f"outputs/{folder.name}/checkpoints/checkpoint-{max(steps)}"


NOTHING_YET = "there is no checkpoint yet, so the same command starts from the beginning"


@pytest.mark.long
def test_sigterm_saves_at_the_next_step_exits_75_and_the_same_command_goes_on(made: Path, whole: bytes) -> None:
    folder = fresh(made, "term")
    training = started(made, "term", *LONG)
    wait_for_steps(training, folder, 2)
    training.terminate()
    _, errors = training.communicate(timeout=60)
    assert training.returncode == 75, errors
    checkpoint = newest_checkpoint(folder)
    step = checkpoint.rpartition("-")[2]
    assert re.fullmatch(
        rf"error: terminated after step {step} of \d+; {checkpoint} remains, and the same command goes on from there\n",
        errors,
    )
    assert not (folder / "adapter").exists() and not list(folder.glob(".adapter.partial"))
    again = train(made, "term", *LONG)
    assert again.returncode == 0 and f"resuming from {checkpoint}\n" in again.stdout, again.stderr
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == whole


def test_sigterm_while_loading_exits_75_at_once(made: Path) -> None:
    fresh(made, "early")
    training = started(made, "early", *LONG)
    time.sleep(2.5)
    training.terminate()
    _, errors = training.communicate(timeout=60)
    assert training.returncode in (75, -signal.SIGTERM)  # before Python has set its handler, the signal's own way
    assert training.returncode != 75 or errors == f"error: terminated; {NOTHING_YET}\n"
    assert not (made / "outputs/early/adapter").exists()


@pytest.mark.long
@pytest.mark.parametrize("saved", [False, True])
def test_ctrl_c_says_what_remains(made: Path, whole: bytes, saved: bool) -> None:
    folder = fresh(made, f"ctrl-c-{saved}")
    given = LONG if saved else (*LONG, "--train.save_steps", "100000")
    training = started(made, folder.name, *given)
    wait_for_steps(training, folder, 6)
    training.send_signal(signal.SIGINT)
    _, errors = training.communicate(timeout=60)
    assert training.returncode == 130, errors
    assert not (folder / "adapter").exists() and not list(folder.glob(".adapter.partial"))
    if not saved:
        assert errors == f"error: interrupted; {NOTHING_YET}\n" and not list(folder.glob("checkpoints/checkpoint-*"))
        return
    checkpoint = newest_checkpoint(folder)
    assert errors == f"error: interrupted; {checkpoint} remains, and the same command goes on from there\n"
    again = train(made, folder.name, *given)
    assert again.returncode == 0 and f"resuming from {checkpoint}\n" in again.stdout, again.stderr
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == whole


@pytest.mark.long
def test_kills_at_random_times_end_with_the_same_weights(made: Path, whole: bytes) -> None:
    folder, chance = fresh(made, "kill"), random.Random(3)
    log = folder / "metrics.jsonl"
    for _ in range(4):
        training = started(made, "kill", *LONG)
        seen = log.read_text().count("\n") if log.exists() else 0
        deadline = time.monotonic() + 60
        # it may be a resumed training, whose log loses its end first: that many steps after its start, or near
        while training.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_mtime > time.time() - 0.5 and log.read_text().count("\n") > seen:
                break
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)
        assert training.poll() is None, "it was over before it could be killed"
        training.kill()
        training.communicate()
    last = train(made, "kill", *LONG)
    assert last.returncode == 0 and "resuming from" in last.stdout, last.stderr
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == whole


AT = (*LONG, "--train.save_total_limit", "100", "--train.logging_steps", "5")  # no checkpoint follows a log line


@pytest.fixture(scope="module")
def every(made: Path) -> Path:
    """A finished run with all its checkpoints."""
    folder = fresh(made, "at")
    assert train(made, "at", *AT).returncode == 0
    return Path(shutil.copytree(folder, made / "every", copy_function=shutil.copy2))


def told(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the machine."""
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("tokens_per_second", "seconds")} for record in log
    ]


@pytest.mark.long
@pytest.mark.parametrize("step", [12, 36, 40, 64])
def test_a_resume_within_and_between_epochs_ends_with_the_same_weights(
    made: Path, whole: bytes, every: Path, step: int
) -> None:
    """Nine steps an epoch: 12 is in the second, 36 the end of the fourth, 40 an evaluation, 64 in the eighth."""
    folder = fresh(made, "at")
    for name in ("checkpoints", "metrics.jsonl"):
        copy = shutil.copytree if name == "checkpoints" else shutil.copy2
        copy(every / name, folder / name)
    for late in folder.glob("checkpoints/checkpoint-*"):
        if int(late.name[11:]) > step:
            shutil.rmtree(late)
    again = train(made, "at", *AT)
    assert again.returncode == 0 and f"checkpoints/checkpoint-{step}" in again.stdout, again.stderr
    assert (folder / "adapter/adapter_model.safetensors").read_bytes() == whole
    assert told(folder) == told(every)
    digests = {json.loads((one / "adapter/manifest.json").read_text())["digest"] for one in (folder, every)}
    assert len(digests) == 1  # loss curve and model card, too


def interrupted(home: Path, run: str, *given: str) -> Path:
    """A run that was killed once it had its first checkpoint, which alone is left; returns that."""
    folder = fresh(home, run)
    training = started(home, run, *given)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/checkpoint-*/manifest.json")):
        assert training.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    training.kill()
    training.communicate()
    found = sorted(folder.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name[11:]))
    for late in found[1:]:
        shutil.rmtree(late)
    return found[0]


@pytest.mark.long
def test_force_starts_afresh_and_a_forced_training_that_was_interrupted_goes_on(made: Path, whole: bytes) -> None:
    interrupted(made, "force", *LONG)
    step = train(made, "force", *LONG, "--force")
    assert step.returncode == 0 and "resuming" not in step.stdout, step.stderr
    interrupted(made, "force", *LONG, "--force")
    step = train(made, "force", *LONG, "--force")
    assert step.returncode == 0 and "resuming" in step.stdout, step.stderr
    assert (made / "outputs/force/adapter/adapter_model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    "limit", [pytest.param(2_000, marks=pytest.mark.faults), 20_000, pytest.param(60_000, marks=pytest.mark.faults)]
)
def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_survives(made: Path, whole: bytes, limit: int) -> None:
    good = interrupted(made, f"disk{limit}", *LONG)
    given = (*words(made, f"disk{limit}"), *LONG)
    step = programs.run(made, "02_train_qlora.py", *given, file_size=limit)
    assert step.returncode == 2, step.stderr
    assert "Traceback" not in step.stderr and step.stderr.count("error:") == 1, step.stderr
    assert good.exists() and not (made / f"outputs/disk{limit}/adapter").exists()
    again = train(made, f"disk{limit}", *LONG)
    assert again.returncode == 0 and "resuming from" in again.stdout, again.stderr
    assert (made / f"outputs/disk{limit}/adapter/adapter_model.safetensors").read_bytes() == whole


DISTRIBUTED = (
    "--method", "lora", "--train.dtype", "float32", "--lora.lora_dropout", "0", "--train.per_device_train_batch_size", "2",
    "--train.num_train_epochs", "2", "--train.eval_steps", "6", "--train.logging_steps", "1", "--train.learning_rate", "1e-3",
    "--lora.r", "4", "--train.sample_tokens", "4",
)  # fmt: skip


def logged(folder: Path) -> list[float]:
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record.get("loss", record.get("eval_loss")) for record in log]


def assert_same_curve(losses: list[float], alone: list[float]) -> None:
    """Equal losses, but for rounding.

    Before the first step only sums are in another order: a few roundings. Each step of Adam then divides small
    differences by gradients that may be small, too, so that they grow; but far less than a row that is missing, counted
    twice or weighted wrongly would move a loss, which is above a thousandth.
    """
    assert len(losses) == len(alone)
    assert losses[0] == pytest.approx(alone[0], rel=16 * rounding.epsilon(torch.float32))
    assert losses == pytest.approx(alone, rel=1e-4)


@pytest.fixture(scope="module")
def alone(made: Path) -> list[float]:
    """The loss curve of one process."""
    folder = fresh(made, "alone")
    step = train(made, "alone", *DISTRIBUTED, "--train.gradient_accumulation_steps", "2")
    assert step.returncode == 0, step.stderr
    return logged(folder)


def launch(home: Path, config: Path, run: str, *more: str) -> list[str]:
    return [
        str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(config), *more,
        str(ROOT / "tests/support/watched_training.py"), *words(home, run), *DISTRIBUTED, "--train.gradient_accumulation_steps", "1",
    ]  # fmt: skip


def is_ddp(notes: Path, fast: bool) -> bool:
    """Whether two processes trained whole models, and averaged their gradients."""
    notes_of_ranks = [json.loads((notes / f"{rank}.json").read_text()) for rank in (0, 1)]
    return all(
        (note["model"], note["sharded"], note["fast"]) == ("DistributedDataParallel", 0, fast) and note["weights"]
        for note in notes_of_ranks
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cpu", "fsdp2-config-on-cpus"])
def test_two_processes_have_the_loss_curve_of_one(made: Path, alone: list[float], tmp_path: Path, kind: str) -> None:
    """Both are DDP: accelerate 1.15 never applies FSDP on CPUs. With its config the cautious ways are taken all the same,
    such as PEFT's own pass. What is asserted of the processes' models fails once a library does shard them."""
    config, cautious = ROOT / "configs/accelerate/cpu.yaml", kind != "cpu"
    if cautious:
        text = (ROOT / "configs/accelerate/fsdp2.yaml").read_text(encoding="utf-8") + "use_cpu: true\n"
        config = tmp_path / "fsdp2.yaml"
        config.write_text(text, encoding="utf-8")
    folder = fresh(made, kind)
    environment = script_environment(made, OMP_NUM_THREADS="1", WATCHED=str(tmp_path))
    step = subprocess.run(
        launch(made, config, kind), env=environment, cwd=made, capture_output=True, text=True, timeout=300, check=False
    )
    assert step.returncode == 0, step.stderr[-3000:]
    assert is_ddp(tmp_path, fast=not cautious)
    assert_same_curve(logged(folder), alone)
    assert json.loads((folder / "adapter/metrics.json").read_text())["processes"] == 2
    merged = programs.run(made, "03_merge_lora.py", *words(made, kind))
    assert merged.returncode == 0, merged.stderr


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2")
def test_two_hosts_have_the_loss_curve_of_one(made: Path, alone: list[float], tmp_path: Path) -> None:
    """Two network namespaces stand for two hosts that share a disk."""
    names, folder = ("lockstep-a", "lockstep-b"), fresh(made, "hosts")
    setup = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", "ls-a", "netns", names[0], "type", "veth", "peer", "name", "ls-b", "netns", names[1]],
        *(line for name, end, last in ((names[0], "ls-a", 1), (names[1], "ls-b", 2)) for line in (
            ["ip", "-n", name, "addr", "add", f"10.77.0.{last}/24", "dev", end],
            ["ip", "-n", name, "link", "set", end, "up"], ["ip", "-n", name, "link", "set", "lo", "up"])),
    ]  # fmt: skip
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    try:
        for line in setup:
            if subprocess.run(line, check=False, capture_output=True).returncode:
                pytest.skip("network namespaces cannot be made here")
        hosts = []
        for rank, name in enumerate(names):
            more = (
                "--num_machines",
                "2",
                "--machine_rank",
                str(rank),
                "--main_process_ip",
                "10.77.0.1",
                "--main_process_port",
                "29511",
            )
            environment = script_environment(
                made, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=("ls-a", "ls-b")[rank], WATCHED=str(tmp_path)
            )
            command = ["ip", "netns", "exec", name, *launch(made, ROOT / "configs/accelerate/cpu.yaml", "hosts", *more)]
            hosts.append(
                subprocess.Popen(
                    command, env=environment, cwd=made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        said = [host.communicate(timeout=200) for host in hosts]
        assert [host.returncode for host in hosts] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    assert is_ddp(tmp_path, fast=True)
    assert_same_curve(logged(folder), alone)
