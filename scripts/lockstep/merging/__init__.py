"""From an adapter to one model, and the proof that it is the one that was trained."""
