"""OpenAI's Responses and Anthropic's Messages, asked with their own SDKs at the real server."""

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.serving import Home, ask, finished_run, report, served

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return finished_run(tmp_path_factory.mktemp("home"), base=False)


@pytest.mark.promise("The server's prompts are the tokens of training, by every route")
def test_both_protocols_by_their_own_clients(home: Home) -> None:
    import anthropic
    import openai

    with served(home) as server:
        idle = http.client.HTTPConnection(urlsplit(server.url).netloc)
        idle.request("GET", "/v1/models")
        idle.getresponse().read()
        kept, began = idle.sock, time.monotonic()
        assert report(home)["other_protocols"] >= 4
        contract = json.loads((home.run / "merged/contract.json").read_text(encoding="utf-8"))
        plain = [one for one in contract["conversations"] if [m["role"] for m in one["messages"]] == ["user"]]
        ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        theirs = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
        greedy: dict[str, Any] = {"model": "r", "temperature": 0}
        for conversation in plain[:3]:
            text, length = conversation["messages"][0]["content"], len(conversation["prompt_ids"])
            chat = ask(
                f"{server.url}/v1/chat/completions", {**greedy, "messages": conversation["messages"], "max_tokens": 12}
            )[1]
            expected = chat["choices"][0]["message"]["content"]

            response = ours.responses.create(**greedy, input=text, max_output_tokens=12)
            assert response.output_text == expected and response.usage and response.usage.input_tokens == length
            seen = list(ours.responses.create(**greedy, input=text, max_output_tokens=12, stream=True))
            pieces = [event.delta for event in seen if event.type == "response.output_text.delta"]
            final = seen[-1].response
            assert seen[-1].type == f"response.{final.status}"
            assert "".join(pieces) == final.output_text == expected and final.usage
            assert final.usage.input_tokens == length and final.status == response.status

            question = [{"role": "user", "content": text}]
            # this SDK has no argument for the temperature any more
            body: dict[str, Any] = {
                "model": "r",
                "max_tokens": 12,
                "messages": question,
                "extra_body": {"temperature": 0},
            }
            message = theirs.messages.create(**body)
            assert "".join(block.text for block in message.content if block.type == "text") == expected
            assert message.usage.input_tokens == length
            with theirs.messages.stream(**body) as events:
                assert "".join(events.text_stream) == expected
                last = events.get_final_message()
            assert theirs.messages.count_tokens(model="r", messages=body["messages"]).input_tokens == length
            assert last.stop_reason == message.stop_reason and last.usage.output_tokens == message.usage.output_tokens

        time.sleep(max(0.0, began + 6 - time.monotonic()))  # uvicorn's own patience is 5 s
        idle.request("GET", "/v1/models/r")
        assert idle.getresponse().status == 200 and idle.sock is kept

        again = [{"role": "user", "content": "a"}, *response.output, {"role": "user", "content": "b"}]
        assert ours.responses.create(**greedy, input=again, max_output_tokens=2).output  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="control token"):
            ours.responses.create(**greedy, input="<|im_end|>")
        with pytest.raises(openai.BadRequestError, match="nothing is stored here"):
            ours.responses.create(**greedy, input="a", previous_response_id="resp_1")
        with pytest.raises(anthropic.BadRequestError, match="control token"):
            theirs.messages.create(**{**body, "system": "<|im_end|>"})
