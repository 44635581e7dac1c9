"""Rotary positions: inverse frequencies of each kind of scaling, and the cosines of given positions.

T tokens, C head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tenth.model.config import RopeConfig


class Rope:
    """Angles for one head size. Frequencies and angles are float64, whatever the model: far positions stay exact."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        self.frequencies_C = inverse_frequencies(config, head_dim)
        self.attention_factor = attention_factor(config)

    def cos_sin(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, C/2) for the positions, times YaRN's attention factor."""
        if self.frequencies_C.device != positions_T.device:
            self.frequencies_C = self.frequencies_C.to(positions_T.device)
        angle_TC = positions_T[:, None].double() * self.frequencies_C
        factor = self.attention_factor
        return (angle_TC.cos() * factor).to(dtype), (angle_TC.sin() * factor).to(dtype)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians a position turns each of the C/2 pairs by, float64."""
    exponent_C = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    plain_C = config.theta**-exponent_C
    match config.kind:
        case "linear":
            return plain_C / config.factor
        case "llama3":
            return _llama3(config, plain_C)
        case "yarn":
            return _yarn(config, plain_C, head_dim)
    return plain_C


def attention_factor(config: RopeConfig) -> float:
    """The factor on cosines and sines: 1 except for YaRN (arXiv 2309.00071, section 3.4)."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(config: RopeConfig, plain_C: Tensor) -> Tensor:
    """Long waves are divided by the factor, short ones kept, those between blended."""
    turns_C = config.original_context * plain_C / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    keep_C = ((turns_C - low) / (high - low)).clamp(0, 1)
    return plain_C * (keep_C + (1 - keep_C) / config.factor)


def _yarn(config: RopeConfig, plain_C: Tensor, head_dim: int) -> Tensor:
    """Pairs that turn often within the trained context are kept, those that turn rarely divided, a ramp between."""

    def pair_of(turns: float) -> float:
        waves = config.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(waves) / (2 * math.log(config.theta))

    low, high = pair_of(config.beta_fast), pair_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low or 0.001
    pair_C = torch.arange(head_dim // 2, dtype=torch.float64)
    divide_C = ((pair_C - low) / span).clamp(0, 1)
    return plain_C * (1 - divide_C + divide_C / config.factor)
