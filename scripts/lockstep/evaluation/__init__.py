"""Base and tuned model on the same questions: measures, how sure they are, and the report."""
