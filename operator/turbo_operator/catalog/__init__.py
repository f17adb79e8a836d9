"""What may serve and what may be served: the shipped accelerators, and shapes of models without a model."""

from turbo_operator.catalog.accelerators import as_row, catalogue, shipped_objects
from turbo_operator.catalog.shapes import UnknownShapeError

__all__ = ["UnknownShapeError", "as_row", "catalogue", "shipped_objects"]
