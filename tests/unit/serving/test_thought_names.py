"""Both names of a thought, in whole answers and in streams."""

import asyncio
import json
from typing import Any

from lockstep.serving.thought_names import BothNames

JSON, STREAM = [(b"content-type", b"application/json")], [(b"content-type", b"text/event-stream; charset=utf-8")]


def sent(headers: list[tuple[bytes, bytes]], *bodies: bytes, status: int = 200) -> list[dict[str, Any]]:
    """What a client gets of an answer in these pieces."""
    got: list[Any] = []

    async def keep(message: Any) -> None:
        got.append(message)

    async def answer() -> None:
        send = BothNames(keep)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for place, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": place < len(bodies)})

    asyncio.run(answer())
    return got


def choices(part: str, **fields: Any) -> bytes:
    return json.dumps({"id": "1", "choices": [{"index": 0, part: fields}]}, ensure_ascii=False).encode()


def test_a_whole_answer_has_both_and_the_right_length() -> None:
    body = choices("message", content="4", reasoning="二")
    start, answer = sent([*JSON, (b"content-length", str(len(body)).encode())], body[:20], body[20:])
    assert dict(start["headers"])[b"content-length"] == str(len(answer["body"])).encode()
    message = json.loads(answer["body"])["choices"][0]["message"]
    assert message == {"content": "4", "reasoning": "二", "reasoning_content": "二"}


def test_each_piece_of_a_stream_has_both_and_comes_at_once() -> None:
    thought, answer = choices("delta", reasoning="hm"), choices("delta", content="4", reasoning=None)
    pieces = [b"data: " + thought + b"\n\n", b"data: " + answer + b"\n\n", b"data: [DONE]\n\n", b""]
    start, *bodies = sent(STREAM, *pieces)
    assert start["headers"] == STREAM and [body["more_body"] for body in bodies] == [True, True, True, False]
    assert json.loads(bodies[0]["body"].removeprefix(b"data: "))["choices"][0]["delta"]["reasoning_content"] == "hm"
    assert [body["body"] for body in bodies[1:]] == pieces[1:]


def test_everything_else_passes_as_it_is() -> None:
    for body in (
        b"",
        b'{"reasoning": 1',
        b'["reasoning":',
        choices("message", content='"reasoning": x', reasoning=None),
    ):
        assert sent(JSON, body)[1]["body"] == body
    error = b'{"error": {"message": "\\"reasoning\\": no"}}'
    assert sent(JSON, error, status=400)[1]["body"] == error
