"""vLLM's OpenAI server on the socket that the supervisor listens on, and behind our bounds on HTTP.

`python -m lockstep.serving.vllm_server FLAGS…` takes the flags of `vllm.entrypoints.launchers.api_server.entry`, whose
`run_server` this follows. The variables `protocol.LISTENER` and `protocol.READY` name two inherited files: the socket,
and a pipe on which this process says that it accepts connections.
"""

import os
import signal
import socket
from contextlib import suppress
from typing import Any

from lockstep.endpoint import protocol
from lockstep.serving.bounded_http import BoundedProtocol

EVERY = 3600  # seconds between two calls of what is called first when uvicorn accepts connections


def main() -> None:
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.system_utils import decorate_logs, set_ulimit

    listener = socket.socket(fileno=_inherited(protocol.LISTENER))
    ready = _inherited(protocol.READY)

    async def tell() -> None:
        with suppress(OSError):  # the supervisor knows already
            os.write(ready, b"1")

    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args()
    configure_logging_from_args(arguments)
    validate_parsed_serve_args(arguments)
    decorate_logs("APIServer", skip_if_decorated=True)
    signal.signal(signal.SIGTERM, _end)  # until uvicorn runs
    validate_api_server_args(arguments)
    set_ulimit()
    address = f"{arguments.host}:{arguments.port}"
    uvloop.run(
        run_server_worker(
            address, listener, arguments, http=BoundedProtocol, ws="none", callback_notify=tell, timeout_notify=EVERY
        )
    )


def _inherited(variable: str) -> int:
    """A file that the supervisor handed over, kept from vLLM's own processes."""
    number = int(os.environ.pop(variable))
    os.set_inheritable(number, False)
    return number


def _end(*_: Any) -> None:
    raise KeyboardInterrupt("terminated")


if __name__ == "__main__":
    main()
