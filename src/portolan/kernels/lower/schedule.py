"""How a kernel's loops are laid out: plain data, the thing that tuning chooses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Schedule:
    """A layout of the loops of one nest.

    Attributes:
        vector: the axis whose neighbours share a vector; None for no vectors.
        rows: the axis that is tiled together with it; None for none.
        lanes: numbers in a vector.
        tile_rows: rows of a tile.
        tile_vectors: vectors of a tile.
        chunk: rows of one task (columns where there are none); 0 for all.
        block: elements of a staged reduction kept in a buffer.
        stage_vectors: vectors side by side while a block is filled.
        pack: whether what is read with stride 1 is packed too, where rows share it.
        table: how parts that columns share are computed for the tile beforehand: empty for not at all; `rows` with
            vectors along the rows, of which a tile then has as many as a vector has lanes, to be reduced `tile_rows` at
            a time; `inner` with vectors along the reduction's own indices, for `tile_rows` rows.
        ahead: whether what later rows read is asked for before: it hides memory, and costs time where the arrays fit in
            a near cache.
        within: whether a task covers all columns, one tile after another: what they share is then computed once.
        shared: rows and columns that each thread of a group makes of the tile, which the group shares; 0 where a task
            has the tile for itself.
    """

    vector: str | None
    rows: str | None
    lanes: int
    tile_rows: int = 1
    tile_vectors: int = 1
    chunk: int = 0
    block: int = 128
    stage_vectors: int = 2
    pack: bool = True
    table: Literal["", "rows", "inner"] = ""
    ahead: bool = False
    within: bool = False
    shared: int = 0

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.lanes * self.tile_vectors

    @property
    def step(self) -> int:
        """Rows that one turn of the loop over rows takes."""
        return self.lanes if self.table == "rows" else self.tile_rows

    def plain(self, lanes: int) -> Schedule:
        """The same axes for sizes below a tile: one row, one vector of `lanes`."""
        vector = self.vector if lanes > 1 else None
        return replace(
            self,
            vector=vector,
            rows=None,
            lanes=lanes,
            tile_rows=1,
            tile_vectors=1,
            chunk=0,
            stage_vectors=1,
            pack=False,
            table="",
            ahead=False,
            within=self.within and vector is not None,
            shared=0,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schedule:
        """Reads what `to_json` wrote."""
        return cls(**data)
