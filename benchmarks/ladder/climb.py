"""One rung after the other: spoil a copy, measure how far it is, ask the checks on disk, ask the live gate."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ladder import in_files, in_weights, reasons, servers, table, truth
from ladder.corruption import LOADED, LORA, MERGED, RELOADED, STARTED, Corruption
from ladder.runs import Run
from ladder.servers import Live
from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError

RUNGS = [*in_weights.RUNGS, *in_files.RUNGS]
# On record for the clean runs: rows, and how many times as many drawn and long rows as a reference has. In each run as
# many of them as the demo's reference has.
POOL_ROWS, POOL_VOCABULARY, POOL_LONG = 64, 2, 3
SAMPLE = {"rows": 32, "vocabulary": 48, "long": 1}
OF_TOKENS = ("prompts", "texts", "ends", "sampling")  # weights and config are as they were

Line = dict[str, Any]


def listed() -> list[tuple[Corruption, str]]:
    """All rungs, each in the modes that it can be in."""
    return [(rung, mode) for rung in RUNGS for mode in rung.modes]


@dataclass
class Ladder:
    """A climb: its run, and where its lines are kept.

    Args:
        words: the settings of the run as words of a command line.
        folder: of its lines.
        say: is told of each line.
    """

    clean: Run
    words: Sequence[str]
    folder: Path
    say: Callable[[str], None]

    def file(self, rung: Corruption, mode: str) -> Path:
        return self.folder / f"{slug(rung.name)}.{mode}.json"

    def line(self, rung: Corruption, mode: str) -> Line:
        """What is known of a rung."""
        file = self.file(rung, mode)
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {"name": rung.name, "mode": mode, "beyond": rung.beyond, "is_right": rung.is_right} | known

    def keep(self, rung: Corruption, line: Line) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self.file(rung, line["mode"]), line)

    # --- one rung ---

    @contextmanager
    def spoilt(self, rung: Corruption, mode: str) -> Iterator[Run]:
        """A copy of the run that is spoilt, for as long as the block lasts."""
        run = self.clean.copy(f"{slug(rung.name)}-{mode}")
        try:
            rung.spoil(run, mode)
            run.seal()
            yield run
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)

    def measure(self, rung: Corruption, run: Run, line: Line) -> None:
        """Add to a line how far the model is from the trained one."""
        other = self.line(rung, LORA if line["mode"] == MERGED else MERGED)
        known = other.get("true_kl") if rung.same_model else None
        if "true_kl" not in line:
            line["true_kl"] = known or self._divergence(rung, run, line["mode"])
            self.keep(rung, line)

    def look(self, rung: Corruption, run: Run, line: Line) -> None:
        """Add to a line what the checks before a start say."""
        if "disk" not in line:
            # the base beneath an adapter that alone is spoilt is compared in the line of the right model
            whole = line["mode"] == MERGED or rung.is_right or rung.way(LORA) != LOADED
            refused = servers.before_start(self.words, run, line["mode"], whole)
            line["disk"] = self._verdict(rung, *refused, "disk")
            self.keep(rung, line)

    def _divergence(self, rung: Corruption, run: Run, mode: str) -> dict[str, float]:
        rows, expected = self.expected
        if rung.beyond in OF_TOKENS:
            result = dict.fromkeys(table.KINDS, 0.0)
            if rung.beyond == "prompts":
                asked = truth.chats(self.clean, truth.chat_of(run.answers_with(mode)))
                given = truth.distributions(truth.trained(self.clean), asked)
                those = [place for place, row in enumerate(rows) if row.kind == "chats"]
                result |= truth.divergence(asked, [expected[place] for place in those], given)
            return result
        network = truth.load(run.merged) if mode == "merged" else truth.trained(run)
        return truth.divergence(rows, expected, truth.distributions(network, rows))

    @cached_property
    def expected(self) -> tuple[list[truth.Probe], list[Any]]:
        """The rows, and what the trained model says to them."""
        rows = truth.probes(self.clean)
        return rows, truth.distributions(truth.trained(self.clean), rows)

    def _verdict(self, rung: Corruption, reason: str, named: str | None, by: str) -> Line:
        names = reasons.names_in(reason, named)
        rightly = None if rung.is_right or not reason else bool(rung.right & names)
        return {
            "caught": bool(reason), "by": by if reason else None, "reason": reason or None, "named": sorted(names),
            "named_rightly": rightly,
        }  # fmt: skip

    def add_live(self, rung: Corruption, line: Line, report: dict[str, Any] | str) -> None:
        """Add to a line what the live gate found, or why vLLM did not start."""
        if isinstance(report, str):
            line["live"] = self._verdict(rung, report, None, "start")
        else:
            reason = report["reasons"][0] if report["reasons"] else ""
            line["live"] = self._verdict(rung, reason, report.get("named"), reasons.proof_of(reason))
            figures = {key: report.get(key) for key in ("kl", "kl_bound", "kl_noise", "kl_kinds", "adapter_effect")}
            line["live"] |= {"figures": figures, "seconds": report["seconds"]}
        self.keep(rung, line)

    # --- all of them ---

    def climb(self, chosen: Sequence[tuple[Corruption, str]], with_servers: bool) -> None:
        """Complete the lines of these rungs; what is known already is kept."""
        for mode in (MERGED, LORA):
            here = [rung for rung, of in chosen if of == mode]
            if with_servers:
                together = [rung for rung in here if rung.way(mode) != STARTED and "live" not in self.line(rung, mode)]
                if together:
                    with servers.running(servers.plan_of(self.words, self.clean, self.clean, mode)) as live:
                        for rung in together:
                            self._in_running(live, rung, mode)
            for rung in sorted(here, key=lambda rung: rung.way(mode) != STARTED):
                line = self.line(rung, mode)
                needed = {"true_kl", "disk"} | ({"live"} if with_servers else set())
                if needed <= line.keys():
                    continue
                with self.spoilt(rung, mode) as run:
                    self.measure(rung, run, line)
                    self.look(rung, run, line)
                    if with_servers and rung.way(mode) == STARTED and "live" not in line:
                        self._started(rung, run, line)
                self.say(table.row(line))

    def _in_running(self, live: Live, rung: Corruption, mode: str) -> None:
        line, name = self.line(rung, mode), live.plan.model
        with self.spoilt(rung, mode) as run:
            if mode == MERGED or not rung.same_model:  # the other mode's line will have it
                self.measure(rung, run, line)
            if rung.way(mode) == RELOADED:
                live.reload(run.served(mode))
            try:
                if rung.is_right:
                    report: Any = live.prove()
                elif rung.way(mode) == LOADED:
                    live.load(run.folder.name, run.adapter)
                    report = live.prove_weights(run.folder.name, self.clean.adapter)
                    live.unload(run.folder.name)
                else:
                    report = live.prove_weights(name, self.clean.adapter)
            except UserError as error:
                report = str(error)
            if mode == LORA and rung.way(mode) == RELOADED:
                live.reload(self.clean.served(mode))
            self.add_live(rung, line, report)
            self.say(table.row(line))

    def _started(self, rung: Corruption, run: Run, line: Line) -> None:
        try:
            with servers.running(servers.plan_of(self.words, self.clean, run, line["mode"])) as live:
                report: Any = live.prove()
        except UserError as error:
            report = str(error)
        self.add_live(rung, line, report)

    # --- the clean model, again and again ---

    def clean_runs(self, count: int, mode: str) -> None:
        """Let the gate judge the right model, each time by rows, drawn tokens and chats that are drawn anew.

        Each question is put to the server once, and its answer serves all runs that draw it.
        """
        file = self.folder / f"clean.{mode}.jsonl"
        done = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
        if done >= count:
            return
        pool = self.pool()
        with servers.running(servers.plan_of(self.words, self.clean, self.clean, mode)) as live:
            once = servers.Once(live.server)
            for number in range(done, count):
                report = live.prove_weights(live.plan.model, self.clean.adapter, resampled(pool, number), once)
                figures = {key: report[key] for key in ("passed", "reasons", "kl", "kl_bound", "kl_noise", "kl_kinds")}
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"number": number, "questions": once.asked, **figures}) + "\n")
                if not number % 20 or not report["passed"]:
                    self.say(
                        f"clean {mode} {number + 1}: {report['reasons'] or 'passed'}, {once.asked} questions asked"
                    )

    def pool(self) -> dict[str, Any]:
        """A reference of more rows than a run keeps."""
        file = self.folder / "pool.json"
        if not file.exists():
            from lockstep.merging import certificate

            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.write_json(file, certificate.in_fresh_process(recorded_pool, list(self.words), self.clean))
        value: dict[str, Any] = atomic.read_json(file)
        return value


def recorded_pool(words: list[str], run: Run) -> dict[str, Any]:
    """What the trained model says to rows of all splits, to tokens drawn again and again, and to several long rows."""
    from datasets import load_from_disk

    from lockstep.artifacts import manifest
    from lockstep.merging import certificate, dequantizer
    from lockstep.training import reference, reference_probes

    trained = servers.settings_of(words, run, "lora").inherit(manifest.read(run.adapter).config)
    rows: list[dict[str, Any]] = []
    for split in (filenames.VALIDATION, filenames.TEST, filenames.TRAIN):
        if (run.folder / filenames.DATA / split).exists():
            rows += list(load_from_disk(str(run.folder / filenames.DATA / split)))
    rows = rows[:POOL_ROWS]
    dtype = dequantizer.trained_dtype(run.adapter)
    network = certificate.load_trained(trained, run.adapter, dtype)
    chosen = reference_probes.choose(trained, network, reference.probe_rows(run.folder / filenames.DATA), run.adapter)
    draw = random.Random(1)
    drawn = [probe for probe in chosen if probe.kind == reference_probes.VOCABULARY]
    ids = [token for probe in drawn for token in probe.input_ids]
    more = [
        reference_probes.Probe(probe.kind, [draw.choice(ids) for _ in probe.input_ids], probe.places)
        for probe in drawn * (POOL_VOCABULARY - 1)
    ]
    lengths = [len(probe.input_ids) for probe in chosen if probe.kind == reference_probes.LONG_ROW]
    for length in lengths * (POOL_LONG - 1):
        shuffled = [row["input_ids"] for row in draw.sample(rows, len(rows))]
        more += reference_probes.lengthy(shuffled, length)
    return reference.record(
        network,
        atomic.read_json(run.adapter / filenames.CONTRACT)["conversations"],
        rows,
        dtype,
        without_adapter=network.disable_adapter(),
        longest=reference.longest_prompt(trained, network),
        more=sorted([*chosen, *more], key=lambda probe: probe.kind),
    )


def resampled(pool: dict[str, Any], seed: int) -> dict[str, Any]:
    """A reference of the usual size, with rows, drawn tokens and chats from a larger one."""
    draw = random.Random(seed)
    kinds: dict[str, list[Any]] = {}
    for probe in pool["probes"]:
        kinds.setdefault(probe["kind"], []).append(probe)
    probes = [probe for kind, those in kinds.items() for probe in draw.sample(those, min(SAMPLE[kind], len(those)))]
    golden = draw.sample(pool["golden"], max(1, len(pool["golden"]) * 2 // 3))
    return pool | {"probes": probes, "golden": golden}


def slug(name: str) -> str:
    """A name as a part of names of folders."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
