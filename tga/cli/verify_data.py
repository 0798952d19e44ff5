"""tga-verify-data: every record and picture of a data set, looked at once, and a list of the bad ones."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tga.cli.common import hydra_command, plain
from tga.cli.data import source_of
from tga.cli.locks import claimed_output
from tga.data.verify import Verified, verify
from tga.errors import UserError
from tga.terminal import literal


@hydra_command("verify_data")
def main(config: DictConfig) -> None:
    """Verify, print what was found, and fail where too much is bad."""
    values = plain(config)
    data, out = values["data"], Path(values["out"]).absolute()
    source = source_of(data)
    with claimed_output(out, option="out"), tqdm(desc="verifying", unit="record") as bar:
        found = verify(
            source,
            out,
            limit=data["limit"],
            workers=values["workers"],
            max_pixels=values["max_pixels"],
            duplicate_ids=data["duplicate_ids"],
            progress=lambda records: bar.update(records - bar.n),
        )
    _print(found, out)
    if found.bad_fraction > data["max_bad_fraction"]:
        raise UserError(
            f"{len(found.bad)} of {found.records} records of {source.name} are bad: {json.dumps(found.counts())}",
            given=f"a share of {found.bad_fraction:.4f}",
            allowed=f"{data['max_bad_fraction']:g}",
            remedy=f"look at {out}; complete the download, or data.max_bad_fraction=SHARE for training without them",
        )


def _print(found: Verified, out: Path) -> None:
    console = Console()
    table = Table(title=f"{found.records} records, {len(found.bad)} bad")
    table.add_column("problem")
    table.add_column("records", justify="right")
    table.add_column("for example")
    for kind, count in found.counts().items():
        example = next(entry for entry in found.bad if entry.problem == kind)
        table.add_row(literal(kind), str(count), literal(f"row {example.row}: {example.detail}"))
    console.print(table)
    console.print(literal(f"bad list   {out}"), soft_wrap=True)


if __name__ == "__main__":
    main()
