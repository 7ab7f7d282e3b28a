"""Amounts of CPU, memory and disk, as Kubernetes writes them and as people read them."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from installer.deploy.preflight.objects import list_at
from installer.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from installer.deploy.preflight.objects import Object

    Amounts = dict[str, Decimal]

_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,2})|([KMGTPE]i|[numkMGTPE]))?\Z"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_GIB = 2**30


def quantity(value: object) -> Decimal:
    """Give the number that a Kubernetes quantity (``250m``, ``1.5Gi``) stands for.

    Raises InvalidInput.
    """
    match = _QUANTITY.match(str(value))
    if match is None:
        raise InvalidInput(
            f"not a quantity: {str(value)[:40]!r}", hint="for example 250m, 2, 512Mi or 10Gi"
        )
    number, exponent, suffix = Decimal(match[1]), match[2], match[3]
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    return number.scaleb(int(exponent or 0) or _DECIMAL.get(suffix or "", 0))


def amount(resource: str, value: Decimal) -> str:
    """Write an amount of a resource for people: ``cpu 0.25``, ``memory 1.5 GiB``."""
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-"):
        return f"{resource} {value / _GIB:.1f} GiB"
    return f"{resource} {value.quantize(Decimal('0.01')).normalize():f}"


def gib(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / _GIB:.1f} GiB"


def pod_requests(spec: Object) -> Amounts:
    """What the scheduler counts for a pod: its containers together, or a larger init container."""
    together: Amounts = {}
    for container in list_at(spec, "containers"):
        for resource, value in _container_requests(container).items():
            together[resource] = together.get(resource, Decimal()) + value
    for container in list_at(spec, "initContainers"):
        for resource, value in _container_requests(container).items():
            together[resource] = max(together.get(resource, Decimal()), value)
    return together


def _container_requests(container: Object) -> Amounts:
    resources = container.get("resources") or {}
    # What is only limited is requested as well, by the API server's defaults.
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {str(resource): quantity(value) for resource, value in given.items()}


def sum_of(all_amounts: Iterable[Amounts]) -> Amounts:
    """Add amounts up, each resource for itself."""
    total: Amounts = {}
    for amounts in all_amounts:
        for key, value in amounts.items():
            total[key] = total.get(key, Decimal()) + value
    return total


def amounts_text(amounts: Amounts) -> str:
    """Write amounts for people, those of nothing left out."""
    return ", ".join(amount(key, value) for key, value in amounts.items() if value)
