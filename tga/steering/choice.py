"""Which strength of the correction to take, from a sweep on questions kept for choosing.

Too strong a correction makes a model evasive: it refuses the harmful and the harmless alike. So the largest DSR is
taken among the strengths that keep over-refusal and utility, and of equal ones the smallest. No correction (alpha 0)
belongs to every sweep and is what is left where nothing else qualifies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tga.errors import UserError


@dataclass(frozen=True)
class Rule:
    """Largest `dsr` with over-refusal at most `over_refusal_limit` and each utility at most `utility_tolerance` lower.

    dsr, over_refusal, utility: names of metrics. The limit is a share in [0, 1]; utilities are compared with alpha 0.
    """

    dsr: str
    over_refusal: str
    utility: tuple[str, ...]
    over_refusal_limit: float
    utility_tolerance: float

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the rule looks at, each once."""
        return tuple(dict.fromkeys((self.dsr, self.over_refusal, *self.utility)))

    def __str__(self) -> str:
        conditions = [f"{self.over_refusal} <= {self.over_refusal_limit:g}"]
        conditions += [f"{name} >= that of alpha 0 - {self.utility_tolerance:g}" for name in self.utility]
        return f"largest {self.dsr} with {', '.join(conditions)}; of equals the smallest alpha; 0 where none is left"


def sweep_grid(alphas: Sequence[float]) -> tuple[float, ...]:
    """The strengths in rising order, 0 among them. Raises UserError for repeated, negative or non-numeric ones."""
    numbers = [alpha for alpha in alphas if isinstance(alpha, (int, float)) and not isinstance(alpha, bool)]
    different = len(set(numbers)) == len(alphas)
    if not different or not all(0 <= number < float("inf") for number in numbers):
        problem = "Strengths must be different numbers from 0"
        raise UserError(problem, given=list(alphas), remedy="steering.alphas=[0,0.5,1.0]")
    return tuple(sorted({0.0, *map(float, numbers)}))


def choose_alpha(found: Mapping[float, Mapping[str, float]], rule: Rule) -> float:
    """The strength that the rule takes.

    Args:
        found: alpha -> metric -> rate; alpha 0 is in it.

    Raises:
        UserError: a metric of the rule that was not measured.
    """
    missing = [name for name in rule.metrics if name not in found[0.0]]
    if missing:
        measured = ", ".join(found[0.0])
        raise UserError(
            "The rule looks at metrics that are not measured",
            given=", ".join(missing),
            allowed=measured,
            remedy="steering.choose.dsr=..., steering.choose.over_refusal=..., steering.choose.utility=[...]",
        )
    plain = found[0.0]

    def qualifies(rates: Mapping[str, float]) -> bool:
        useful = all(rates[name] >= plain[name] - rule.utility_tolerance - 1e-9 for name in rule.utility)
        return useful and rates[rule.over_refusal] <= rule.over_refusal_limit + 1e-9

    fit = [alpha for alpha, rates in found.items() if alpha == 0.0 or qualifies(rates)]
    # Alpha 0 may be above the over-refusal limit itself: then any qualified strength is better.
    fit = [alpha for alpha in fit if alpha != 0.0] if not qualifies(plain) and len(fit) > 1 else fit
    return max(sorted(fit), key=lambda alpha: (found[alpha][rule.dsr], -alpha))
