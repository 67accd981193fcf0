"""Ed25519 signatures of bundles (RFC 8032), with keys in PEM files as OpenSSL makes them.

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem

A key is named by the sha256 of its public half (SubjectPublicKeyInfo, DER):

    openssl pkey -pubin -in key.pub.pem -outform DER | openssl sha256
"""

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from lockstep import paths
from lockstep.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSWORD = "LOCKSTEP_BUNDLE_PASSWORD"  # environment variable, for a private key that is encrypted
MAKE_KEY = "openssl genpkey -algorithm ed25519 -out FILE"
LARGEST_KEY = 65_536  # bytes
SHOWN = 16  # characters of a key's name in messages
_CONTEXT = b"lockstep bundle 1\n"  # nothing else that is signed with the same key can be taken for a bundle


class Signature(BaseModel):
    """What is kept of a signature: the name of the key, and 64 bytes in base64."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    algorithm: Literal["ed25519"] = "ed25519"
    key: str = Field(pattern="^[0-9a-f]{64}$")
    value: str = Field(max_length=100)


def private_key(file: Path) -> "Ed25519PrivateKey":
    """The key in a PEM file that only its owner can read. The password of an encrypted one is in the environment.

    Raises:
        UserError: it is not there, not Ed25519, or others can read it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, mode = _content(file, "--key")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"--key {paths.label(file)} can be read by others than its owner: run `chmod 600` on it")
    if b"PUBLIC KEY" in content:
        raise UserError(f"--key {paths.label(file)} is a public key: give the private one, and verify with this one")
    password = os.environ.get(PASSWORD)
    try:
        key = load_pem_private_key(content, password.encode() if password else None)
    except TypeError as error:  # a password is missing, or was given where none is needed
        what = f"is encrypted: set {PASSWORD}" if password is None else f"is not encrypted: unset {PASSWORD}"
        raise UserError(f"--key {paths.label(file)} {what}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = f"no private key in PEM's format, or {PASSWORD} is not its password: make one with `{MAKE_KEY}`"
        raise UserError(f"--key {paths.label(file)} is {wrong}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"--key {paths.label(file)} is no Ed25519 key: make one with `{MAKE_KEY}`")
    return key


def public_key(file: Path) -> "Ed25519PublicKey":
    """The public key in a PEM file. Raises UserError where there is none of Ed25519."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content, _ = _content(file, "--public-key")
    if b"PRIVATE KEY" in content:
        raise UserError(
            f"--public-key {paths.label(file)} is a private key, which stays with whoever signs: "
            f"`openssl pkey -in FILE -pubout` gives the public one"
        )
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"--public-key {paths.label(file)} is no public key in PEM's format") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"--public-key {paths.label(file)} is no Ed25519 key")
    return key


def name_of(key: "Ed25519PublicKey") -> str:
    """sha256 of a public key's DER, in hexadecimal digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def sign(key: "Ed25519PrivateKey", content: bytes) -> Signature:
    """Sign bytes; the same key and bytes give the same signature."""
    value = base64.b64encode(key.sign(_CONTEXT + content)).decode()
    return Signature(key=name_of(key.public_key()), value=value)


def require(key: "Ed25519PublicKey", signed: Signature | None, content: bytes, name: str) -> None:
    """Refuse what this key did not sign.

    Args:
        name: of what is signed, for messages.

    Raises:
        UserError: it is not signed, or with another key, or was changed since.
    """
    from cryptography.exceptions import InvalidSignature

    if signed is None:
        raise UserError(f"{name} is not signed, and --public-key asks for a signature: pack it with --key")
    if signed.key != name_of(key):
        raise UserError(
            f"{name} is signed with the key {signed.key[:SHOWN]}, and --public-key is {name_of(key)[:SHOWN]}"
        )
    try:
        key.verify(base64.b64decode(signed.value, validate=True), _CONTEXT + content)
    except (InvalidSignature, binascii.Error) as error:
        raise UserError(f"{name} was changed after it was signed: its list of parts has another signature") from error


def _content(file: Path, option: str) -> tuple[bytes, int]:
    """A key's file and its permissions."""
    try:
        with file.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            return stream.read(LARGEST_KEY), mode
    except OSError as error:
        raise UserError(f"{option} {paths.label(file)} cannot be read: {error.strerror}") from error
