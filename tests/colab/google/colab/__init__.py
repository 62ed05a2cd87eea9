"""Stands in for Colab's own package: what notebooks call, without a browser or an account."""

from . import drive

__all__ = ["drive"]
