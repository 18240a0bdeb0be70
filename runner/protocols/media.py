"""Values other than numbers that a tracker can record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@final
@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in host memory."""

    pixels: "NDArray[np.uint8]"
    """uint8, [height, width] for gray or [height, width, channels] with 1 (gray), 3 (RGB) or 4 (RGBA) channels."""
    caption: str = ""
    """A caption, for trackers that support captions."""

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
            raise ValueError(
                f"an image of shape {list(shape)} must be [height, width] or [height, width, channels] with 1, 3 or 4 "
                "channels. A torch tensor has its channels first: tensor.permute(1, 2, 0).cpu().numpy()"
            )
        if dtype != "uint8":
            raise ValueError(
                f"an image of type {dtype} must be uint8. From numbers between 0 and 1: "
                '(255 * pixels).round().astype("uint8")'
            )


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain values."""

    columns: Sequence[str]
    """The column names."""
    rows: Sequence[Sequence[str | int | float | bool | None]]
    """Rows with one value for each column."""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of the table has {len(row)} values for {len(self.columns)} columns. Give one value "
                    "for each column; use None for missing ones."
                )
