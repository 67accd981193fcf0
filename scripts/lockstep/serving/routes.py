"""Which route a request means, and what to tell a client that asks for one that is not served."""

import re

from lockstep.serving.answers import Refusal

MODELS = "/v1/models"
# What clients ask for whose base URL lacks its /v1, as paths below it.
BELOW = {"/chat/completions", "/completions", "/models", "/responses", "/messages", "/embeddings"}


def canonical(path: str) -> str:
    """A path without doubled slashes and without a slash at its end, which base URLs easily bring about."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"


def model_of(route: str) -> str | None:
    """The model that GET /v1/models/{model} names; None where a route is another."""
    name = route.removeprefix(f"{MODELS}/")
    return name if name != route else None


def not_served(method: str, route: str, routes: dict[str, str]) -> Refusal:
    """The refusal of a request that no route takes.

    Args:
        route: as `canonical` returns it.
        routes: path → method of those that are served.
    """
    listed = routes.get(MODELS if model_of(route) else route)
    if listed:
        allowed = "GET, HEAD" if listed == "GET" else listed
        message = f"{route:.80} is asked with {allowed.replace(', ', ' or ')}, not with {method:.20}"
        return Refusal(405, message, headers=[(b"allow", allowed.encode())])
    message = f"{method:.20} {route:.80} is not served here"
    if route in BELOW:
        message += ": the client's base URL lacks its end, set one that ends in /v1"
    elif route.startswith("/v1/v1/"):
        message += ": this client adds /v1 by itself, set its base URL to one without /v1"
    return Refusal(404, message)
