"""The version: the only place where it stands, readable without importing anything."""

__version__ = "0.1.0"
