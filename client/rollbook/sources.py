"""Where settings come from besides flags: the environment, and a file. What looks like one but is none fails.

Kubernetes puts the addresses of a namespace's Services into the environment of its pods, under the Services'
names: of a Service ``rollbook`` they are ``ROLLBOOK_PORT``, ``ROLLBOOK_SERVICE_HOST`` and so on. They must
neither fail nor be taken for settings, so they are told by name and value together.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import TYPE_CHECKING, Final

from rollbook.problems import Problem
from rollbook.variables import KNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

PREFIX: Final = "ROLLBOOK_"

_RESEMBLES: Final = 0.85
"""How like a setting's name (difflib's ratio) a variable must be to be taken for a slip of the pen: one
letter in seven may be wrong. What is less alike is somebody else's."""

_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")
_LINKS: Final = (
    # What the kubelet sets for each Service (kubelet_pods.go and envvars.go of Kubernetes).
    (re.compile(r".*SERVICE_HOST"), re.compile(r"[0-9a-fA-F.:]+")),
    (re.compile(r".*SERVICE_PORT(_[A-Z0-9_]+)?"), re.compile(r"\d+")),
    (re.compile(r".*PORT(_\d+_(TCP|UDP|SCTP))?"), _URL),
    (re.compile(r".*PORT_\d+_(TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r".*PORT_\d+_(TCP|UDP|SCTP)_PORT"), re.compile(r"\d+")),
    (re.compile(r".*PORT_\d+_(TCP|UDP|SCTP)_ADDR"), re.compile(r"[0-9a-fA-F.:]+")),
)


def is_service_link(name: str, value: str) -> bool:
    """Say whether a variable is one that Kubernetes made for a Service."""
    return any(n.fullmatch(name.upper()) and v.fullmatch(value) for n, v in _LINKS)


def nearest(name: str, names: Collection[str], *, resembles: float = 0.6) -> str:
    """Return the name that is most like this one; none if all are quite different."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=resembles)
    return found[0] if found else ""


def check_environment(environment: Mapping[str, str], own: Sequence[str]) -> None:
    """Refuse a ``ROLLBOOK_`` variable that is no setting, but very much like one.

    Variables of other parts, Services' links and whatever else there is are let pass.

    Args:
        environment: all variables.
        own: those of this part's settings.

    Raises:
        Problem: 400 ``bad_value`` naming the variable and the one that was probably meant.
    """
    names = {name.removeprefix(PREFIX): name for name in own}
    for variable, value in environment.items():
        if not variable.upper().startswith(PREFIX) or variable in KNOWN or variable in own:
            continue
        if is_service_link(variable, value):
            continue
        # Without the prefix, which would make everything alike.
        meant = nearest(variable.upper().removeprefix(PREFIX), names, resembles=_RESEMBLES)
        if meant:
            raise Problem(
                "bad_value",
                f"{variable} in the environment is no setting; did you mean {names[meant]}?",
                field=variable,
                accepted=names[meant],
            )


def read_file(path: Path, keys: Collection[str]) -> dict[str, object]:
    """Read a settings file.

    Args:
        path: a TOML file.
        keys: those that are known.

    Raises:
        Problem: 400 ``bad_value`` naming the file, and the key if there is one that is not known.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem("bad_value", f"{path} cannot be read: {error.strerror}", field="--config") from None
    except ValueError as error:
        raise Problem(
            "bad_value", f'{path} is no TOML: {error}; accepted: lines such as unhealthy-after = "15s"',
            field="--config",
        ) from None  # fmt: skip
    for key in found:
        if key not in keys:
            meant = nearest(key.lower().replace("_", "-"), keys)
            hint = f"did you mean {meant}?" if meant else f"accepted: {', '.join(sorted(keys))}"
            raise Problem("bad_value", f"{path}: {key} is no setting; {hint}", field=key, accepted=meant)
    return found
