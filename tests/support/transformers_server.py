"""A network of transformers that is asked for what the gate asks vLLM for: its log-probabilities of given tokens."""

from typing import Any

import torch


class TransformersServer:
    """Takes the place of `probe.Server` where only distributions are asked for.

    Args:
        network: answers for every name, unless `networks` has one of its own for it.
    """

    def __init__(self, network: torch.nn.Module, **networks: torch.nn.Module) -> None:
        self.network, self.networks, self.asked = network, networks, 0

    def ask(self, path: str, body: dict[str, Any], timeout: float = 0) -> Any:
        """The answer to a request for one token with `logprob_token_ids`, as vLLM gives it."""
        assert path == "/v1/completions" and body["max_tokens"] == 1
        self.asked += 1
        network = self.networks.get(body["model"], self.network)
        with torch.no_grad():
            logits = network(torch.tensor([body["prompt"]])).logits[0, -1]
        log_probs = torch.log_softmax(logits.float(), -1)
        top = {f"token_id:{token}": log_probs[token].item() for token in body["logprob_token_ids"]}
        return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}
