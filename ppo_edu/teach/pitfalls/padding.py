"""What the wrong variants share where padding is not their mistake."""

from torch import Tensor


def kept(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The entries that count, in one row [n, ...]; everything as it is where there is no mask."""
    return tensors if mask is None else tuple(x[mask] for x in tensors)
