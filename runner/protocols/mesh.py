"""The mesh of ranks: named axes with sizes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The mesh of ranks that a strategy asks for: pure arithmetic, so that it can be checked before launch."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    data: tuple[str, ...]
    """The axes along which the items of a step are cut; ranks that differ only on other axes read the same items."""

    @property
    def data_ranks(self) -> int:
        """Into how many shares the items of a step are cut."""
        product = 1
        for name, size in zip(self.names, self.sizes, strict=True):
            product *= size if name in self.data else 1
        return product
