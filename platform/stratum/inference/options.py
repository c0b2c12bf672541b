"""Options of a package's model that prediction may change, such as which patches a two-stage model refines."""

from collections.abc import Mapping
from dataclasses import replace

from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.package import LoadedModel
from stratum_models.two_stage.config import PICKING
from stratum_models.two_stage.model import TwoStage

TEMPERATURES = {"temperature", "temperature_end"}  # of ARSM, at the start and at the end of training


def with_options(loaded: LoadedModel, options: Mapping[str, str]) -> LoadedModel:
    """The package with other options and the same weights.

    Raises:
        UserError: the model has no such option, its weights do not fit with it, or it refines no patches whatever is asked.
    """
    if not options:
        return loaded
    idle = sorted(set(options) & set(PICKING)) if isinstance(loaded.model, TwoStage) and not loaded.model.refines else []
    if idle:
        raise UserError(f"--set {idle[0]}: this package is stage 1 alone, its stage 2 has not learnt: train it for more epochs")
    manifest = replace(loaded.manifest, overrides={**loaded.manifest.overrides, **options})
    model = build_model(manifest.preset, num_classes=manifest.num_classes, overrides=manifest.overrides)
    try:
        model.load_state_dict(loaded.model.state_dict())
    except RuntimeError as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(f"--set {given}: the package's weights do not fit a model like that: choose options of prediction alone") from error
    if TEMPERATURES & options.keys():  # kept with the weights, which brought back the one of the end of training
        model.set_progress(1.0 if "temperature_end" in options else 0.0)
    return replace(loaded, model=model.eval(), manifest=manifest)
