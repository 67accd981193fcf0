"""Hubs, tokens and the clock: short questions to a hub. A machine without a network is sick only if it needs one."""

import configparser
import email.utils
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lockstep.doctor.findings import Fact, Finding, Look

SECONDS = 4  # that a hub has to answer in
LARGEST_SKEW, BROKEN_SKEW = 300, 86_400  # seconds; certificates are taken for expired, or not yet valid, from a day on
HUB, MODELSCOPE = "https://huggingface.co", "https://www.modelscope.cn"


@dataclass(frozen=True)
class Need:
    """What must be downloaded for the run.

    Attributes:
        source: hub, modelscope or pypi, an index of packages.
        what: such as "the model Qwen/Qwen3-8B".
        instead: another way to it.
    """

    source: str
    what: str
    instead: str


@dataclass(frozen=True)
class Answer:
    """What a server said: its status, the difference of its clock from ours in seconds, or why it did not answer."""

    status: int = 0
    skew: float | None = None
    error: str = ""


def ask(url: str, token: str = "", method: str = "HEAD") -> Answer:
    """One short question."""
    headers = {"User-Agent": "lockstep-doctor"} | ({"Authorization": f"Bearer {token}"} if token else {})
    started = time.time()
    try:
        request = urllib.request.Request(url, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return Answer(response.status, _skew(response.headers.get("Date"), started))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _skew(error.headers.get("Date"), started))
    except urllib.error.URLError as error:
        reason = error.reason
        certificate = isinstance(reason, ssl.SSLCertVerificationError)
        return Answer(error=f"its certificate is refused: {reason.verify_message}" if certificate else str(reason))  # type: ignore[union-attr]
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: it speaks something else
        return Answer(error=str(error) or type(error).__name__)


def _skew(date: str | None, started: float) -> float | None:
    try:
        told = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return None
    now = time.time()
    return 0.0 if started - 1 <= told <= now + 1 else told - now


def endpoint(source: str) -> str:
    """The address of a hub, as its library finds it."""
    if source == "modelscope":
        domain = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or MODELSCOPE
        return domain if "://" in domain else f"https://{domain}"
    if source == "pypi":
        return (os.environ.get("PIP_INDEX_URL") or _configured_index() or _default_index()).rstrip("/")
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _configured_index() -> str:
    """The index in pip's own config files; empty where none names one."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    files = (Path("/etc/pip.conf"), Path("~/.pip/pip.conf").expanduser(), folder / "pip/pip.conf")
    parser = configparser.RawConfigParser()
    try:
        parser.read([*files, Path(sys.prefix) / "pip.conf", os.environ.get("PIP_CONFIG_FILE") or os.devnull])
    except (configparser.Error, UnicodeDecodeError):
        return ""
    return parser.get("global", "index-url", fallback="")


def _default_index() -> str:
    """The index that pip takes by itself; empty where there is no pip, and nothing can be installed anyway."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return ""
    return str(PyPI.simple_url)


def hub_token() -> str:
    """The token that huggingface_hub would send; empty where there is none."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or str(Path(home) / "token")).expanduser()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def look(needs: list[Need]) -> Look:
    """The hubs that the run needs, the token, and the clock.

    Args:
        needs: what is still to be downloaded.
    """
    sources = list(dict.fromkeys(need.source for need in needs)) or ["hub"]
    facts: list[Fact] = []
    findings: list[Finding] = []
    skew: float | None = None
    for source in sources:
        own = [need for need in needs if need.source == source]
        answer = ask(endpoint(source))
        skew = answer.skew if skew is None else skew
        facts.append(Fact("hub" if source != "pypi" else "index", _state(source, answer, bool(own))))
        findings += _unreachable(source, answer, own)
        if source == "hub" and not answer.error and not _is_offline() and (token := hub_token()):
            findings += _token(token, bool(own), facts)
    return Look(tuple(facts), (*findings, *_clock(skew)))


def _state(source: str, answer: Answer, is_needed: bool) -> str:
    state = f"does not answer ({answer.error})" if answer.error else "answers"
    need = "" if is_needed or not answer.error else "; nothing of this run needs it"
    return f"{endpoint(source)} {state}{need}"


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _unreachable(source: str, answer: Answer, needs: list[Need]) -> list[Finding]:
    if not needs:
        return []
    what, instead = needs[0].what, needs[0].instead
    if source == "hub" and _is_offline():
        return [
            Finding("hub_offline", f"HF_HUB_OFFLINE is set, and {what} is not here: nothing is downloaded", "unset it")
        ]
    if answer.error or answer.status >= 500:
        reason = answer.error or f"status {answer.status}"
        told = f"{endpoint(source)} does not answer ({reason}), and {what} is not here: `make download` ends with that"
        return [Finding("hub_unreachable", told, f"check the network and HTTPS_PROXY, or {instead}")]
    return []


def _token(token: str, is_needed: bool, facts: list[Fact]) -> list[Finding]:
    """Whether the hub knows a token, which is never shown."""
    answer = ask(f"{endpoint('hub')}/api/whoami-v2", token, method="GET")
    if answer.status == 401:
        what = "the Hub refuses the token in HF_TOKEN or in the cache: with it even public models cannot be downloaded"
        return [Finding("token_invalid", what, "set HF_TOKEN to a new one, or unset it", stops=is_needed)]
    facts.append(Fact("token", "valid" if answer.status == 200 else "could not be checked"))
    return []


def _clock(skew: float | None) -> list[Finding]:
    if skew is None or abs(skew) <= LARGEST_SKEW:
        return []
    way = "behind" if skew > 0 else "ahead of"
    size = f"{abs(skew) / 86_400:.0f} days" if abs(skew) > 2 * 86_400 else f"{abs(skew) / 60:.0f} minutes"
    what = (
        f"this machine's clock is {size} {way} the hub's: certificates and tokens look expired or not yet valid, and "
        f"logs and manifests carry wrong times"
    )
    cure = "set it, for example with `sudo timedatectl set-ntp true`"
    return [Finding("clock_wrong", what, cure, stops=abs(skew) > BROKEN_SKEW)]
