"""Numbers that a statistic is scaled by: constants, and sizes that are computed of shapes at run time: `Ratio`.

a · Π nᵢ^eᵢ / (m − 1), with n and m products of dimensions
"""

from collections import Counter
from dataclasses import dataclass, field

import onnx_ir as ir

from normfuse.passes.access import operator
from normfuse.passes.reshaping import Extent
from normfuse.passes.sizes import integers_of
from normfuse.passes.views import Product, plain, product, scalar, terms
from normfuse.passes.weights import Weights, is_float

_TOLERANCE = 2.0**-22
"""How far a number that an exporter rounded to float32 may be from what it stands for."""

_LAYOUT = frozenset({"Reshape", "Squeeze", "Unsqueeze"})


def is_near(number: float, wanted: float) -> bool:
    """Whether a number is another one but for rounding to float32."""
    return abs(number - wanted) <= _TOLERANCE * abs(wanted)


@dataclass(slots=True)
class Ratio:
    """a · Π symbolᵢ^eᵢ / Π (mⱼ − 1).

    Attributes:
        number: a.
        symbols: e of each symbol.
        less: m of each divisor m − 1 that is computed at run time.
    """

    number: float = 1.0
    symbols: Counter[str] = field(default_factory=Counter)
    less: list[Extent] = field(default_factory=list)

    def times(self, extent: Extent, exponent: int = 1) -> "Ratio":
        """It times a power of a product of dimensions."""
        symbols = Counter(self.symbols)
        for symbol, power in extent.symbols:
            symbols[symbol] += power * exponent
        left = Counter({symbol: power for symbol, power in symbols.items() if power})
        return Ratio(self.number * float(extent.number) ** exponent, left, list(self.less))

    @property
    def plain(self) -> float | None:
        """The number that it is; None where it depends on dimensions."""
        return None if self.symbols or self.less else self.number

    @property
    def is_one(self) -> bool:
        """Whether it is 1."""
        return self.plain is not None and is_near(self.number, 1.0)

    def ddof(self, count: Extent) -> int | None:
        """0 where it makes a mean over n elements of a mean, 1 where it is n / (n − 1); None where neither."""
        if self.is_one:
            return 0
        if self.less == [count] and self.times(count, -1).symbols == Counter():
            return 1 if is_near(self.number, count.number) else None
        if self.plain is None or count.symbols or count.number < 2:
            return None
        return 1 if is_near(self.number, count.number / (count.number - 1)) else None


def scaled(view: Product, weights: Weights) -> tuple[Ratio, Product]:
    """A product as a ratio of sizes times what is left."""
    ratio, rest = Ratio(view.coefficient), Product()
    for value, exponent in view.factors.items():
        found = _count(value, weights) if exponent.denominator == 1 else None
        power = int(exponent)
        if found is None or found[0].number < 1 or (found[1] and power != -1):
            rest.factors[value] = exponent
        elif found[1]:
            ratio.less.append(found[0])
        else:
            ratio = ratio.times(found[0], power)
    return ratio, rest


def _count(value: ir.Value, weights: Weights) -> tuple[Extent, int] | None:
    """N and 0 where a scalar is the product n of dimensions, n and 1 where it is n − 1."""
    value = plain(value)
    node = value.producer()
    while node is not None and operator(node) in _LAYOUT and node.inputs[0] is not None and is_float(value.dtype):
        value = plain(node.inputs[0])
        node = value.producer()
    if node is None or not node.inputs or node.inputs[0] is None:
        return None
    inner = node.inputs[0]
    if operator(node) == "Cast" and is_float(value.dtype):
        return _count(inner, weights) if not is_float(inner.dtype) else None
    if not is_float(value.dtype):
        found = integers_of(value, weights)
        if found is not None and len(found) == 1 and found[0] is not None:
            return found[0], 0
    parts = terms(value)
    if len(parts) != 2:
        view = product(value, weights)
        ratio, left = scaled(view, weights) if value not in view.factors else (Ratio(), view)
        whole = not left.factors and not ratio.less and min(ratio.symbols.values(), default=1) > 0
        if not whole or ratio.number < 1 or not ratio.number.is_integer():
            return None
        return Extent(int(ratio.number), tuple(sorted(ratio.symbols.items()))), 0
    for (sign, part), (other, rest) in (parts, parts[::-1]):
        number = scalar(part, weights)
        if number is not None and sign * number == -1.0 and other == 1:
            counted = _count(rest, weights)
            return None if counted is None or counted[1] else (counted[0], 1)
    return None
