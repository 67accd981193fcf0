"""Networks and adapters: loading, reading, looking a stranger's files over, and what vLLM can serve of them."""
