"""What stops a training run."""

from collections.abc import Mapping


class StoppedError(Exception):
    """The run was told to stop and has written a checkpoint."""

    def __init__(self, epoch: int, share: float) -> None:
        super().__init__(epoch, share)
        self.epoch, self.share = epoch, share  # counted from 0; how much of it is done, 0..1

    def __str__(self) -> str:
        return f"told to stop: {self.share:.0%} of epoch {self.epoch + 1} is done, and its checkpoint written"


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or not a number."""

    def __init__(self, step: int, rank: int, terms: Mapping[str, float]) -> None:
        super().__init__(step, rank, dict(terms))
        self.step, self.rank, self.terms = step, rank, dict(terms)

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
        return (
            f"the loss is not finite at step {self.step} on rank {self.rank} ({listed}): "
            "lower the learning rate, lengthen the warm-up or clip gradients"
        )
