"""How loops over pixels and vertices become machine code, and numbers come out of bytes in it. Knows numba; nothing of what is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numba
from numba.core import types
from numba.extending import intrinsic


def compiled(function: Callable[..., Any], error_model: Literal["python", "numpy"] = "python") -> Any:
    """Compiled when it is first called, and kept beside the package or in the user's cache; anew in each process where neither can be written.
    error_model: python looks at every divisor, one by one, numpy divides."""
    try:
        return numba.njit(function, cache=True, error_model=error_model)
    except RuntimeError:  # numba finds no place for its cache
        return numba.njit(function, error_model=error_model)


# Numbers in WKB lie at any byte, and views have to be aligned. Copied byte by byte they take eight times as long.
def _put(typing: Any, content: Any, at: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _address(context, builder, signature, arguments, arguments[2].type), align=1)
        return context.get_dummy_value()

    return types.void(content, at, value), generate


def _getter(kind: Any) -> Any:
    def get(typing: Any, content: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(_address(context, builder, signature, arguments, context.get_value_type(kind)), align=1)

        return kind(content, at), generate

    return intrinsic(get)


def _address(context: Any, builder: Any, signature: Any, arguments: Any, kind: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), kind.as_pointer())


put: Any = intrinsic(_put)
"""put(content, at, value), in compiled code: writes value, of whatever type it has, to the bytes of content, (n,) uint8, from byte at on."""
get_double, get_uint32 = _getter(types.float64), _getter(types.uint32)
"""get_...(content, at), in compiled code: the number in the bytes of content, (n,) uint8, from byte at on."""
