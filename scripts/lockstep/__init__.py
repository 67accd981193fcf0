"""What the scripts share, in one package for each subject. A package imports only from those before it:

errors, paths → text → processes → settings → artifacts → prompts → endpoint → download → model → data → training →
merging → serving → client → evaluation → verification → doctor → chat

Scripts import it before anything else: what stands here must hold while they are still importing.
"""

import logging
import os
import signal
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - scripts may be started with any Python that is at hand
    sys.stderr.write(
        "error: Lockstep runs on Python 3.11 and 3.12, and {} is {}.{}: run `make setup`, and start the scripts with "
        ".venv/bin/python\n".format(sys.executable, *sys.version_info[:2])
    )
    raise SystemExit(2)

__version__ = "0.1.0"

# While Python looks for the module of `python -m lockstep.…`, sys.argv[0] is "-m".
_folder = os.path.dirname(os.path.realpath(sys.argv[0]))  # noqa: PTH120 - pathlib takes long to import
_is_program = sys.argv[0] == "-m" or _folder == os.path.dirname(os.path.realpath(__path__[0]))  # noqa: PTH120
if _is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends a program at once until settings.cli.run takes over: as a Python exception it would be a traceback,
    # and packages that are written in Rust break down over it while they are being imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lockstep import errors  # noqa: E402 - after that

errors.report_missing_packages_in_one_line()
# Here, as processes that a stage starts import libraries before any other code of ours runs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a missing optional kernel is no news
