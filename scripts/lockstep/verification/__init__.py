"""Whether a model, an adapter or an endpoint is the model that was trained, whoever made it."""
