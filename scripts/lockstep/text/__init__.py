"""Text and nothing else: characters, scripts, JSON, and texts made alike to be compared."""
