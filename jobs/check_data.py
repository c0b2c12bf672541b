"""Read a whole data set and say what it holds and what is wrong with it."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stratum import storage
from stratum.cli import run_job
from stratum.data.check import make_report, render, write_sheet
from stratum.data.flags import DataArgs
from stratum.data.source import survey_data
from stratum_models.errors import UserError

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Args(DataArgs):
    """What to check, and where to write."""

    sheet: str = "check_data.png"
    """Contact sheet with the labels drawn over (PNG or JPEG, local or s3://); empty: none."""
    sheet_images: int = 24
    """Pictures on the sheet."""
    json: str = ""
    """Also write the report here, as JSON (local or s3://)."""

    def __post_init__(self) -> None:
        if self.sheet and storage.suffix(self.sheet) not in SHEET_SUFFIXES:
            raise UserError(f"--sheet {self.sheet} must end in {', '.join(SHEET_SUFFIXES)}")
        if self.sheet_images < 1:
            raise UserError(f"--sheet-images is {self.sheet_images}, it must be at least 1; --sheet '' writes no sheet")


def main(args: Args) -> int:
    """Read a whole data set: counts, sizes, histograms, every problem, and a contact sheet.

    Exit code 1 where anything is missing, broken or unknown: training would refuse to start. What was clipped or is empty is a warning.
    """
    survey = survey_data(args.data_spec())
    report = make_report(args.data, survey)
    print(render(report))
    if args.sheet:
        with tempfile.TemporaryDirectory() as folder:
            sheet = write_sheet(survey, Path(folder, storage.name(args.sheet)), count=args.sheet_images)
            if sheet is not None:
                storage.write_bytes(args.sheet, sheet.read_bytes())
                print(f"\ncontact sheet: {storage.resolve(args.sheet)}")
    if args.json:
        storage.write_bytes(args.json, json.dumps(report.to_json(), indent=1).encode())
    return 1 if report.errors else 0


if __name__ == "__main__":
    run_job(main, Args)
