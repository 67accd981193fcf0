"""Text by itself: characters and scripts, JSON, and texts normalised for comparison."""
