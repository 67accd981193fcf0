"""Servers for the ladder: started as `serve_vllm.sh` does, but for the checks on disk, so that the live gate is alone.

vLLM can take other weights, and other adapters, while it runs (routes that Lockstep closes to everybody but its own
supervisor, and that are switched on here). A rung in the weights then costs seconds and not a start.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ladder.runs import Run
from lockstep.artifacts import atomic, filenames
from lockstep.endpoint.http_client import HttpClient
from lockstep.errors import UserError
from lockstep.processes import child_processes
from lockstep.serving import (
    gate,
    gate_bounds,
    gate_log_probs,
    gate_modules,
    launch,
    launch_plan,
    process_tree,
    temporary_server,
)
from lockstep.serving.gate import Claim
from lockstep.serving.gate_findings import Findings
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.probe import ANSWER_SECONDS, Server
from lockstep.settings import cli
from lockstep.settings.tree import Settings

SWITCHES = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def settings_of(words: Sequence[str], run: Run, mode: str) -> Settings:
    """The settings with which a run is served."""
    port = str(temporary_server.free_port())
    more = ["--run", run.folder.name, "--serve.mode", mode, "--serve.port", port, "--serve.host", "127.0.0.1"]
    return cli.settings_from(cli.parser("").parse_args([*words, *more]))


def plan_of(words: Sequence[str], clean: Run, spoilt: Run, mode: str) -> LaunchPlan:
    """How a spoilt run is served, held to the contract and reference of the clean one, without a look at its files."""
    plan = launch_plan.plan(settings_of(words, clean, mode))
    before, after = str(clean.folder), str(spoilt.folder)
    name = plan.model
    claim = replace(plan.claim, folders={name: (spoilt.answers_with(mode), clean.adapter)})
    return replace(
        plan,
        command=[word.replace(f"{before}/", f"{after}/") for word in plan.command],
        environment=plan.environment | SWITCHES,
        folder=spoilt.folder / f"{filenames.SERVE}-{mode}",
        claim=claim,
        rules=replace(plan.rules, tokenizer=str(spoilt.answers_with(mode))),
    )


@contextmanager
def running(plan: LaunchPlan) -> Iterator["Live"]:
    """A server for as long as the block lasts. Raises UserError where it does not start."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    server = Server(plan.url, secrets.token_urlsafe(32))
    log = plan.folder / filenames.SERVER_LOG
    child_processes.become_subreaper()
    try:
        with launch.launched(plan, server.secret, plan.folder / "open", log, lambda: "") as launched:
            launch.wait_until_healthy(server, launched, log, 900, lambda text: None)
        yield Live(server, plan)
    finally:
        process_tree.end_all(2.0)


class Live:
    """A server that runs, and what can be done to it.

    Args:
        plan: by which it was started.
    """

    def __init__(self, server: Server, plan: LaunchPlan) -> None:
        self.server, self.plan = server, plan
        self._http = HttpClient(plan.url, server.secret)

    def reload(self, folder: Path) -> None:
        """Take the weights of another folder."""
        self._do("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self._do("/reset_prefix_cache", {})

    def load(self, name: str, adapter: Path) -> None:
        """Serve one more adapter. Raises UserError where vLLM refuses it."""
        self._do("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)})

    def unload(self, name: str) -> None:
        self._do("/v1/unload_lora_adapter", {"lora_name": name})

    def _do(self, route: str, body: dict[str, Any]) -> None:
        """Raises UserError where vLLM does not."""
        response = self._http.request(route, body, 300)
        if response.status != 200:
            raise UserError(f"vLLM's {route}: {response.status} {response.text[:300]}")

    def prove(self, claim: Claim | None = None) -> dict[str, Any]:
        """The whole gate's report."""
        started = time.monotonic()
        report = gate.prove(self.server, claim or self.plan.claim)
        return report | {"seconds": time.monotonic() - started}

    def prove_weights(
        self, name: str, adapter: Path, recorded: dict[str, Any] | None = None, server: Server | None = None
    ) -> dict[str, Any]:
        """A report of those of the gate's proofs that look at weights; those of tokens have nothing to do with them.

        Args:
            name: that is served.
            adapter: with contract and reference.
            recorded: takes the reference's place.
            server: takes this one's place.
        """
        started = time.monotonic()
        claim, findings = self.plan.claim, Findings()
        agreed = atomic.read_json(adapter / filenames.CONTRACT)
        recorded = recorded or atomic.read_json(adapter / filenames.REFERENCE)
        if claim.mode == "lora":
            gate_modules.check(server or self.server, name, adapter, findings)
        certified = gate_bounds.certified(adapter)
        gate_log_probs.check(
            server or self.server, name, claim.base_name, recorded, agreed, claim.bounds, certified, findings
        )
        seconds = time.monotonic() - started
        return findings.report | {
            "reasons": findings.reasons,
            "named": findings.named,
            "passed": not findings.reasons,
            "seconds": seconds,
        }


class Once(Server):
    """A server that is asked every question once; who asks again gets the same answer.

    Attributes:
        asked: how many questions.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.url, server.secret)
        self.asked = 0
        self._answers: dict[str, Any] = {}

    def ask(self, path: str, body: dict[str, Any] | None = None, timeout: float = ANSWER_SECONDS) -> Any:
        question = {key: value for key, value in (body or {}).items() if key != "cache_salt"}
        key = json.dumps([path, question, "cache_salt" in (body or {})], sort_keys=True)
        if key not in self._answers:
            self._answers[key] = super().ask(path, body, timeout)
            self.asked += 1
        return self._answers[key]


def before_start(words: Sequence[str], run: Run, mode: str, whole: bool = True) -> tuple[str, str | None]:
    """(why a run is refused before vLLM is started, the gate's name for it); an empty reason where it is not.

    Args:
        whole: compare what stage 03 made with base and adapter, too.
    """
    from lockstep.merging import disk_check

    try:
        plan = launch_plan.plan(settings_of(words, run, mode))
        if (foreseen := gate.foresee(plan.claim)) is not None:
            return str(foreseen["reasons"][0]), foreseen.get("named")
        for folder, settings in plan.remade.items() if whole else ():
            disk_check.compare(settings, folder)
    except UserError as error:
        return str(error), None
    return "", None
