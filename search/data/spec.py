"""``NAME[:PATH][?option=value&option=value]``: the one way to say which data, and its parsing.

Options stand behind the path, as in ``folder:photos?size=32&channels=3``, so that one string names a
data set completely: it is what run configurations and reports record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smash_base.errors import InvalidInputError, UsageError

FOLDERS = ("root", "cache")
"""Options that are folders, as the path is relative to the one where the command is given."""


@dataclass(frozen=True)
class Spec:
    """A parsed data set specification.

    Attributes:
        text: as the user wrote it; error messages name it.
        name: Words before the first colon.
        path: between the colon and the question mark, or None.
        options: after the question mark.
    """

    text: str
    name: str
    path: str | None
    options: Mapping[str, str]

    def options_known(self, *names: str) -> None:
        """Raise UsageError when an option is none of ``names``."""
        for option in self.options:
            if option not in names:
                raise UsageError(
                    f"data set {self.text} has an unknown option",
                    expected=", ".join(names) if names else "no options",
                    received=option,
                )

    def no_path(self) -> None:
        """Raise UsageError when a path was given to data that need none."""
        if self.path is not None:
            raise UsageError(f"data set {self.name} is built in", expected="no path", received=self.path)

    def folder(self, *defaults: str, hint: str | None = None) -> Path:
        """The path of the data; the first of ``defaults`` that exists when none was given.

        Raises:
            UsageError: no path was given and no default exists.
            InvalidInputError: the path does not exist.
        """
        if self.path is None:
            for default in defaults:
                if Path(default).is_dir():
                    return Path(default)
            raise UsageError(
                f"data set {self.name} needs a path",
                expected=f"{self.name}:PATH",
                received=self.text,
                hint=hint,
            )
        path = Path(self.path).expanduser()
        if not path.exists():
            raise InvalidInputError(f"data path {path} does not exist", received=self.text, hint=hint)
        return path

    def choice(self, option: str, values: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.options.get(option, default)
        if value not in values:
            raise UsageError(
                f"option {option} of data set {self.name}", expected=" or ".join(values), received=value
            )
        return value

    def flag(self, option: str, default: bool) -> bool:
        """``yes`` or ``no``."""
        return self.choice(option, ("yes", "no"), "yes" if default else "no") == "yes"

    def integer(self, option: str, low: int, high: int, default: int | None = None) -> int | None:
        """A whole number from ``low`` to ``high``."""
        text = self.options.get(option)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not low <= int(text[:20]) <= high:
            raise UsageError(
                f"option {option} of data set {self.name}", expected=f"{low} to {high}", received=text
            )
        return int(text)


def with_option(text: str, option: str, value: str) -> str:
    """A specification with one more option; unchanged if it names the option itself."""
    if option in parse_spec(text).options:
        return text
    return f"{text}{'&' if '?' in text else '?'}{option}={value}"


def parse_spec(text: str) -> Spec:
    """Take a specification apart.

    Raises:
        UsageError: empty, or an option without a value or given twice.
    """
    front, mark, query = text.partition("?")
    name, colon, path = front.partition(":")
    if not name:
        raise UsageError("a data set needs a name", expected="NAME or NAME:PATH", received=repr(text))
    if colon and not path:
        raise UsageError(f"data set {text} has an empty path", expected=f"{name}:PATH")
    options: dict[str, str] = {}
    for item in query.split("&") if mark else ():
        option, equals, value = item.partition("=")
        if not option or not equals or not value:
            raise UsageError(
                f"options of data set {text}", expected="?option=value&option=value", received=query
            )
        if option in options:
            raise UsageError(f"data set {text} has the option {option} twice")
        options[option] = value
    return Spec(text=text, name=name, path=path if colon else None, options=options)
