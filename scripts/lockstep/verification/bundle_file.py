"""bundle.lockstep as a file: JSON lines in one gzip stream, equal bytes for equal content, read within bounds.

    first line   {"format", "version", "run", "parts": {name: {"bytes", "sha256"}}}
    a part each  {"part": name, "text": …}, in the order of `parts`
    last line    {"signature": {"algorithm", "key", "value"}}, of the first line's bytes; only where it is signed

Nothing is ever unpacked to a disk: parts are texts in memory, and their names are no paths.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lockstep import paths
from lockstep.artifacts import atomic
from lockstep.artifacts.manifest import FileRecord, canonical
from lockstep.errors import UserError
from lockstep.text import json_text
from lockstep.verification import signature
from lockstep.verification.signature import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FORMAT, VERSION = "lockstep-bundle", 1
MOST_BYTES, MOST_TEXT = 32 * 2**20, 128 * 2**20  # bytes of the file, and of the text in it
MOST_PARTS = 200
PART_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
_GZIP = 31  # zlib's wbits: a gzip header with neither name nor time


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["lockstep-bundle"]
    version: int
    run: str = Field(pattern=f"^{paths.NAME.pattern}$")
    parts: dict[str, FileRecord] = Field(max_length=MOST_PARTS)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    part: str = Field(pattern=PART_NAME)
    text: str


class _Last(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    signature: Signature


@dataclass(frozen=True)
class Packed:
    """What a bundle's file holds.

    Attributes:
        run: name of the run.
        parts: name → text.
        digest: sha256 of the first line, and so of everything but the signature.
        signature: None where it is not signed; whether it is right is `read`'s business.
    """

    run: str
    parts: dict[str, str]
    digest: str
    signature: Signature | None = None


def write(file: Path, run: str, parts: dict[str, str], key: "Ed25519PrivateKey | None" = None) -> Packed:
    """Write a bundle, all of it or nothing; equal parts give equal bytes, also when signed.

    Raises:
        UserError: it would be larger than what `read` takes.
        OSError.
    """
    texts = {name: text.encode() for name, text in sorted(parts.items())}
    records = {name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()} for name, text in texts.items()}
    header = canonical({"format": FORMAT, "version": VERSION, "run": run, "parts": records})
    lines = [header, *(canonical({"part": name, "text": parts[name]}) for name in texts)]
    signed = signature.sign(key, header) if key else None
    if signed:
        lines.append(canonical({"signature": signed.model_dump()}))
    content = b"".join(line + b"\n" for line in lines)
    compressor = zlib.compressobj(9, zlib.DEFLATED, _GZIP)
    packed = compressor.compress(content) + compressor.flush()
    if len(content) > MOST_TEXT or len(packed) > MOST_BYTES or len(parts) > MOST_PARTS:
        raise UserError(f"{paths.label(file)} would hold {len(packed) / 2**20:.0f} MiB, more than a bundle may")
    with atomic.replacing(file, "wb", encoding=None) as stream:
        stream.write(packed)
    return Packed(run, dict(sorted(parts.items())), hashlib.sha256(header).hexdigest(), signed)


def read(file: Path, public_key: "Ed25519PublicKey | None" = None) -> Packed:
    """Read a bundle that anybody may have sent, and compare every part with its hash.

    Args:
        public_key: of the one who must have signed it; None: whoever made it is believed.

    Raises:
        UserError: it is no bundle, too large, changed, or not signed with that key; names the part.
    """
    name = paths.label(file)
    lines = _lines(file, name)
    try:
        header = _Header.model_validate(_loads(lines[0]))
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is no bundle of Lockstep's, or its first line was changed") from error
    if header.version != VERSION:
        raise UserError(f"{name} is a bundle of version {header.version}, and this Lockstep reads {VERSION}: update it")
    signed = _signature(lines, header, name)
    if public_key is not None:
        signature.require(public_key, signed, lines[0], name)
    parts = {}
    for (part, record), line in zip(header.parts.items(), lines[1:], strict=False):
        parts[part] = _text(line, part, record, name)
    return Packed(header.run, parts, hashlib.sha256(lines[0]).hexdigest(), signed)


def _lines(file: Path, name: str) -> list[bytes]:
    """The lines of the gzip stream. Raises UserError where it is none, or where it grows beyond the bounds."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"{name} is larger than the {MOST_BYTES // 2**20} MiB that a bundle may have")
    stream_of_text = zlib.decompressobj(_GZIP)
    try:
        text = stream_of_text.decompress(content, MOST_TEXT + 1)
    except zlib.error as error:
        raise UserError(f"{name} is no bundle of Lockstep's, or is damaged ({error})") from error
    if len(text) > MOST_TEXT:
        raise UserError(f"{name} unpacks to more than the {MOST_TEXT // 2**20} MiB that a bundle may hold")
    if not stream_of_text.eof or not text.endswith(b"\n"):
        raise UserError(f"{name} is incomplete: copy it again")
    if stream_of_text.unused_data:
        raise UserError(f"{name} was changed: something was appended to it")
    return text[:-1].split(b"\n")


def _signature(lines: list[bytes], header: _Header, name: str) -> Signature | None:
    """The signature in the line after the parts; UserError where the file has other lines than its header says."""
    rest = lines[1 + len(header.parts) :]
    if len(lines) <= len(header.parts):
        missing = list(header.parts)[len(lines) - 1]
        raise UserError(f"{name} was changed: its part {missing} is missing")
    if not rest:
        return None
    try:
        (line,) = rest
        return _Last.model_validate(_loads(line)).signature
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{name} was changed: it holds more than its first line lists") from error


def _text(line: bytes, part: str, record: FileRecord, name: str) -> str:
    try:
        content = _Part.model_validate(_loads(line))
    except (ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{name} was changed: its part {part} is damaged") from error
    if content.part != part or sha256(content.text) != record.sha256:
        raise UserError(f"{name} was changed: its part {part} is not what was packed")
    return content.text


def _loads(line: bytes) -> Any:
    return json_text.loads_without_duplicates(line.decode("utf-8"))


def sha256(text: str) -> str:
    """Of a part."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def as_json(text: str, part: str, name: str) -> dict[str, Any]:
    """The JSON object that a part is. Raises UserError where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: its part {part} is no JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: its part {part} holds no JSON object")
    return value
