"""The user's secrets: `REHEARSAL_SECRET_NAME` holds the one called NAME."""

import os

from .errors import Error


class SecretNotFoundError(Error):
    """The user has no such secret."""

    def __init__(self, key: str):
        super().__init__(f"Secret {key} does not exist.")


class NotebookAccessError(Exception):
    """The user does not let this notebook see the secret."""

    def __init__(self, key: str):
        super().__init__(f"Notebook does not have access to secret {key}")


def get(key: str) -> str:
    """Returns a secret.

    Raises:
        SecretNotFoundError: If there is none of that name.
    """
    if f"REHEARSAL_SECRET_{key}" not in os.environ:
        raise SecretNotFoundError(key)
    return os.environ[f"REHEARSAL_SECRET_{key}"]
