"""Functions that hold on to a live module, rebuilt so that they hold on to its copy.

`copy.deepcopy` shares functions. A lambda or a hook that closes over `self` would go on reading
the live module, whatever weights its copy is given.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

from torch import nn


def rebind_functions(root: nn.Module, copies: Mapping[int, Any]) -> None:
    """Rebuild the functions found in the attributes of `root`'s modules, hooks among them.

    Args:
        root: The copy.
        copies: What each live object became, by the identity of the live one.
    """
    for module in root.modules():
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if copies.get(id(value)) is value:  # shared with the live module, which stays as it is
                continue
            if isinstance(value, dict):
                for key, item in list(value.items()):
                    value[key] = _rebound(item, copies)
            elif isinstance(value, list):
                value[:] = [_rebound(item, copies) for item in value]
            else:
                attributes[name] = _rebound(value, copies)


def _rebound(value: Any, copies: Mapping[int, Any], path: frozenset[int] = frozenset()) -> Any:
    """A function or method that holds on to copies, or the value itself where nothing is live.

    Args:
        value: Anything.
        copies: What each live object became.
        path: Functions that are being rebuilt: closures may be circular.
    """
    if isinstance(value, types.FunctionType):
        # What torch.compile made carries the original; the copy runs that, uncompiled.
        original = getattr(value, "_torchdynamo_orig_callable", None)
        if original is not None:
            return _rebound(original, copies, path)
        return value if id(value) in path else _rebound_function(value, copies, path | {id(value)})
    if isinstance(value, types.MethodType):
        # A patched forward is a method whose function closes over the method it stands for.
        owner, function = _of(value.__self__, copies), _rebound(value.__func__, copies, path)
        if owner is value.__self__ and function is value.__func__:
            return value
        return types.MethodType(function, owner)
    if type(value) is functools.partial:
        function = _rebound(value.func, copies, path)
        return (
            value
            if function is value.func
            else functools.partial(function, *value.args, **value.keywords)
        )
    return value


def _rebound_function(
    function: types.FunctionType, copies: Mapping[int, Any], path: frozenset[int]
) -> types.FunctionType:
    cells = tuple(_rebound_cell(cell, copies, path) for cell in function.__closure__ or ())
    defaults = tuple(_of(value, copies) for value in function.__defaults__ or ())
    keywords = {key: _of(value, copies) for key, value in (function.__kwdefaults__ or {}).items()}
    old = (*(function.__closure__ or ()), *(function.__defaults__ or ()))
    if all(a is b for a, b in zip((*cells, *defaults), old, strict=True)) and all(
        keywords[key] is value for key, value in (function.__kwdefaults__ or {}).items()
    ):
        return function
    rebuilt = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, defaults or None, cells
    )
    rebuilt.__kwdefaults__ = keywords or None
    rebuilt.__dict__.update(function.__dict__)
    return rebuilt


def _rebound_cell(
    cell: types.CellType, copies: Mapping[int, Any], path: frozenset[int]
) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # an empty cell: the variable is not assigned yet
        return cell
    if id(content) in copies:
        return types.CellType(copies[id(content)])
    if isinstance(content, types.FunctionType):
        rebuilt = _shallow(content, copies)
        return cell if rebuilt is content else types.CellType(rebuilt)
    if isinstance(content, types.MethodType):
        method = _rebound(content, copies, path)
        return cell if method is content else types.CellType(method)
    return cell


def _shallow(function: types.FunctionType, copies: Mapping[int, Any]) -> types.FunctionType:
    """Rebind a function found in a closure, one level deep: closures may be circular."""
    direct = any(_holds(cell, copies) for cell in function.__closure__ or ())
    if not direct:
        return function
    cells = tuple(
        types.CellType(copies[id(cell.cell_contents)]) if _holds(cell, copies) else cell
        for cell in function.__closure__ or ()
    )
    return types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )


def _holds(cell: types.CellType, copies: Mapping[int, Any]) -> bool:
    try:
        return id(cell.cell_contents) in copies
    except ValueError:
        return False


def _of(value: Any, copies: Mapping[int, Any]) -> Any:
    return copies.get(id(value), value)
