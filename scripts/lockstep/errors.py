"""The two ways in which a stage ends without success."""

USER_ERROR = 2  # exit code: something that the user can put right
INTERRUPTED = 130  # exit code: Ctrl-C, as shells report SIGINT


class UserError(Exception):
    """Something that the user can put right: one line that says what is wrong and what to run."""
