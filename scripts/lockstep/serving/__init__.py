"""vLLM behind a door: how it is started, what it lets in, and the gate that opens it."""
