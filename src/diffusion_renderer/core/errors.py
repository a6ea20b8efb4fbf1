"""The one error that a user's mistake raises."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in what the user gave: a file, a flag, a checkpoint.

    The message is one line made of three parts, so that it can be acted on without reading code: what was expected, what
    was found, what to do. The command line prints it and exits with status 2; it never shows a traceback.

    Attributes
    ----------
    expected, found, advice : str
        The three parts, kept apart for callers that build their own message.
    """

    def __init__(self, expected: str, found: str, advice: str) -> None:
        self.expected = one_line(expected)
        self.found = one_line(found)
        self.advice = one_line(advice)
        super().__init__(f"expected {self.expected}; found {self.found}; {self.advice}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Travels between processes by its parts; an exception's own way knows the message only."""
        return type(self), (self.expected, self.found, self.advice)


def one_line(text: object) -> str:
    """Collapse whitespace, so that an error quoted from a library cannot break the one-line rule."""
    return " ".join(str(text).split())
