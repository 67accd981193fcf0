"""Where a run's endpoint is, under which name its model answers, and whether only this machine reaches it."""

import ipaddress
import urllib.parse
from pathlib import Path

from lockstep.errors import UserError
from lockstep.settings.tree import Settings

FOLDERS = ("serve", "serve-base")  # of a run; the second one for mode base


def url(settings: Settings) -> str:
    """Where clients find the endpoint."""
    host = settings.serve.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}/v1"


def checked_url(given: str) -> str:
    """An endpoint's address as somebody typed it. Raises UserError where it is none."""
    try:
        parts = urllib.parse.urlsplit(given.rstrip("/"))
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.path.endswith("/v1") and parts.port != 0
    except ValueError:  # such as a port that is no number
        fits = False
    if not fits:
        raise UserError(f"{given} is no endpoint's address: it begins with http:// and ends in /v1")
    return given.rstrip("/")


def serve_dir(settings: Settings) -> Path:
    """Where the supervisor keeps its notes: the base is served beside the tuned model."""
    return settings.run_dir / FOLDERS[settings.serve.mode == "base"]


def model_name(settings: Settings) -> str:
    """The name under which the tuned model answers (or, in base mode, the base)."""
    return settings.serve.served_model_name or settings.run


def is_local(url: str) -> bool:
    """Whether an address is this machine's own, as the one that a server which listens everywhere is asked by."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return (found := ipaddress.ip_address(host)).is_loopback or found.is_unspecified
    except ValueError:
        return host == "localhost"


def is_loopback(host: str, setting: str) -> bool:
    """Whether only this machine can reach the address that a setting names. Raises UserError where it is none."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"{setting} {host!r} is no address") from error
