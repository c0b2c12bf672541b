"""The figures of the FM-HRNet paper (B. Nan, *Fast Multi-scale HRNet for Coal and Rock Image Segmentation*), Tables 1 and 2.

Accuracy in percent on the paper's own data; frames per second on an RTX 2080 Ti; parameters in millions. The column "GFLOPs" is printed in
millions ("174M"), which no such network can have: it is read as thousands of millions. What is counted and at which size the paper
does not say; see this folder's README. ``None`` where the table has no such column.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of one table."""

    table: int
    model: str
    miou: float
    pa: float
    mpa: float
    gflops: float
    fps: float | None = None
    params_m: float | None = None

    @property
    def key(self) -> str:
        """The row's name, unique over both tables, such as ``t2/FM-HRNet-V4``."""
        return f"t{self.table}/{self.model}"

    @property
    def gmacs(self) -> float:
        """Thousands of millions of multiply-adds at 512x512, if the column counts two for each there (or one each at 512x1024)."""
        return self.gflops / 2

    def figures(self) -> dict[str, float]:
        """The figures that the table has, by name, and the multiply-adds that its GFLOPs amount to."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)} | {"gmacs": self.gmacs}


def _compared(model: str, miou: float, pa: float, mpa: float, fps: float, gflops: float) -> PaperRow:
    return PaperRow(table=1, model=model, miou=miou, pa=pa, mpa=mpa, fps=fps, gflops=gflops)


def _version(model: str, miou: float, pa: float, mpa: float, params_m: float, gflops: float) -> PaperRow:
    return PaperRow(table=2, model=model, miou=miou, pa=pa, mpa=mpa, params_m=params_m, gflops=gflops)


PAPER_ROWS: tuple[PaperRow, ...] = (
    # Table 1. Columns: MIoU, PA, MPA, FPS, GFLOPs.
    _compared("HRNet", 86.74, 93.48, 82.59, 6.7, 174.0),
    _compared("Lite-HRNet", 86.94, 93.59, 92.16, 10.4, 21.0),
    _compared("Deeplabv3+", 87.15, 94.23, 91.65, 7.8, 135.0),
    _compared("FCN-8s", 84.32, 92.85, 87.58, 11.5, 83.0),
    _compared("U-Net", 86.87, 93.17, 89.36, 12.6, 52.0),
    _compared("FAM-CRFSN", 89.19, 94.26, 94.10, 17.4, 26.0),
    _compared("FM-HRNet-V0", 89.28, 94.90, 94.00, 18.6, 21.0),
    _compared("FM-HRNet-V1", 87.93, 93.94, 92.72, 34.8, 6.64),
    # Table 2. Columns: MIoU, PA, MPA, parameters, GFLOPs.
    _version("FM-HRNet-V1", 87.93, 93.94, 92.72, 22.67, 6.64),
    _version("FM-HRNet-V2", 89.23, 94.88, 93.99, 22.67, 6.64),
    _version("FM-HRNet-V3", 87.46, 93.98, 92.97, 14.54, 5.38),
    _version("FM-HRNet-V4", 89.26, 94.88, 93.99, 14.54, 5.39),
)

# Section 4: how the paper trains, with Adam. The command in this folder's README sets it.
TRAINING: dict[str, float | str] = {"epochs": 300, "batch_size": 18, "optimizer": "adam"}


def row(key: str) -> PaperRow:
    """The row of a key, such as ``t2/FM-HRNet-V4``; KeyError if there is none."""
    return {one.key: one for one in PAPER_ROWS}[key]


def figures(model: str) -> dict[str, float]:
    """What either table says of a model; KeyError if neither has it."""
    rows = [one for one in PAPER_ROWS if one.model == model]
    if not rows:
        raise KeyError(model)
    return {name: value for one in rows for name, value in one.figures().items()}
