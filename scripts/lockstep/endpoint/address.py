"""Where a run's endpoint is, under which name its model answers, and whether only this machine reaches it."""

import ipaddress
import urllib.parse
from pathlib import Path

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.settings.tree import Settings

FOLDERS = (filenames.SERVE, filenames.SERVE_BASE)  # of a run: the base is served beside the tuned model
BASE_SUFFIX = "-base"  # of the name under which a run's base answers


def url(settings: Settings) -> str:
    """Where clients find the endpoint."""
    host = settings.serve.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve.port}/v1"


def checked_url(given: str) -> str:
    """An endpoint's address as it was typed, without a slash at its end. Raises UserError where it is none."""
    try:
        parts = urllib.parse.urlsplit(given.rstrip("/"))
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.path.endswith("/v1") and parts.port != 0
    except ValueError:  # such as a port that is no number
        fits = False
    if not fits:
        raise UserError(f"{given} is no endpoint's address: it begins with http:// and ends in /v1")
    return given.rstrip("/")


def serve_dir(settings: Settings) -> Path:
    """Where the supervisor of a run's server keeps its notes."""
    return settings.run_dir / (filenames.SERVE_BASE if settings.serve.mode == "base" else filenames.SERVE)


def model_name(settings: Settings) -> str:
    """The name under which the model of a server's mode answers."""
    if settings.serve.mode == "base":
        return settings.serve.served_model_name or base_name(settings)
    return tuned_name(settings)


def tuned_name(settings: Settings) -> str:
    """The name under which the tuned model answers."""
    return settings.serve.served_model_name or settings.run


def base_name(settings: Settings) -> str:
    """The name under which the base answers beneath adapters, and by itself where no name is set."""
    return tuned_name(settings) + BASE_SUFFIX


def is_local(url: str) -> bool:
    """Whether an address is this machine's own; so is 0.0.0.0, where a server that listens everywhere can be asked."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost"


def is_loopback(host: str, setting: str) -> bool:
    """Whether only this machine can reach the address that a setting holds. Raises UserError where it is none."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise UserError(f"{setting} {host!r} is no address") from error
