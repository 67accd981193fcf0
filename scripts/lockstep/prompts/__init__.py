"""The one renderer of prompts, and the contract that a server must keep to."""
