"""Every setting once: what it is, where it was given, and the command line that all scripts share."""
