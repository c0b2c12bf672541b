"""The figures of the ARSM paper (Fujii, Hotta: *Adaptive Resolution Selection for Improving Segmentation Accuracy of Small Objects*).

Tables 1 to 3. IoU in percent with its standard deviation over the folds of a cross-validation; parameters in millions; multiply-adds,
which the paper calls FLOPs, in thousands of millions for one image of 256 x 256 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Figure = tuple[float, float]  # mean and standard deviation

DROSOPHILA = ("membrane", "mitochondria", "synapse", "glia/extracellular", "intracellular")
COVID = ("background", "consolidation", "ground glass", "pleural effusion")


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """One network: its rows of Tables 1 and 2 (IoU of each class in the order above, and their mean) and of Table 3 (costs)."""

    method: str
    drosophila: tuple[Figure, ...]
    drosophila_miou: Figure
    covid: tuple[Figure, ...]
    covid_miou: Figure
    gmacs: float
    params_m: float

    def figures(self) -> dict[str, float]:
        """The means on both data sets, such as ``drosophila/miou`` and ``covid/iou_pleural effusion``, and the costs."""
        drosophila = _named("drosophila", DROSOPHILA, self.drosophila, self.drosophila_miou)
        return drosophila | _named("covid", COVID, self.covid, self.covid_miou) | {"gmacs": self.gmacs, "params_m": self.params_m}


def _named(data: str, classes: Sequence[str], figures: Sequence[Figure], miou: Figure) -> dict[str, float]:
    means = {f"{data}/iou_{name.replace('/', '_')}": mean for name, (mean, _) in zip(classes, figures, strict=True)}
    return {f"{data}/miou": miou[0]} | means


def _result(method: str, drosophila: Sequence[Figure], covid: Sequence[Figure], gmacs: float, params_m: float) -> PaperResult:
    """A result; the last figure of each table is the mean IoU."""
    return PaperResult(
        method=method,
        drosophila=tuple(drosophila[:-1]),
        drosophila_miou=drosophila[-1],
        covid=tuple(covid[:-1]),
        covid_miou=covid[-1],
        gmacs=gmacs,
        params_m=params_m,
    )


PAPER_RESULTS: tuple[PaperResult, ...] = (
    _result(
        "HRNetW18",
        ((72.07, 1.61), (83.07, 0.85), (44.75, 3.92), (68.38, 1.44), (92.02, 0.44), (72.06, 0.75)),
        ((95.32, 1.25), (33.02, 2.50), (45.07, 6.23), (7.57, 4.49), (45.24, 1.80)),
        63.98,
        9.44,
    ),
    _result(
        "Deeplabv3+ HRNetW18",
        ((72.81, 1.57), (83.85, 1.50), (45.07, 3.05), (68.31, 1.67), (92.43, 0.44), (72.49, 0.90)),
        ((94.73, 0.72), (32.16, 2.58), (45.95, 4.75), (8.52, 2.90), (45.34, 0.84)),
        264.45,
        12.61,
    ),
    _result(
        "HRNetW18 +OCR",
        ((72.57, 1.33), (83.58, 1.87), (46.18, 1.36), (68.13, 1.61), (92.35, 0.39), (72.56, 0.54)),
        ((95.35, 0.84), (34.12, 3.36), (44.78, 5.34), (7.22, 4.58), (45.37, 1.46)),
        211.91,
        12.07,
    ),
    _result(
        "HRFormer",
        ((72.42, 1.84), (82.79, 1.28), (48.71, 3.05), (68.14, 1.80), (92.23, 0.49), (72.86, 1.04)),
        ((95.50, 0.70), (34.77, 3.25), (46.15, 7.05), (7.29, 3.14), (45.93, 3.54)),
        249.51,
        6.45,
    ),
    _result(
        "HRNetW18 +ARSM",
        ((73.29, 1.30), (84.08, 1.87), (49.12, 1.55), (68.76, 1.62), (92.58, 0.38), (73.57, 0.53)),
        ((95.54, 0.63), (37.81, 3.73), (47.05, 7.01), (14.61, 7.31), (48.75, 1.73)),
        79.60,
        9.72,
    ),
    _result(
        "HRNetW32",
        ((72.82, 1.42), (83.72, 1.46), (45.88, 3.05), (68.20, 1.90), (92.48, 0.46), (72.62, 0.90)),
        ((95.61, 0.94), (34.56, 4.68), (45.82, 6.48), (5.97, 2.95), (45.49, 1.54)),
        168.74,
        29.27,
    ),
    _result(
        "HRNetW32 +ARSM",
        ((73.35, 1.32), (84.15, 0.78), (49.36, 1.82), (69.00, 1.68), (92.43, 0.37), (73.66, 0.87)),
        ((95.29, 1.05), (38.06, 3.87), (47.3, 7.01), (14.73, 7.28), (48.85, 1.71)),
        197.74,
        29.79,
    ),
)

# Section 4.2: how the paper trains. The command in this folder's README sets it.
TRAINING: dict[str, float | str] = {"epochs": 1000, "batch_size": 8, "learning_rate": 1e-3, "optimizer": "adam"}


def result(method: str) -> PaperResult:
    """A method's rows; KeyError if there are none."""
    return {r.method: r for r in PAPER_RESULTS}[method]
