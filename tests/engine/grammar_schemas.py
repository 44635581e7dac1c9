"""Twenty JSON schemas as they are met: records, maps, unions, recursion, formats, arguments of tools."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def obj(required: str, **properties: Any) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def text(**more: Any) -> Json:
    return {"type": "string", **more}


def whole(**more: Any) -> Json:
    return {"type": "integer", **more}


def several(items: Any, **more: Any) -> Json:
    return {"type": "array", "items": items, "maxItems": 3, **more}


POSITION = {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "minItems": 2, "maxItems": 2}
POSITION |= {"items": False}
ADDRESS = obj("street city", street=text(maxLength=20), city=text(maxLength=20), zip=text(pattern="^[0-9]{5}$"))

SCHEMAS: dict[str, Json | bool] = {
    "person": obj(
        "name born email",
        name=text(minLength=1, maxLength=30),
        born=text(format="date"),
        email=text(format="email", maxLength=40),
        height={"type": "number", "exclusiveMinimum": 0, "maximum": 3},
        address=ADDRESS,
    ),
    "order": obj(
        "id lines total placed",
        id=text(format="uuid"),
        placed=text(format="date-time"),
        lines=several(
            obj("sku count", sku=text(pattern="^[A-Z]{3}-[0-9]{4}$"), count=whole(minimum=1, maximum=99)), minItems=1
        ),
        total={"type": "number", "minimum": 0, "maximum": 100000},
        note={"type": ["string", "null"], "maxLength": 20},
    ),
    "geojson": {
        "oneOf": [
            obj("type coordinates", type={"const": "Point"}, coordinates=POSITION),
            obj("type coordinates", type={"const": "LineString"}, coordinates=several(POSITION, minItems=2)),
            obj(
                "type geometries",
                type={"const": "GeometryCollection"},
                geometries=several(obj("type coordinates", type={"const": "Point"}, coordinates=POSITION)),
            ),
        ]
    },
    "package": obj(
        "name version",
        name=text(pattern="^[a-z][a-z0-9-]{0,20}$"),
        version=text(pattern=r"^\d{1,3}\.\d{1,3}\.\d{1,3}$"),
        private={"type": "boolean"},
        keywords=several(text(maxLength=12)),
        dependencies={
            "type": "object",
            "patternProperties": {"^[a-z]{1,12}$": text(pattern=r"^[~^]?\d{1,2}\.\d{1,2}$")},
            "additionalProperties": False,
            "maxProperties": 3,
        },
    ),
    "tool_weather": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **obj(
            "city unit",
            city=text(description="where", maxLength=20),
            unit=text(enum=["celsius", "fahrenheit"]),
            days=whole(minimum=1, maximum=14, default=3),
        ),
    },
    "tool_calls": several(
        {
            "anyOf": [
                obj("name arguments", name={"const": "search"}, arguments=obj("query", query=text(maxLength=20))),
                obj("name arguments", name={"const": "open"}, arguments=obj("page", page=whole(minimum=0))),
            ]
        },
        minItems=1,
    ),
    "tree": {
        "$defs": {"node": obj("value", value=whole(), children=several({"$ref": "#/$defs/node"}, maxItems=2))},
        "$ref": "#/$defs/node",
    },
    "linked_list": {
        "$defs": {"cell": {"anyOf": [{"type": "null"}, obj("head tail", head=whole(), tail={"$ref": "#/$defs/cell"})]}},
        "$ref": "#/$defs/cell",
    },
    "expression": {
        "definitions": {
            "e": {
                "oneOf": [
                    {"type": "number"},
                    obj(
                        "op left right",
                        op={"enum": ["+", "-", "*"]},
                        left={"$ref": "#/definitions/e"},
                        right={"$ref": "#/definitions/e"},
                    ),
                ]
            }
        },
        "$ref": "#/definitions/e",
    },
    "mixed_enum": {"enum": ["low", "high", 3, 2.5, None, True, [1, "a"], {"k": "v", "n": 0}]},
    "network": obj(
        "v4 v6 host",
        v4=text(format="ipv4"),
        v6=text(format="ipv6"),
        host=text(format="hostname", maxLength=30),
        port=whole(minimum=1, maximum=65535),
        link=text(format="uri", maxLength=40),
    ),
    "times": obj(
        "start",
        start=text(format="date-time"),
        at=text(format="time"),
        days=several(text(format="date")),
        every=text(format="duration", maxLength=20),
    ),
    "scores": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
        "minProperties": 1,
    },
    "matrix": several(several(whole(minimum=-9, maximum=9), minItems=2, maxItems=2), minItems=2, maxItems=2),
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"id": whole(minimum=0)}, "required": ["id"]},
            {"type": "object", "properties": {"tag": text(maxLength=10)}, "required": ["tag"]},
        ],
        "properties": {"id": True, "tag": True},
        "additionalProperties": False,
    },
    "event": obj(
        "kind payload",
        kind=text(pattern="^(created|deleted|changed)[.](user|file)$"),
        payload={"anyOf": [obj("old new", old=text(maxLength=9), new=text(maxLength=9)), {"type": "null"}]},
    ),
    "review": obj(
        "stars verdict reasons",
        stars=whole(minimum=1, maximum=5),
        verdict=text(enum=["accept", "reject", "unsure"]),
        reasons=several(text(minLength=3, maxLength=20), minItems=1),
    ),
    "settings": obj(
        "theme",
        theme={"enum": ["dark", "light"]},
        size=whole(multipleOf=4, minimum=8, maximum=64),
        paths=several(text(pattern="^/([a-z]+/)*[a-z]+$", maxLength=30)),
        extra={"type": "object", "properties": {"x-on": {"type": "boolean"}}, "additionalProperties": whole()},
    ),
    "draft_7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [text(maxLength=8), whole(), {"type": "boolean"}],
        "additionalItems": False,
        "minItems": 3,
    },
    "extraction": obj(
        "people",
        people=several(
            obj(
                "name role",
                name=text(maxLength=15),
                role={"enum": ["author", "editor", "other"]},
                born={"anyOf": [text(format="date"), {"type": "null"}]},
            )
        ),
        count=whole(minimum=0, exclusiveMaximum=100),
    ),
}
assert len(SCHEMAS) == 20
