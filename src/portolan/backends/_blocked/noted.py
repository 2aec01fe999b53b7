"""What a model's metadata say of its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from portolan.core.extensions import domain
from portolan.errors import ModelError

if TYPE_CHECKING:
    import onnx

NOTED = "portolan.winograd"
"""The entry of the metadata."""


@dataclass(frozen=True)
class Noted:
    """What a model's metadata say.

    Attributes:
        operators: names by `out` and `added`: for tiles of `out` by `out` results, with a tensor to add or without.
        layers: the `out` of each key.
    """

    operators: Mapping[tuple[int, bool], str]
    layers: Mapping[str, int]

    def write(self, proto: onnx.ModelProto) -> None:
        """Puts it into the metadata."""
        names = [[out, added, domain(name)] for (out, added), name in sorted(self.operators.items())]
        entry = {"operators": names, "layers": dict(sorted(self.layers.items()))}
        others = [one for one in proto.metadata_props if one.key != NOTED]
        del proto.metadata_props[:]
        proto.metadata_props.extend(others)
        proto.metadata_props.add(key=NOTED, value=json.dumps(entry))

    @classmethod
    def read(cls, proto: onnx.ModelProto) -> Noted:
        """What the metadata hold; nothing where there is no entry.

        Raises:
            ModelError: the entry is not what `write` writes.
        """
        text = next((entry.value for entry in proto.metadata_props if entry.key == NOTED), None)
        if text is None:
            return cls({}, {})
        try:
            data = json.loads(text)
            names = {(int(out), bool(added)): str(name).rpartition(".")[2] for out, added, name in data["operators"]}
            return cls(names, {str(key): int(out) for key, out in data["layers"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the model's metadata `{NOTED}` cannot be read: {error}", hint="apply the pass `winograd` again"
            ) from error
