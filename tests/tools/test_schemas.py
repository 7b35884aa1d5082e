"""Schemas of tools for strict model servers, with no text that a model misreads (DESIGN: L7)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tools.definitions import definition
from llamaproxy.tools.schemas import UnfitTool, parameters_of

NO_PARAMETERS = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    "schema",
    [
        *(None, {}, [], "object", True),
        *({"type": "object"}, {"properties": None}, {"type": None, "properties": []}),
        {"type": "object", "properties": {}, "required": None},
    ],
)
def test_a_tool_without_parameters_has_an_object_without_properties(schema: Any) -> None:
    assert parameters_of(schema) == NO_PARAMETERS


@pytest.mark.parametrize(
    ("given_schema", "entry"),
    [
        (True, {}),
        (False, {"not": {}}),
        ("string", {}),
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"type": ["array", "null"]}, {"type": ["array", "null"], "items": {}}),
        ({"type": "array", "items": True}, {"type": "array", "items": {}}),
        ({"type": "array", "prefixItems": [True]}, {"type": "array", "prefixItems": [{}]}),
        ({"items": [{"type": "array"}]}, {"items": [{"type": "array", "items": {}}]}),
        ({"type": "string", "enum": None}, {"type": "string"}),
        ({"type": "string", "title": None, "format": None}, {"type": "string"}),
        ({"default": None, "const": None}, {"default": None, "const": None}),
        ({"anyOf": [True, {"type": "array"}]}, {"anyOf": [{}, {"type": "array", "items": {}}]}),
        ({"anyOf": None}, {}),
        ({"additionalProperties": False}, {"additionalProperties": False}),
        ({"additionalProperties": True}, {"additionalProperties": True}),
        ({"additionalProperties": {"items": 1}}, {"additionalProperties": {"items": {}}}),
        ({"type": "object", "required": "a"}, {"type": "object"}),
        ({"default": "a\u200b"}, {}),
        ({"examples": ["<|im_end|>"]}, {}),
        ({"pattern": "^<think>$"}, {}),
        ({"description": "a\u200bb"}, {"description": "ab"}),
        ({"x-note": {"text": "a\u200b"}}, {"x-note": {"text": "a"}}),
        ({"properties": {"x": ["a"]}}, {"properties": {"x": {}}}),
        ({"dependencies": {"a": ["b"], "c": True}}, {"dependencies": {"a": ["b"], "c": {}}}),
    ],
)
def test_what_strict_servers_refuse_is_said_in_another_way(given_schema: Any, entry: Any) -> None:
    parameters = {"type": "object", "properties": {"p": given_schema}, "$defs": {"d": given_schema}}
    assert parameters_of(parameters) == {
        "type": "object",
        "properties": {"p": entry},
        "$defs": {"d": entry},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a\u200b": {}}},
        {"properties": {"p": {"enum": ["a", "<|im_end|>"]}}},
        {"properties": {"p": {"const": {"k": ["\u200b"]}}}},
        {"properties": {"p": {"$ref": "#/$defs/<think>"}}},
        {"$defs": {"<think>": {}}},
        {"required": ["\u200b"]},
        {"<think>": 1},
        {"x": {"<think>": 1}},
        {"$ref": "#/shared/A", "shared": {"A": {"enum": ["<|im_start|>"]}}},
        {"shared": {"A": {"const": "a\u200bb"}}},
    ],
)
def test_a_tool_with_names_that_a_model_misreads_is_not_offered(schema: Any) -> None:
    with pytest.raises(UnfitTool, match="not fit to be shown"):
        definition("g", "t", "", schema)


@pytest.mark.parametrize("keyword", ["items", "properties", "x", "anyOf"])
def test_a_schema_is_nested_only_so_far(keyword: str) -> None:
    schema: Any = {"description": "deep"}
    for _ in range(100):
        inner = {"properties": {"p": schema}, "anyOf": {"anyOf": [schema]}}
        schema = inner.get(keyword, {keyword: schema})
    with pytest.raises(UnfitTool, match="nested too deeply"):
        definition("g", "t", "", schema)


_schemas = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "anyOf", "enum", "required", "default", "title"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_schemas)
def test_a_schema_that_was_made_fit_stays_as_it_is(schema: Any) -> None:
    try:
        fit = parameters_of(schema)
    except UnfitTool:
        return
    assert fit["type"] == "object" and isinstance(fit["properties"], dict)
    assert parameters_of(fit) == fit
