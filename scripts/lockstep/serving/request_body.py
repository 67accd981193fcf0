"""A request's body as text: JSON in UTF-8, neither compressed nor in another encoding."""

import json

from lockstep.serving.answers import Refusal


def json_text(headers: dict[bytes, bytes], body: bytes) -> str:
    """A body's text, without the mark (BOM) that programs on Windows put before it.

    JSON's media type is asked for, too: without it any web page could send a body here that a browser does not ask
    about first.

    Args:
        headers: of the request, each name once.

    Raises:
        Refusal: 415 where the headers say that it is something else, 400 where it is none.
    """
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity"):
        name = encoding.decode("ascii", errors="replace")
        refused = f"the body is compressed (Content-Encoding: {name:.40}): send it as it is"
        raise Refusal(415, refused, headers=[(b"accept-encoding", b"identity")])
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        name = media_type.decode("ascii", errors="replace") or "missing"
        raise Refusal(415, f"the header Content-Type is {name:.60}: send Content-Type: application/json")
    if not body:
        raise Refusal(400, "the body is empty, and must be a JSON object")
    guess = json.detect_encoding(body)
    if not guess.startswith("utf-8"):
        raise Refusal(400, f"the body is {guess.upper()}, and JSON is sent in UTF-8")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte 0x{body[error.start]:02x} at position {error.start}; send it in UTF-8"
        raise Refusal(400, message) from error
