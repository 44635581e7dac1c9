"""Colours of the pictures of routing profiles, told apart by people who see colours otherwise too."""

from __future__ import annotations

DIVERGING_LIGHT = ("#08519c", "#3d8bc8", "#a3cbe6", "#f6f6f3", "#f8c48c", "#e5832a", "#b34a00")
"""From an eighth through the mean to eight times: blue to orange, pale where all is even."""
DIVERGING_DARK = ("#8cc8ff", "#4a97d6", "#27587f", "#20242a", "#82480f", "#dd7f22", "#ffc27a")
"""The same on a dark page."""
DOMAIN_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
"""Okabe and Ito, 2008."""
EVEN = "#f0f1f3"
"""Experts without a preference, in figures."""
UNKNOWN_COLOUR = "#d9dde2"
"""What is not known, in figures."""
