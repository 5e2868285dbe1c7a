"""What a record is: one Struct an entity, and the registry of the eight.

This package is the only place that knows columns, their order, types and limits. Decoding, error
codes, CSV headers, XLSX sheets, canonical rows, JSON Schema and the rules page of the docs are
derived from it.
"""

from schemas.json_schema import json_schema
from schemas.registry import ENTITIES, Column, Entity, Kind

__all__ = ["ENTITIES", "Column", "Entity", "Kind", "json_schema"]
