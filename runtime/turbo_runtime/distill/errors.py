"""What can go wrong with a distillation."""


class DistillError(ValueError):
    """The work cannot be done; one sentence says why and what to do."""


class UnfitModelError(DistillError):
    """A method cannot draft for the model."""


class MayPassError(DistillError):
    """What another try later may bring."""
