"""What is wrong with a machine, an environment or somebody's own files, and how it is mended.

The modules that look at the machine need no package but Python's own library, wherever that is possible: people look
here when an environment is broken.
"""
