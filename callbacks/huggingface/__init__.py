"""The adapter to Hugging Face's Trainer: hooks in, `Watch` calls out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phasewatch.callbacks.huggingface.hooks import CallbackHooks

    class TransitionCallback(CallbackHooks):  # noqa: D101  (documented on CallbackHooks)
        pass


__all__ = ["TransitionCallback"]


def __getattr__(name: str) -> Any:
    if name == "TransitionCallback":
        globals()[name] = built = _build_class()
        return built
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


def _build_class() -> type[Any]:
    from phasewatch.callbacks.huggingface.hooks import CallbackHooks

    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            "TransitionCallback needs transformers and accelerate: pip install 'phasewatch[hf]'. "
            f"phasewatch.monitor.Watch works in any training loop. ({error})"
        ) from error
    attributes = {
        "__module__": "phasewatch.callbacks.huggingface",
        "__qualname__": "TransitionCallback",
        "__doc__": CallbackHooks.__doc__,
    }
    return type("TransitionCallback", (CallbackHooks, TrainerCallback), attributes)
