"""Keys as OpenSSL makes them, signatures as `cryptography` checks them, and what is refused by name."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lockstep.errors import UserError
from lockstep.verification import signature

OPENSSL = shutil.which("openssl")


def written(folder: Path, name: str, key: Ed25519PrivateKey) -> tuple[Path, Path]:
    """The files of a pair of keys."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.touch(0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return written(tmp_path, "key", Ed25519PrivateKey.generate())


def openssl(folder: Path, line: str) -> str:
    """Run a documented line of shell."""
    return subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_signature_holds_for_its_key_and_content_only(pair: tuple[Path, Path]) -> None:
    private, public = signature.private_key(pair[0]), signature.public_key(pair[1])
    signed = signature.sign(private, b"content")
    assert signed == signature.sign(private, b"content")
    signature.require(public, signed, b"content", "x")
    with pytest.raises(UserError, match="x was changed after it was signed"):
        signature.require(public, signed, b"contend", "x")
    with pytest.raises(UserError, match="x is not signed"):
        signature.require(public, None, b"content", "x")
    other = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(UserError, match=f"signed with the key {signed.key[:16]}.*is {signature.name_of(other)[:16]}"):
        signature.require(other, signed, b"content", "x")
    for value in ("", "!!", signed.value[:-4]):
        with pytest.raises(UserError, match="was changed after it was signed"):
            signature.require(public, signed.model_copy(update={"value": value}), b"content", "x")


def test_a_key_that_others_can_read_is_refused(pair: tuple[Path, Path]) -> None:
    for mode in (0o640, 0o604, 0o620):
        pair[0].chmod(mode)
        with pytest.raises(UserError, match="chmod 600"):
            signature.private_key(pair[0])


def test_the_wrong_half_and_no_key_at_all_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = pair
    public.chmod(0o600)
    with pytest.raises(UserError, match="is a public key: give the private one"):
        signature.private_key(public)
    with pytest.raises(UserError, match="is a private key, which stays"):
        signature.public_key(private)
    (tmp_path / "text").write_text("-----BEGIN")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(UserError, match="no private key"):
        signature.private_key(tmp_path / "text")
    with pytest.raises(UserError, match="no public key"):
        signature.public_key(tmp_path / "text")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        signature.public_key(tmp_path / "absent")


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_openssl_makes_and_names_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl(tmp_path, "openssl genpkey -algorithm ed25519 -out key.pem")
    openssl(tmp_path, "openssl pkey -in key.pem -pubout -out key.pub.pem")
    name = openssl(tmp_path, "openssl pkey -pubin -in key.pub.pem -outform DER | openssl sha256").split()[-1]
    private, public = signature.private_key(tmp_path / "key.pem"), signature.public_key(tmp_path / "key.pub.pem")
    assert signature.name_of(public) == name
    signature.require(public, signature.sign(private, b"1"), b"1", "x")

    openssl(tmp_path, "openssl pkey -in key.pem -aes256 -passout pass:secret -out locked.pem")
    with pytest.raises(UserError, match="is encrypted: set LOCKSTEP_BUNDLE_PASSWORD"):
        signature.private_key(tmp_path / "locked.pem")
    monkeypatch.setenv(signature.PASSWORD, "secret")
    assert signature.name_of(signature.private_key(tmp_path / "locked.pem").public_key()) == name
    with pytest.raises(UserError, match="is not encrypted: unset"):
        signature.private_key(tmp_path / "key.pem")
    monkeypatch.setenv(signature.PASSWORD, "wrong")
    with pytest.raises(UserError, match="is not its password"):
        signature.private_key(tmp_path / "locked.pem")

    monkeypatch.delenv(signature.PASSWORD)
    openssl(
        tmp_path,
        "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem && openssl pkey -in ec.pem -pubout -out ec.pub.pem",
    )
    with pytest.raises(UserError, match="is no Ed25519 key"):
        signature.private_key(tmp_path / "ec.pem")
    with pytest.raises(UserError, match="is no Ed25519 key"):
        signature.public_key(tmp_path / "ec.pub.pem")
