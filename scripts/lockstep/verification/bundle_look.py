"""What a bundle proves about folders and an endpoint: one look, to be repeated or not."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.verification import bundle, bundle_folder, signature
from lockstep.verification.verdict import Proof

Tell = Callable[[str], None]


class BundleLook(AbstractContextManager["BundleLook"]):
    """A bundle that was read and checked, with its tokenizer in a temporary folder; a block in which it is used.

    Args:
        file: the bundle.
        public_key: file with the key that must have signed it; None: whoever made it is believed.

    Raises:
        UserError: it cannot be read, was changed, or is not signed with that key.
    """

    def __init__(self, file: Path, public_key: Path | None) -> None:
        self.bundle = bundle.read(file, signature.public_key(public_key) if public_key else None)
        self._folder = tempfile.TemporaryDirectory(prefix="lockstep-")
        self.expectation = self.bundle.unpacked(Path(self._folder.name))

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def labels(self) -> dict[str, str]:
        """What it is, for metrics."""
        return {"run": self.bundle.packed.run, "bundle": self.bundle.packed.digest[:16]}

    def require(self, adapter: Path | None, merged: Path | None) -> None:
        """Raise UserError where a folder is not there, or the bundle knows none of its kind."""
        for stage, path in ((filenames.ADAPTER, adapter), (filenames.MERGED, merged)):
            if path is not None and not path.is_dir():
                raise UserError(f"--{stage} {paths.label(path)}: there is no such folder")
            if path is not None:
                bundle_folder.require(self.bundle, stage)

    def of_folders(self, adapter: Path | None, merged: Path | None) -> list[dict[str, Proof]]:
        """The proofs about folders that were given; each is the run's own, or one as its stage made it."""
        self.require(adapter, merged)
        looks = []
        for stage, path in ((filenames.ADAPTER, adapter), (filenames.MERGED, merged)):
            if path is not None:
                folder = path / stage if (path / stage).is_dir() else path
                looks.append(bundle_folder.proofs(self.bundle, stage, folder, self.expectation.tokenizer))
        return looks

    def of_endpoint(self, url: str, model: str | None, tell: Tell) -> dict[str, Proof]:
        """The proofs about an endpoint."""
        from lockstep.verification import endpoint_proofs

        return endpoint_proofs.endpoint_proofs(self.expectation, url, model, tell)


def refuse_other_options(given: dict[str, object]) -> None:
    """Raise UserError for an option that says what a bundle says, too."""
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"--{name} and --bundle: what was trained stands in the bundle; give --endpoint, --merged or --adapter"
            )
