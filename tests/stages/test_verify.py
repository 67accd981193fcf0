"""`verify` as a user runs it: exit codes, verify.json, the page and the lines, in both languages."""

import json
import shutil
from pathlib import Path

import pytest
from support import files_page, merges, programs, tiny

from lockstep.verification import report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, adapter/ and merged/ of somebody else, and the file that they trained on."""
    home = tmp_path_factory.mktemp("verify")
    tiny.peft_adapter(home / "adapter", tiny.model(home / "base"), noise=0.05)
    merges.by_peft(home / "base", home / "adapter", home / "merged")
    tiny.rows(home / "rows.jsonl", 10)
    return home


def verify(made: Path, *words: str, **given: Path) -> programs.Ended:
    options = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    return programs.run(made, "verify.py", *options, *words)


def results_of(file: Path) -> dict[str, dict[str, dict[str, object]]]:
    content = json.loads(file.read_text(encoding="utf-8"))
    for proof in content["proofs"].values():
        assert {"status", "figures", "found", "next"} <= proof.keys()
    return content


def test_somebody_elses_merge_is_in_lockstep(made: Path, tmp_path: Path) -> None:
    ended = verify(
        made, "--json", str(tmp_path / "v.json"), base=made / "base", adapter=made / "adapter", merged=made / "merged",
        data=made / "rows.jsonl",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    results = results_of(tmp_path / "v.json")
    assert results["verdict"] == "in_lockstep"
    assert {name: proof["status"] for name, proof in results["proofs"].items()} == dict.fromkeys(
        ("weights", "adapter", "tokens", "stops", "sampling"), "passed"
    )
    assert results["proofs"]["weights"]["found"] == "merged_original"
    assert files_page.faults("outputs/verify/verify.json", results) == []
    page = (tmp_path / "verify.html").read_text(encoding="utf-8")
    assert "In lockstep" in page and "http" not in page.replace("http-equiv", "")


def test_a_merge_that_was_none_is_named_in_both_languages(made: Path) -> None:
    shutil.copytree(made / "base", made / "same", dirs_exist_ok=True)
    given = {"base": made / "base", "adapter": made / "adapter", "merged": made / "same"}
    chinese = verify(made, "--lang", "zh", **given)
    assert chinese.returncode == 1 and "未通过 (base)" in chinese.stdout and "步调不一致" in chinese.stdout
    results = results_of(made / "outputs/verify/verify.json")
    assert results["proofs"]["weights"]["found"] == "base"
    assert "Not in lockstep: it is another model." in list(report.lines(results))
    assert 'lang="zh-CN"' in (made / "outputs/verify/verify.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_what_cannot_be_told_is_no_success(made: Path) -> None:
    ended = verify(made, merged=made / "merged")
    assert ended.returncode == 3 and "could not be told" in ended.stdout


@pytest.mark.long
def test_wrong_options_are_one_line(made: Path, tmp_path: Path) -> None:
    other = tiny.model(tmp_path / "other", intermediate_size=160)
    wrong = {
        "nothing to verify": {"base": made / "base"},
        "there is no such file or folder": {"merged": made / "nowhere"},
        "is an adapter: give it as --adapter": {"merged": made / "adapter"},
        "holds no adapter": {"adapter": made / "base"},
        "is no model's folder": {"merged": tmp_path},
        "belongs to another base": {"base": other, "adapter": made / "adapter"},
        "holds no rows": {"base": made / "base", "merged": made / "merged", "data": made / "base/config.json"},
    }
    for words, given in wrong.items():
        ended = verify(made, **given)
        assert ended.returncode == 2 and words in ended.stderr, (words, ended.stderr)
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
