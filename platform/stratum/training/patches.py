"""Whether images hold the patches that a model wants: known before anything is trained."""

from stratum.data.source import Dataset
from stratum.training.spec import RunSpec
from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.patches import check_patch
from stratum_models.two_stage.sliding import SlidingConfig


def check_patches(spec: RunSpec, data: Dataset) -> None:
    """Refuses patches that the images do not hold, for models that work patch by patch.

    Raises:
        UserError: a patch is larger than a validation image at the size at which it is predicted, or than what training cuts out of
            images; or there are fewer patches than are to be picked.
    """
    config = resolve_config(spec.model.preset, spec.model.overrides)
    if not isinstance(config, TwoStageConfig | SlidingConfig):
        return
    sizes = {config.scaled(*record.size) for record in data.val.records}
    try:
        for size in sorted(sizes):
            config.check_images(size)
        if spec.augment.crop:
            check_patch(config.patch, (spec.augment.crop, spec.augment.crop))
    except UserError as error:
        raise UserError(f"{spec.data.uri}: {error} (--set), or choose larger images (--size, --crop)") from error
