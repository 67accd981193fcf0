"""How long a stream may go on without text: pings alone would keep a hung server's stream alive for ever."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lockstep.client import request_errors


class Silence(threading.local):
    """The silence of the stream that this thread reads."""

    ends: float | None = None  # time.monotonic(); None: it may last

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Limit it for as long as the block lasts."""
        self.seconds = seconds
        self.broken()
        try:
            yield
        finally:
            self.ends = None

    def broken(self) -> None:
        """There was text."""
        self.ends = time.monotonic() + self.seconds

    def watched(self, stream: Any) -> Any:
        """The stream of a response's body, which fails with NoAnswer once there was no text for too long."""
        import httpx2

        silence = self

        class Watched(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                for piece in stream:
                    if silence.ends is not None and time.monotonic() > silence.ends:
                        raise request_errors.of_silence(silence.seconds)
                    yield piece

            def close(self) -> None:
                stream.close()

        return Watched()
