"""What the command line says of wrong arguments, without the secrets that they may hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

from phasewatch.monitor.core.redaction import MASK, redact


class RedactingGroup(TyperGroup):
    """The commands. An error about their arguments names no URL beyond its scheme.

    Any part of the URL of an alert service may be its secret.
    """

    _given: Sequence[str] = ()

    def make_context(self, info_name: Any, args: list[str], *rest: Any, **more: Any) -> Any:
        """Read the arguments."""
        self._given = [*args]
        with _redacting(self._given):
            return super().make_context(info_name, args, *rest, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, which reads the rest of them."""
        with _redacting(self._given):
            return super().invoke(ctx)


@contextmanager
def _redacting(given: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Click's own errors: Typer brings a Click of its own, so their class is not at hand.
        said = getattr(error, "message", None)
        if isinstance(said, str) and hasattr(error, "exit_code"):
            for argument in given:
                scheme, found, _ = argument.partition("://")
                if found:
                    said = said.replace(argument, f"{scheme}://{MASK}")
                    value = argument.partition("=")[2]
                    said = said.replace(value, MASK) if "://" in value else said
            error.message = redact(said)  # type: ignore[attr-defined]
        raise
