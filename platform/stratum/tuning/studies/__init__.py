"""Every family that can be swept over, by name."""

from stratum.tuning.studies.arsm import ARSM
from stratum.tuning.studies.fm_hrnet import FM_HRNET
from stratum.tuning.studies.losnet import LOSNET
from stratum.tuning.studies.slag import SLAG
from stratum.tuning.studies.study import ImageFacts, Study, StudyRow, Tradeoff
from stratum.tuning.studies.two_stage import TWO_STAGE
from stratum_models.errors import UserError

STUDIES: dict[str, Study] = {"losnet": LOSNET, "fm_hrnet": FM_HRNET, "arsm": ARSM, "slag": SLAG, "two_stage": TWO_STAGE}


def find_study(name: str) -> Study:
    """The study of a name. Raises UserError where there is none."""
    if name not in STUDIES:
        raise UserError(f"unknown study {name!r}: known are {', '.join(STUDIES)}")
    return STUDIES[name]


__all__ = ["STUDIES", "ImageFacts", "Study", "StudyRow", "Tradeoff", "find_study"]
