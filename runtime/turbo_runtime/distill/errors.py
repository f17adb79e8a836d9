"""What can go wrong with a distillation."""


class DistillError(ValueError):
    """The work cannot be done; one sentence says why and what to do."""


class DamagedError(DistillError):
    """A disk has not kept what was written."""


class MayPassError(DistillError):
    """What another try later may bring."""
