"""Which parameter is handled by which rule? The answer, and the reasons, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from landscape.example_gradients.parts import Key


@dataclass(frozen=True)
class Rule:
    """How the gradients of one parameter are taken, and why so.

    `kind` is `"linear"`, `"convolution"`, `"norm"`, `"embedding"`, `"fallback"` (the gradient of
    each example is formed, by `vmap` or one by one), `"unused"` (no operation takes it: it counts
    as zero) or `"frozen"` (not counted).
    """

    kind: str
    why: str = ""


@dataclass(frozen=True)
class Layer:
    """A module with a rule of its own: its parameters, and how its inputs are laid out.

    `kind` is its rule; `parameters` maps names in the module to names in the model. Each example
    has `rows` of the first dimension.
    """

    kind: str
    parameters: Mapping[str, str]
    rows: int


@dataclass(frozen=True, eq=False)
class Rules:
    """The rule of each parameter, made by `rules_for`.

    `parameters` are all of the model, by name. `vmapped` says that the fallback takes many examples
    at once, else one at a time; `stacked` that several cotangents can go back at once. `choices`
    and `seconds` keep what was measured, for the fastest ways to be taken; `example_bytes` is what
    an example's activations take.
    """

    parameters: Mapping[str, Rule]
    layers: Mapping[str, Layer]
    vmapped: bool = True
    stacked: bool = True
    example_bytes: int = 0
    choices: dict[Key, tuple[str, int]] = field(default_factory=dict)
    seconds: dict[Key, dict[bool, list[float]]] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of the parameters whose gradients are taken."""
        return tuple(name for name, rule in self.parameters.items() if rule.kind != "frozen")

    @property
    def fallback(self) -> tuple[str, ...]:
        """Names of the parameters that no layer's rule handles."""
        return tuple(name for name, rule in self.parameters.items() if rule.kind == "fallback")

    def __str__(self) -> str:
        """A line for each parameter: its name, its rule, and why."""
        width = max((len(name) for name in self.parameters), default=0)
        lines = (
            f"{name:{width}}  {rule.kind}" + (f": {rule.why}" if rule.why else "")
            for name, rule in self.parameters.items()
        )
        return "\n".join(lines)
