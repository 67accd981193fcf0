"""A training: how rows are laid out, the loss, the steps, checkpoints, and what is published at the end."""
