"""Write a model's dense outputs as an ONNX file."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stratum import storage
from stratum.cli import option_pairs, run_job
from stratum.cost import parse_size
from stratum.inference.options import with_options
from stratum.registry import fetch_package
from stratum_models.arsm.network import ResolutionSelection
from stratum_models.catalog import build_model, preset
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.package import load_package

if TYPE_CHECKING:
    from stratum.onnx_export import Exported


@dataclass(frozen=True, kw_only=True)
class Args:
    """What to export, and where to."""

    output: str
    """The file to write, local or s3://, such as exports/losnet.onnx."""
    package: str = ""
    """A folder, s3://..., models:/name@champion, models:/name/3 or runs:/id/package."""
    preset: str = ""
    """A preset in the package's place, with random weights."""
    set: tuple[str, ...] = ()
    """Options of the preset, such as head_convs=1, or of the package's model where its weights fit with them, such as temperature=0.2."""
    classes: int = 2
    """Number of classes of the preset."""
    size: str = "480x640"
    """Height x width to export with; where sizes cannot be left open, the only one that the file takes."""
    dynamic: bool = True
    """Leave batch, height and width open, where the exporter can."""

    def __post_init__(self) -> None:
        if bool(self.package) == bool(self.preset):
            raise UserError("give --package or --preset, one of them")
        if not storage.name(self.output).endswith(".onnx"):
            raise UserError(f"--output {self.output}: name a file that ends in .onnx")


def main(args: Args) -> None:
    """Write what a network gives before post-processing (logits, or scores, distances and mask weights) as an ONNX file.

    The input is float32 [B, 3, H, W] in 0..1; normalisation is inside. A file gets its name only after onnxruntime has run it and
    agreed with PyTorch within 1e-3. A pipeline of two stages becomes two files, NAME.stage1.onnx and NAME.stage2.onnx. ARSM is written
    with its gate's expectation.
    """
    size = parse_size(args.size)
    model, about = _from_package(args) if args.package else _from_preset(args)
    for module in model.modules():
        if isinstance(module, ResolutionSelection) and module.gate != "expected":
            print(f"gate=expected is written in place of gate={module.gate}: a file draws nothing at random")
            module.gate = "expected"
    from stratum.onnx_export import export_onnx  # onnxruntime: seconds that a mistake in the flags should not cost

    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, Path] = {}
        for name, part in model.exportable.items():
            path = Path(scratch) / f"{name or 'model'}.onnx"
            done = export_onnx(part, path, size, dynamic=args.dynamic, about={**about, "part": name})
            files[args.output.removesuffix(".onnx") + (f".{name}" if name else "") + ".onnx"] = path
            _describe(name, done, size)
        for uri, path in files.items():  # none before all of them are good
            storage.upload_file(path, uri)
            print(f"written: {storage.resolve(uri)} ({path.stat().st_size / 2**20:.1f} MB)")


def _describe(name: str, done: "Exported", size: tuple[int, int]) -> None:
    for output, shape in done.outputs.items():
        print(f"{f'{name} {output}'.strip():<20} {list(shape)}")
    print(f"batch, height and width: {'open' if done.dynamic else f'fixed at 1x{size[0]}x{size[1]}'}")
    if done.refusal:
        print(f"warning: they could not be left open: {done.refusal}")
    print(f"differs from PyTorch by {done.error:.1e} at most")


def _from_package(args: Args) -> tuple[SegmentationModel, dict[str, object]]:
    loaded = with_options(load_package(fetch_package(args.package)), option_pairs(args.set))
    manifest = loaded.manifest
    said = ("preset", "task", "classes", "score_threshold")
    return loaded.model, {name: getattr(manifest, name) for name in said}


def _from_preset(args: Args) -> tuple[SegmentationModel, dict[str, object]]:
    model = build_model(args.preset, num_classes=args.classes, overrides=option_pairs(args.set))
    return model.eval(), {"preset": args.preset, "task": preset(args.preset).task}


if __name__ == "__main__":
    run_job(main, Args)
