"""`Entry`: a torch module with the inputs it is exported with, and statistics that are not the identity."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Entry:
    """One of our own models.

    Attributes:
        name: lower case with hyphens.
        factory: makes the module; called with torch's generator seeded.
        shapes: the shape of each input, batch first.
        dynamic: for each input, the axes that may be exported as dynamic, with the names of their dimensions.
        keeps: BatchNormalizations that must stay, because what they read is read by others too and not linear, or
            that hold a scale and shift which no neighbour can take; or that are written for γ and β of a GroupNorm.
        seed: of the weights, the statistics and the example inputs.
        tokens: inputs that are int64, by index, with the number that their values stay below; all others are float32.
        package: the package that the module comes from; empty for our own.
    """

    name: str
    factory: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    dynamic: tuple[Mapping[int, str], ...] = ({0: "batch"},)
    keeps: int = 0
    seed: int = 0
    tokens: Mapping[int, int] = field(default_factory=dict)
    package: str = ""

    def module(self) -> nn.Module:
        """The module in eval mode, the same at each call; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = self.factory()
            randomize(module)
        return module.eval()

    def __call__(self) -> nn.Module:
        """The module with `example_inputs` and `dynamic_shapes`, where `normfuse export` looks for them."""
        module = self.module()
        dynamic = tuple(dict(dims) or None for dims in self.dynamic)
        for name, value in (("example_inputs", self.examples()), ("dynamic_shapes", dynamic)):
            setattr(module, name, value)
        return module

    def examples(self) -> tuple[Tensor, ...]:
        """Example inputs of the shapes in `shapes`: N(0, 1), and tokens."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(
            torch.randint(self.tokens[index], shape, generator=generator)
            if index in self.tokens
            else torch.randn(shape, generator=generator)
            for index, shape in enumerate(self.shapes)
        )


def randomize(module: nn.Module) -> None:
    """Gives every norm and every affine map of a module random parameters and statistics, in place.

    Fresh ones are the identity, and hide wrong folds. Scales get both signs, means are not small against the standard
    deviations. What has more than one dimension is a weight, and keeps its initialization.
    """
    with torch.no_grad():
        for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dim() != 1:
                continue
            match path.rpartition(".")[2]:
                case "running_mean" | "bias" | "beta" | "shift":
                    tensor.normal_(0.0, 0.5)
                case "running_var":
                    tensor.uniform_(0.3, 2.5)
                case "weight" | "gamma" | "scale":
                    tensor.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(tensor) < 0.2, -1.0, 1.0))
