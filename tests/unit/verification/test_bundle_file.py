"""A bundle's file: equal bytes for equal parts, and a line in words for everything that a stranger may send."""

import gzip
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lockstep.artifacts.manifest import canonical
from lockstep.errors import UserError
from lockstep.verification import bundle_file

PARTS = {"adapter/contract.json": '{"a": "甲\u2028"}', "adapter/reference.json": "{}", "weights.json": "[1, 2]"}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bundle.lockstep"


def lines_of(file: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).split(b"\n")[:-1]]


def rewrite(file: Path, change: Callable[[list[Any]], object]) -> None:
    """Change a bundle's lines and write them as a bundle again."""
    lines = lines_of(file)
    change(lines)
    file.write_bytes(gzip.compress(b"".join(canonical(line) + b"\n" for line in lines), mtime=0))


def test_equal_parts_give_equal_bytes_in_any_order_and_signed(file: Path) -> None:
    packed = bundle_file.write(file, "r", PARTS, KEY)
    before = file.read_bytes()
    bundle_file.write(file, "r", dict(reversed(PARTS.items())), KEY)
    assert file.read_bytes() == before
    assert bundle_file.read(file, KEY.public_key()) == packed
    assert packed.parts == PARTS and packed.signature is not None
    assert before[4:8] == bytes(4) and not before[3]  # gzip's header: no time, no name
    assert not list(file.parent.glob(".*"))


def test_an_unsigned_bundle_is_read_and_refused_where_a_key_is_asked_for(file: Path) -> None:
    packed = bundle_file.write(file, "r", PARTS)
    assert bundle_file.read(file) == packed and packed.signature is None
    with pytest.raises(UserError, match="is not signed"):
        bundle_file.read(file, KEY.public_key())
    signed = bundle_file.write(file, "r", PARTS, KEY)
    assert signed.digest == packed.digest and bundle_file.read(file).signature == signed.signature


@pytest.mark.parametrize("place", range(len(PARTS)))
def test_a_changed_part_is_named(file: Path, place: int) -> None:
    bundle_file.write(file, "r", PARTS, KEY)
    name = list(PARTS)[place]
    rewrite(file, lambda lines: lines[1 + place].update(text=PARTS[name] + " "))
    for key in (None, KEY.public_key()):
        with pytest.raises(UserError, match=f"was changed: its part {re.escape(name)} is not what was packed"):
            bundle_file.read(file, key)


def repacked(lines: list[Any]) -> None:
    """As somebody does who knows the format: the part's hash is made right again."""
    lines[2]["text"] = "{} "
    lines[0]["parts"]["adapter/reference.json"] = {"bytes": 3, "sha256": bundle_file.sha256("{} ")}


def test_only_the_signature_shows_that_a_part_was_packed_by_somebody_else(file: Path) -> None:
    bundle_file.write(file, "r", PARTS, KEY)
    rewrite(file, repacked)
    assert bundle_file.read(file).parts["adapter/reference.json"] == "{} "
    with pytest.raises(UserError, match="was changed after it was signed"):
        bundle_file.read(file, KEY.public_key())


def renamed(lines: list[Any]) -> None:
    lines[1]["part"] = "adapter/other.json"


def nested(lines: list[Any]) -> None:
    lines[1]["text"] = {"no": "text"}


CHANGES: list[tuple[Callable[[list[Any]], object], str]] = [
    (lambda lines: lines.pop(), "its part weights.json is missing"),
    (lambda lines: lines.append(lines[1]), "holds more than its first line lists"),
    (lambda lines: lines.append({"signature": {"key": "0" * 64, "value": "", "algorithm": "none"}}), "holds more"),
    (lambda lines: lines.insert(1, lines[1]), "its part adapter/reference.json is not|holds more"),
    (renamed, "its part adapter/contract.json is not what was packed"),
    (nested, "its part adapter/contract.json is damaged"),
    (lambda lines: lines[0].update(version=2), "is a bundle of version 2"),
    (lambda lines: lines[0].update(format="zip"), "is no bundle"),
    (lambda lines: lines[0].update(more=1), "is no bundle"),
    (lambda lines: lines[0].update(run="../r"), "is no bundle"),
    (lambda lines: lines[0]["parts"].clear(), "holds more than"),
    (lambda lines: lines.clear(), "is incomplete"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_every_change_of_lines_is_refused(file: Path, change: Callable[[list[Any]], object], message: str) -> None:
    bundle_file.write(file, "r", PARTS)
    rewrite(file, change)
    with pytest.raises(UserError, match=message):
        bundle_file.read(file)


def test_names_that_are_paths_or_stand_twice_are_refused(file: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x", "a/b/c", "", ".hidden", "a\\b", "a\n"):
        text = json.dumps(
            {
                "format": bundle_file.FORMAT,
                "version": 1,
                "run": "r",
                "parts": {name: {"bytes": 1, "sha256": bundle_file.sha256("x")}},
            }
        )
        file.write_bytes(gzip.compress(f"{text}\n{json.dumps({'part': name, 'text': 'x'})}\n".encode()))
        with pytest.raises(UserError, match="is damaged"):
            bundle_file.read(file)
    record = f'{{"bytes": 1, "sha256": "{bundle_file.sha256("x")}"}}'
    text = f'{{"format": "lockstep-bundle", "version": 1, "run": "r", "parts": {{"a": {record}, "a": {record}}}}}\n'
    file.write_bytes(gzip.compress((text + '{"part": "a", "text": "x"}\n' * 2).encode()))
    with pytest.raises(UserError, match="is no bundle"):
        bundle_file.read(file)


def test_what_is_no_bundle_is_told_in_a_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_file.write(file, "r", PARTS)
    whole = file.read_bytes()
    for content, message in (
        (b"", "is incomplete"),
        (b"PK\x03\x04 a zip", "is no bundle"),
        (whole[:-9], "is incomplete"),
        (whole + b"x", "something was appended"),
        (whole + whole, "something was appended"),
        (whole[:30] + bytes([whole[30] ^ 1]) + whole[31:], "damaged|is no bundle|was changed|incomplete"),
        (gzip.compress(b"[" * 100_000 + b"\n"), "is no bundle"),
        (gzip.compress(b"\xff\n"), "is no bundle"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            bundle_file.read(file)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        bundle_file.read(file.with_name("absent"))
    monkeypatch.setattr(bundle_file, "MOST_BYTES", 100)
    file.write_bytes(whole + bytes(100))
    with pytest.raises(UserError, match="is larger than"):
        bundle_file.read(file)


def test_a_bomb_is_not_unpacked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound counts what comes out: no more than one byte beyond it is ever made."""
    monkeypatch.setattr(bundle_file, "MOST_TEXT", 2**20)
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    file.write_bytes(b"".join([bomb.compress(bytes(2**20)) for _ in range(64)]) + bomb.flush())
    assert file.stat().st_size < 100_000
    with pytest.raises(UserError, match="unpacks to more than the 1 MiB"):
        bundle_file.read(file)
    with pytest.raises(UserError, match="more than a bundle may"):
        bundle_file.write(file, "r", {"a": "x" * 2**20})
