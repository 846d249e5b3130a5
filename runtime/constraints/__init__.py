"""Constraints on what may be sampled that only the host can decide: grammars, bad words, thinking budgets."""

from runtime.constraints.grammars import check_grammar
from runtime.constraints.host import HostConstraints
from runtime.constraints.protocol import Constraint, Constraints
from runtime.errors import ConstraintError

__all__ = ["Constraint", "ConstraintError", "Constraints", "HostConstraints", "check_grammar"]
