"""The live `transformers.Trainer`: how it is found, and how its steps and its end are seen.

The Trainer hands its callbacks neither itself nor a step's loss, tells them of the gradient only
after clipping, and of an exception not at all. So the Trainer whose frame called a hook is asked:
its `training_step` and its `train` are wrapped in functions that call the originals, look at what
they return, and change nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Method = Callable[..., Any]


def calling_trainer() -> tuple[Any, str | None]:
    """The Trainer whose method is running, and the checkpoint that it was told to resume from.

    (None, None) where no method of a Trainer is running.
    """
    transformers = sys.modules.get("transformers")
    kind = getattr(transformers, "Trainer", None)
    frame = sys._getframe(1)
    while frame is not None and kind is not None:
        code = frame.f_code
        # Asked for nothing but methods: what a frame shows of its variables it keeps alive.
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals.get("self") if is_method else None
        if isinstance(owner, kind):
            resumed = frame.f_locals.get("resume_from_checkpoint")
            return owner, str(resumed) if isinstance(resumed, (str, Path)) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None, None


class Around:
    """Stands for a method of one object, and is called around each of its calls.

    Args:
        owner: The object.
        name: The method's name.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._before = vars(owner).get(name)
        self._method: Method = getattr(owner, name)
        functools.update_wrapper(self, self._method)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; what it returns and raises goes on unchanged."""
        return self._method(*args, **kwargs)

    def remove(self) -> None:
        """Give the method its place back, unless somebody else has taken it meanwhile."""
        if vars(self._owner).get(self._name) is not self:
            return
        if self._before is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._before)


class AroundTraining(Around):
    """Sees with which exception `Trainer.train` ends.

    Args:
        trainer: The live trainer.
        raised: Told of the exception, before it goes on.
    """

    def __init__(self, trainer: Any, raised: Callable[[BaseException], None]) -> None:
        super().__init__(trainer, "train")
        self._raised = raised

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        try:
            return super().__call__(*args, **kwargs)
        except BaseException as error:
            self._raised(error)
            raise


class AroundSteps(Around):
    """Sees each micro-batch, before it is trained on and with its loss.

    Args:
        trainer: The live trainer.
        before: Told of the inputs; None while nobody wants them.
        after: Told of the loss that the step returned.
    """

    def __init__(
        self, trainer: Any, before: Callable[[Any], None], after: Callable[[Any], None]
    ) -> None:
        super().__init__(trainer, "training_step")
        self._before_step = before
        self._after_step = after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward and backward."""
        self._before_step(args[1] if len(args) > 1 else kwargs.get("inputs"))
        loss = super().__call__(*args, **kwargs)
        self._after_step(loss)
        return loss
