"""How large is the gradient of each example? Squared norms and diagonals, by tensor.

`rules_for` says which parameter is handled by which rule, and `example_gradients` pulls cotangents
back through the model: rules take what they need inside the backward pass, so that no gradient of
an example is kept, and for most layers none is formed.
"""

from landscape.example_gradients.backward import Backward, example_gradients
from landscape.example_gradients.probing import rules_for
from landscape.example_gradients.rules import Rule, Rules

__all__ = ["Backward", "Rule", "Rules", "example_gradients", "rules_for"]
