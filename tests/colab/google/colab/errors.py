"""What the package's own errors have in common."""


class Error(Exception):
    """An error of the Colab runtime."""
