"""Record schemas: one Struct per entity, and the registry of the eight entities.

Only this package knows columns, their order, types and limits. Decoding, violation codes, CSV
headers, XLSX sheets, canonical rows, JSON Schema and the rules page of the docs derive from it.
"""

from schemas.json_schema import json_schema
from schemas.registry import ENTITIES, Column, Entity, Kind

__all__ = ["ENTITIES", "Column", "Entity", "Kind", "json_schema"]
