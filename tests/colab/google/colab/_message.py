"""The error that the browser's side answers with."""

from .errors import Error


class MessageError(Error):
    """The browser refused, for example to give access to Drive."""
