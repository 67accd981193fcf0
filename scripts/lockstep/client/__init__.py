"""Asking an endpoint: single questions, conversations, batches, and watching how it is."""
