"""Pack what a run knows about itself in one small file, against which a deployment is verified elsewhere.

Reads   outputs/<run>/data/, adapter/, merged/ or base/, the report of the last gate, and models/<name>/
Writes  outputs/<run>/bundle.lockstep : contract, reference, reports, digests and hashes; no weights. The held-out rows
        of the reference and the system prompt are in it, as text: who gets the file can read them
Run     make bundle
        make bundle ARGS="--key key.pem"        signed; then: verify --bundle … --public-key key.pub.pem
        python scripts/bundle.py --config configs/demo.yaml

Every byte of the run is compared with its manifests first. Equal runs give equal bytes. An encrypted key's password is
read from LOCKSTEP_BUNDLE_PASSWORD.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import filenames, lineage, manifest
from lockstep.errors import UserError
from lockstep.merging import disk_check
from lockstep.processes import busy
from lockstep.settings import cli
from lockstep.settings.tree import Settings
from lockstep.verification import bundle, signature

ABSENT = 3  # exit code of --check


def check_run(settings: Settings) -> None:
    """Every byte of the run against its manifests, and the model on disk against base and adapter."""
    for stage, folder in bundle.folders(settings).items():
        record = manifest.read(folder)
        with busy.waiting(f"checking {paths.label(folder)}"):
            manifest.check_hashes(folder, record)
        if stage in (filenames.MERGED, filenames.BASE):
            manifest.require(folder, manifest.STAGES[stage])
            lineage.refuse_edits(settings, folder, record)
            disk_check.require(settings, folder)


def is_there(file: Path, settings: Settings) -> bool:
    """Whether a bundle of the run as it is now has been packed."""
    try:
        packed = bundle.read(file).manifests
        return {stage: record.digest for stage, record in packed.items()} == {
            stage: manifest.read(folder).digest for stage, folder in bundle.folders(settings).items()
        }
    except UserError:
        return False


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "")
    parser.add_argument("--key", type=Path, metavar="FILE", help="sign with this Ed25519 private key, in PEM's format")
    parser.add_argument(
        "--check",
        action="store_true",
        help="do nothing; the exit code is 0 if the bundle of the present run is there, 3 if not",
    )
    return parser.parse_args()


def main() -> int | None:
    chosen = options()
    settings = cli.settings_from(chosen)
    file = settings.run_dir / filenames.BUNDLE
    key = signature.private_key(chosen.key) if chosen.key else None
    if chosen.check:
        return 0 if is_there(file, settings) else ABSENT

    # --- inputs ---
    settings, _ = lineage.require(settings, settings.run_dir / filenames.ADAPTER, "train")
    if newer := lineage.newer_rows(settings.run_dir):
        cli.say(f"note: {newer}")
    check_run(settings)

    # --- work, save ---
    packed = bundle.pack(settings, file, key)
    by = f", signed with the key {packed.signed_by[: signature.SHOWN]}" if packed.signed_by else ""
    size = f"{file.stat().st_size / 1024:.0f} KiB"
    cli.say(f"{paths.label(file)} is complete: {size}, {manifest.short(packed.packed.digest)}{by}")
    cli.say(f"it holds {packed.rows} held-out rows of your data as text: give it to nobody who may not read them")
    return None


if __name__ == "__main__":
    cli.run(main)
