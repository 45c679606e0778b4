"""Finding the weight format that suits this CPU: measure candidates, choose by a stated rule, install beside."""

from edged.optimize.choice import Verdict
from edged.optimize.effort import FULL, QUICK, Effort
from edged.optimize.report import Report, Row
from edged.optimize.run import Listener, Optimization
from edged.optimize.stats import Interval

__all__ = ["FULL", "QUICK", "Effort", "Interval", "Listener", "Optimization", "Report", "Row", "Verdict"]
