"""The figures of the LosNet paper (Sun et al., Minerals 2022, 12, 526), Tables 1 to 8, in one literal place.

AP in percent, times in ms on a GTX 2080 Ti (training: per iteration), memory in MB. "Model size" is a training checkpoint with the
optimiser's momentum and an unused classifier, not a file of weights: see this folder's README. ``None`` where the table has no such column.
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of one table: its number, its label as printed (flags as ``yes``/``no``), and its figures."""

    table: int
    label: str
    box_ap50: float
    mask_ap50: float
    infer_ms: float
    size_mb: float
    train_ms: float | None = None
    train_memory_mb: float | None = None
    infer_memory_mb: float | None = None

    @property
    def key(self) -> str:
        """The row's name, unique over all tables, such as ``t2/96-no``."""
        return f"t{self.table}/{self.label}"

    def figures(self) -> dict[str, float]:
        """The figures that the table has, by name."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, float)}


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """One method of Tables 7 (accuracy, percent) and 8 (costs), joined. ``None`` where the paper prints a dash."""

    method: str
    backbone: str
    box_ap: float | None
    box_ap50: float | None
    box_ap75: float | None
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    train_ms: float
    infer_ms: float
    train_memory_mb: float
    infer_memory_mb: float
    size_mb: float
    batch_size: int

    def figures(self) -> dict[str, float]:
        """The paper's eleven indexes (section 4.1.3) by name, without those it leaves out."""
        return {name: float(value) for name, value in asdict(self).items() if isinstance(value, int | float)}


def _backbone(label: str, *figures: float) -> PaperRow:
    box, mask, train, infer, train_memory, infer_memory, size = map(float, figures)
    return PaperRow(
        table=1,
        label=label,
        box_ap50=box,
        mask_ap50=mask,
        train_ms=train,
        infer_ms=infer,
        train_memory_mb=train_memory,
        infer_memory_mb=infer_memory,
        size_mb=size,
    )


def _ablation(table: int, label: str, *figures: float) -> PaperRow:
    box, mask, infer, size = map(float, figures)
    return PaperRow(table=table, label=label, box_ap50=box, mask_ap50=mask, infer_ms=infer, size_mb=size)


def _result(method: str, backbone: str, box: tuple[float, float, float] | None, *figures: float, batch: int) -> PaperResult:
    mask_ap, mask_ap50, mask_ap75, train, infer, train_memory, infer_memory, size = map(float, figures)
    box_ap, box_ap50, box_ap75 = box or (None, None, None)
    return PaperResult(
        method=method,
        backbone=backbone,
        box_ap=box_ap,
        box_ap50=box_ap50,
        box_ap75=box_ap75,
        mask_ap=mask_ap,
        mask_ap50=mask_ap50,
        mask_ap75=mask_ap75,
        train_ms=train,
        infer_ms=infer,
        train_memory_mb=train_memory,
        infer_memory_mb=infer_memory,
        size_mb=size,
        batch_size=batch,
    )


# Table 1, backbones in the ablation's baseline (256 channels, 3x3 convolutions, P6/P7, four head convolutions, GN).
# Columns: box AP50, mask AP50, training ms, inference ms, training MB, inference MB, model MB.
_TABLE_1 = (
    _backbone("DLA34", 51.84, 47.241, 775.7, 50.8, 9464, 1715, 193),
    _backbone("EfficientNet-B0", 53.17, 47.20, 316.2, 56.0, 6114, 2243, 112),
    _backbone("MnasNet-0.5", 54.75, 41.43, 270.6, 45.2, 3362, 1611, 93),
    _backbone("MobileNetV2", 52.55, 47.04, 483.1, 42.1, 9535, 2029, 90),
    _backbone("MobileNetV3-Small", 61.49, 47.85, 606.3, 35.9, 4045, 1389, 89),
    _backbone("ResNet50", 52.21, 48.72, 312.8, 56.7, 5385, 1713, 259),
    _backbone("ResNet101", 51.66, 48.65, 390.6, 59.2, 6985, 2101, 404),
    _backbone("VoVNetV2", 55.13, 47.92, 359.1, 55.9, 4753, 1811, 267),
    _backbone("PeleeNet", 54.03, 47.24, 297.2, 62.5, 3821, 1827, 99),
    _backbone("RegNet-200M", 55.31, 47.51, 277.5, 49.9, 3044, 1787, 98),
    _backbone("ShuffleNetV2", 53.47, 47.09, 454.8, 49.9, 5279, 1719, 87),
)

# Tables 2 to 6. Columns: box AP50, mask AP50, inference ms, model MB.
_TABLES_2_TO_6 = (
    # Table 2: channels of the FPN, with (yes) and without (no) its 3x3 convolutions.
    _ablation(2, "64-yes", 64.06, 47.75, 32.8, 25),
    _ablation(2, "64-no", 63.33, 47.86, 33.2, 24),
    _ablation(2, "96-yes", 62.59, 47.97, 33.8, 31),
    _ablation(2, "96-no", 62.68, 47.93, 33.4, 30),
    _ablation(2, "128-yes", 62.21, 48.05, 34.6, 39),
    _ablation(2, "128-no", 62.34, 47.97, 33.7, 37),
    _ablation(2, "256-yes", 61.49, 47.85, 35.9, 89),
    _ablation(2, "256-no", 62.41, 48.11, 34.3, 82),
    # Table 3: with and without the levels P6 and P7.
    _ablation(3, "P6P7-yes", 61.49, 47.85, 35.9, 89),
    _ablation(3, "P6P7-no", 61.90, 47.95, 31.0, 80),
    # Table 4: convolutions of the classification and of the box branch.
    _ablation(4, "1", 67.86, 44.78, 30.1, 62),
    _ablation(4, "2", 66.20, 47.02, 31.6, 71),
    _ablation(4, "3", 63.08, 47.55, 34.0, 80),
    _ablation(4, "4", 61.49, 47.85, 35.9, 89),
    # Table 5: normalisation of the head.
    _ablation(5, "GN", 61.49, 47.85, 35.9, 89),
    _ablation(5, "BN", 60.65, 47.63, 33.4, 89),
    # Table 6: the two FPNs inside LosNet.
    _ablation(6, "original-FPN", 67.47, 46.83, 29.7, 71),
    _ablation(6, "light-FPN", 67.68, 46.73, 25.2, 26),
)

PAPER_ROWS: tuple[PaperRow, ...] = _TABLE_1 + _TABLES_2_TO_6

# Tables 7 and 8 joined. Columns: box (AP, AP50, AP75), mask AP, AP50, AP75, training ms, inference ms, training MB, inference MB, model MB.
PAPER_RESULTS: tuple[PaperResult, ...] = (
    _result("Mask R-CNN", "R-101", (43.0, 51.7, 48.7), 12.4, 22.1, 13.3, 251.2, 74.7, 5407, 1876, 480, batch=2),
    _result("Mask R-CNN", "RX-101", (42.8, 51.7, 48.8), 9.6, 17.5, 9.9, 316.5, 87.5, 6398, 1872, 477, batch=2),
    _result("Mask R-CNN", "R2-101", (24.9, 51.7, 48.8), 10.4, 18.6, 10.8, 359.4, 83.1, 6648, 1923, 485, batch=2),
    _result("Mask R-CNN", "S-50", (27.0, 51.6, 48.6), 12.5, 23.8, 12.4, 214.1, 79.5, 7414, 1657, 260, batch=4),
    _result("Mask R-CNN", "RegNet", (43.1, 51.8, 48.9), 10.2, 19.0, 10.5, 203.7, 59.6, 7414, 1657, 260, batch=4),
    _result("Mask R-CNN", "R-50", (42.8, 51.7, 48.7), 12.4, 22.6, 12.7, 361.7, 60.1, 6499, 1769, 334, batch=4),
    _result("MS R-CNN", "R-50", (42.7, 51.7, 48.7), 14.7, 23.4, 16.6, 246.6, 62.7, 7249, 1794, 428, batch=4),
    _result("CARAFE", "R-50", (42.9, 51.8, 48.8), 13.7, 24.9, 14.4, 515.7, 65.2, 7373, 1873, 376, batch=4),
    _result("Cascade Mask R-CNN", "R-50", (43.6, 51.1, 49.5), 40.0, 49.6, 47.3, 820.9, 77.6, 5280, 2005, 587, batch=2),
    _result("HTC", "R-50", (43.7, 52.6, 49.4), 40.1, 49.5, 47.1, 893.4, 78.9, 6165, 2314, 588, batch=2),
    _result("GRoIE", "R-50", (42.2, 51.7, 48.6), 7.6, 12.0, 8.3, 414.3, 110.7, 5407, 2030, 363, batch=2),
    _result("SCNet", "R-50", (43.9, 53.1, 49.5), 40.1, 49.5, 47.1, 311.8, 82.4, 8273, 2406, 699, batch=4),
    _result("YOLACT", "R-50", (39.6, 50.5, 46.4), 6.7, 11.5, 6.9, 64.0, 32.8, 10513, 7610, 265, batch=8),
    _result("YOLACT", "R-101", (40.3, 50.6, 47.3), 7.1, 11.9, 7.7, 82.7, 40.9, 10001, 7758, 410, batch=8),
    _result("BlendMask", "R-50", (44.1, 58.1, 49.2), 38.9, 48.7, 46.2, 276.9, 58.9, 4669, 1641, 274, batch=4),
    _result("CondInst", "R-50", (43.1, 52.2, 48.8), 39.0, 48.7, 46.2, 312.8, 56.7, 5385, 1713, 259, batch=4),
    _result("SOLOv2", "R-50", None, 31.6, 45.8, 36.8, 392.7, 62.4, 5025, 3123, 354, batch=4),
    _result("BoxInst", "R-50", (44.3, 56.9, 49.5), 34.8, 48.8, 45.9, 454.6, 55.0, 9276, 1681, 261, batch=4),
    _result("LosNet", "R-101", (44.0, 53.0, 49.2), 40.1, 49.0, 46.7, 704.2, 35.4, 5397, 1525, 338, batch=12),
    _result("LosNet", "R-50", (44.2, 53.6, 49.3), 40.2, 49.2, 46.9, 539.9, 32.3, 3759, 1467, 193, batch=12),
    _result("LosNet", "M-V3", (38.5, 67.7, 39.7), 35.7, 46.7, 41.8, 448.7, 25.2, 2838, 1359, 26, batch=12),
)


def result(method: str, backbone: str) -> PaperResult:
    """A method's row of Tables 7 and 8; KeyError if there is none."""
    return {(r.method, r.backbone): r for r in PAPER_RESULTS}[method, backbone]


def row(key: str) -> PaperRow:
    """The row of a key, such as ``t2/96-no``; KeyError if there is none."""
    return {r.key: r for r in PAPER_ROWS}[key]


def table_rows(tables: tuple[int, ...]) -> tuple[PaperRow, ...]:
    """The rows of Tables 1 to 6 with these numbers, in the paper's order."""
    return tuple(r for r in PAPER_ROWS if r.table in tables)
