"""The figures of the slag paper (Yu and Liu), Tables 1 to 3, in one literal place.

mIoU and MPA in percent. What the tables call ``Params/M`` are MiB of float32: see this folder's README.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of Table 2 or 3."""

    table: int
    model: str
    backbone: str | None  # None where the row does not name it
    attention: str | None
    miou: float
    mpa: float
    size_mib: float

    def figures(self) -> dict[str, float]:
        """The row's figures by name, and the millions of parameters that its size amounts to."""
        figures = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        return figures | {"params_m": self.size_mib * 2**20 / 4 / 1e6}


# Columns: mIoU, MPA, Params/M.
PAPER_ROWS: tuple[PaperRow, ...] = (
    # Table 2: the ablation.
    PaperRow(table=2, model="DeepLabv3+", backbone="Xception", attention=None, miou=88.57, mpa=92.38, size_mib=208.7),
    PaperRow(table=2, model="DeepLabv3+", backbone="MobileNetV2", attention=None, miou=87.84, mpa=91.74, size_mib=22.18),
    PaperRow(table=2, model="DeepLabv3+", backbone="MobileNetV2", attention="EMA", miou=90.46, mpa=94.90, size_mib=22.24),
    # Table 3: the comparison. The text names the trunks of FCN and U-Net.
    PaperRow(table=3, model="FCN", backbone="ResNet50", attention=None, miou=85.64, mpa=89.57, size_mib=25.86),
    PaperRow(table=3, model="U-Net", backbone="VGG", attention=None, miou=90.87, mpa=95.43, size_mib=94.95),
    PaperRow(table=3, model="DeepLabv3+", backbone=None, attention=None, miou=88.57, mpa=92.38, size_mib=208.70),
    PaperRow(table=3, model="Ours", backbone=None, attention=None, miou=90.46, mpa=94.90, size_mib=22.24),
)

# Table 1: how the paper trains. The command in this folder's README sets it.
TRAINING: dict[str, float | str] = {
    "epochs": 150,
    "batch_size": 4,
    "learning_rate": 7e-3,
    "least_learning_rate": 7e-5,
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
}
IMAGE_SIZE = (512, 512)
CLASSES = ("background", "tube", "slag")


def row(table: int, model: str, backbone: str | None, attention: str | None = None) -> PaperRow:
    """One row; KeyError if there is none."""
    return {(r.table, r.model, r.backbone, r.attention): r for r in PAPER_ROWS}[table, model, backbone, attention]
