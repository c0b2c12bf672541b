"""Options of a configuration as they come from a command line or from JSON."""

from typing import Any

from stratum_models.errors import UserError


def parse_option(model: str, key: str, value: object, hint: Any) -> object:
    """A command line's string, or a JSON value, as the type of a configuration's field.

    Args:
        model: its name, for the error.
        key: the field.
        value: what was given.
        hint: the field's type, resolved.

    Raises:
        UserError: the value does not fit.
    """
    if isinstance(value, str) and value.lower() in ("none", "null", "") and type(None) in getattr(hint, "__args__", ()):
        return None
    kinds = getattr(hint, "__args__", (hint,)) if type(None) in getattr(hint, "__args__", ()) else (hint,)
    try:
        return _convert(value, kinds[0])
    except (TypeError, ValueError) as error:
        raise UserError(f"model {model}: option {key}={value!r} is no {getattr(kinds[0], '__name__', kinds[0])}") from error


def _convert(value: object, kind: Any) -> object:
    if value is None:
        return None
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        return words[str(value).lower()] if str(value).lower() in words else _refuse(value)
    if kind in (int, float):
        number = float(str(value))
        return number if kind is float else int(number) if number.is_integer() else _refuse(value)
    if getattr(kind, "__origin__", None) is tuple:
        parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        return tuple(_convert(part, kind.__args__[0]) for part in parts)
    return value


def _refuse(value: object) -> object:
    raise ValueError(f"cannot read {value!r}")
