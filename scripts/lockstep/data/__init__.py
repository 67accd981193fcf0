"""From a user's files to the token ids that training sees, with an account of every row."""
