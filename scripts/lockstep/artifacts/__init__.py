"""What stages leave on disk: written whole or not at all, hashed, and named in one place."""
