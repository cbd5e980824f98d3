"""Models that a configuration needs, and where their authors offer them.

Addresses are of the Hugging Face hub. Sizes are approximate, for display; downloads
are checked against the hub's data. Each family's offers are a module of `offers/`.
"""

from __future__ import annotations

import importlib
import pkgutil

import flowloom.model_library.offers as package
from flowloom.model_library.offer import Offer
from flowloom.models.family import DEFAULT
from flowloom.models.recognize import architectures


def _offers() -> dict[str, tuple[Offer, ...]]:
    """All offers by the group of the first one of their module, those of the default family first."""
    names = sorted(
        (name for _, name, _ in pkgutil.iter_modules(package.__path__)), key=lambda n: (n != DEFAULT, n)
    )
    found: dict[str, tuple[Offer, ...]] = {}
    for name in names:
        offers: tuple[Offer, ...] = importlib.import_module(f"{package.__name__}.{name}").OFFERS
        group = architectures()[offers[0].architecture].family
        found[group] = (*found.get(group, ()), *offers)
    return found


_BY_GROUP = _offers()
OFFERS = tuple(offer for offers in _BY_GROUP.values() for offer in offers)
GROUPS = {offer.id: group for group, offers in _BY_GROUP.items() for offer in offers}
"""The title of the family that each offer is listed with, by its id."""


def offer_for(key: str, family: str) -> Offer:
    """The first model offered to `family` for a key of the configuration, such as model.vae_path."""
    offers = [offer for offer in OFFERS if key in dict(offer.sets)]
    fitting = [offer for offer in offers if not offer.families or family in offer.families]
    return max(fitting or offers, key=lambda offer: family in offer.families)
