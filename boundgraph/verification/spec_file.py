"""Properties as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from boundgraph.errors import SpecError
from boundgraph.verification.spec import All, Any, Constraint, Property

ADVICE = (
    'expected {"coefficients": [1, 0, -1], "offset": 0}, with {"0": 1, "2": -1} as another way '
    'to write coefficients, or {"all": [...]} or {"any": [...]} of such'
)


def load_spec(path: str | Path) -> Property:
    """Read a property from a JSON file.

    Raises:
        SpecError: the file cannot be read, or holds something else; says where.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"spec file {path} cannot be read: {error}") from error
    return parse_spec(data, str(path))


def parse_spec(data: object, where: str = "spec") -> Property:
    """A property from parsed JSON; see `ADVICE` for the form."""
    if not isinstance(data, dict):
        raise SpecError(f"{where} holds a {type(data).__name__}; {ADVICE}")
    keys = set(data)
    if keys in ({"all"}, {"any"}):
        (kind,) = keys
        members = data[kind]
        if not isinstance(members, list):
            raise SpecError(f"{where}: {kind!r} must be a list; {ADVICE}")
        parts = [parse_spec(part, f"{where}: {kind}[{i}]") for i, part in enumerate(members)]
        return All(*parts) if kind == "all" else Any(*parts)
    if "coefficients" not in keys or not keys <= {"coefficients", "offset"}:
        raise SpecError(f"{where} has the keys {', '.join(sorted(map(str, keys)))}; {ADVICE}")
    coefficients, offset = data["coefficients"], data.get("offset", 0.0)
    values = list(coefficients.values()) if isinstance(coefficients, dict) else coefficients
    if not isinstance(values, list) or not all(map(_is_number, [*values, offset])):
        raise SpecError(f"{where}: coefficients and offset must be numbers; {ADVICE}")
    if isinstance(coefficients, dict):
        if not all(key.isdecimal() for key in coefficients):
            raise SpecError(f"{where}: coefficients are named by output index; {ADVICE}")
        return Constraint({int(key): value for key, value in coefficients.items()}, offset)
    return Constraint(coefficients, offset)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
