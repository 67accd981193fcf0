"""Other processes: those started for a piece of work, and those that train one model together."""
