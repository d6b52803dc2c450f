"""Keys and values of responses under way: rows that come and go, and all end in the same column.

transformers' own cache copies all it holds at each token and can lose rows but gain none. Here a token is
written in place, a row that ended is overwritten by the last one, and another prompt's keys are copied in
behind. Rows are aligned at their ends, so a prompt must not be longer than what has been written so far:
the longest prompts come first. Shapes: R rows, T tokens, H heads, D width of a head.
"""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from equipoise.errors import ModelError

_ROOM = 64
"""Tokens that there is room for, at least, before a layer is moved."""


class SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer: rows 0 .. `rows` - 1, whose tokens lie in columns `first` .. `last` - 1, each at the end.

    Columns without a token are masked, and hold numbers nevertheless: 0 times NaN would be NaN.
    """

    def __init__(self, most: int) -> None:
        """Keep up to `most` rows."""
        super().__init__()
        self.is_initialized: bool = False
        self.most = most
        self.rows = self.first = self.last = 0

    def put(self, keys: Tensor, values: Tensor) -> None:
        """Add a row of keys and values, [H, T, D] each."""
        width = keys.shape[1]
        if not self.is_initialized:
            self.keys, self.values = (
                t.new_zeros(self.most, t.shape[0], 0, t.shape[2]) for t in (keys, values)
            )
            self.is_initialized = True
        if self.rows == 0:
            self.first, self.last = 0, width
            if width > self.keys.shape[2]:
                self._make_room(width)
        assert width <= self.last, "a prompt came before a longer one"
        self.first = min(self.first, self.last - width)
        for held, new in ((self.keys, keys), (self.values, values)):
            held[self.rows, :, self.last - width : self.last] = new
        self.rows += 1

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        self.rows -= 1
        for held in (self.keys, self.values):
            held[row, :, self.first : self.last] = held[self.rows, :, self.first : self.last].clone()

    def narrow(self, width: int) -> None:
        """Forget columns in which no row has tokens: the longest has `width`."""
        self.first = self.last - width

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next tokens of all rows, [R, H, T, D], and return all tokens."""
        new = key_states.shape[2]
        if self.last + new > self.keys.shape[2]:
            self._make_room(self.last - self.first + new)
        for held, states in ((self.keys, key_states), (self.values, value_states)):
            held[: self.rows, :, self.last : self.last + new] = states
        self.last += new
        return self._seen(self.keys), self._seen(self.values)

    def get_seq_length(self) -> int:
        """Return how many columns are in use."""
        return self.last - self.first

    def _seen(self, held: Tensor) -> Tensor:
        return held[: self.rows, :, self.first : self.last]

    def _make_room(self, width: int) -> None:
        """Move to a store for `width` tokens and half as many again; what is in use is at its beginning."""
        columns = width + max(_ROOM, width // 2)
        used = self.last - self.first if self.rows else 0
        moved = []
        for held in (self.keys, self.values):
            store = held.new_zeros(self.most, held.shape[1], columns, held.shape[3])
            if used:
                store[: self.rows, :, :used] = self._seen(held)
            moved.append(store)
        self.keys, self.values = moved
        if self.rows:
            self.first, self.last = 0, used


class Slots(Cache):  # type: ignore[misc]
    """The layers of up to `most` rows."""

    def __init__(self, like: DynamicCache, most: int) -> None:
        """Make as many layers as a cache has that a prompt was read into."""
        super().__init__(layers=[SlotLayer(most) for _ in like.layers])

    def put(self, prompts: DynamicCache, row: int, length: int) -> None:
        """Add a row: the last `length` tokens of a row of a cache that prompts were read into."""
        for layer, read in zip(self._lanes(), prompts.layers, strict=True):
            if read.is_initialized:  # else it uses another layer's
                layer.put(read.keys[row, :, -length:], read.values[row, :, -length:])

    def drop(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        for layer in self._lanes():
            if layer.is_initialized:
                layer.drop(row)

    def narrow(self, width: int) -> None:
        """Forget columns in which no row has tokens: the longest has `width`."""
        for layer in self._lanes():
            if layer.is_initialized:
                layer.narrow(width)

    def _lanes(self) -> list[SlotLayer]:
        lanes: list[SlotLayer] = self.layers
        return lanes


def require_slots(model: PreTrainedModel) -> None:
    """Raise ModelError for a model that keeps more of a text than keys and values."""
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if other := kinds - {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}:
        name = sorted(kind.__name__ for kind in other)[0]
        raise ModelError(
            f"{model.name_or_path}: keeps a {name}, whose rows cannot come and go; "
            "expected attention over keys and values"
        )
