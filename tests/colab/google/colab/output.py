"""What reaches the browser; nobody looks at it here."""

from ._message import MessageError


def clear(wait: bool = False, output_tags: str = "") -> None:
    """Clears the cell's output."""


def enable_custom_widget_manager() -> None:
    """Allows widgets that are not Colab's own."""


def serve_kernel_port_as_iframe(port: int, **options: object) -> None:
    """Shows a page that the machine serves in the cell's output."""


def serve_kernel_port_as_window(port: int, **options: object) -> None:
    """Shows a link to a page that the machine serves."""


def eval_js(script: str, ignore_result: bool = False, timeout_sec: float | None = None) -> None:
    """Runs JavaScript in the browser.

    Raises:
        MessageError: Always, since there is no browser.
    """
    raise MessageError("ReferenceError: there is no browser")
