"""Hidden states of frozen backbones, ragged: the input of side networks."""

from .features import Features

__all__ = ["Features"]
