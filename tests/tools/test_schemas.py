"""Schemas of tools for strict model servers, with no text that a model misreads (DESIGN: L7)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tools import references
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


#: What a real llama-server (xllamacpp 2026.10.11549) refused every chat for, and what is sent.
REFUSED = [
    ({"type": "any"}, {}),
    ({"type": "STRING"}, {"type": "string"}),
    ({"type": "int"}, {"type": "integer"}),
    ({"type": 5}, {}),
    ({"type": []}, {}),
    ({"type": ["string", "any"]}, {}),
    ({"type": ["str", "None"]}, {"type": ["string", "null"]}),
    ({"enum": []}, {}),
    ({"anyOf": []}, {}),
    ({"oneOf": [], "allOf": []}, {}),
    ({"minLength": "1"}, {}),
    ({"minLength": 1.0}, {"minLength": 1}),
    ({"maxItems": -1}, {}),
    ({"maxItems": True}, {}),
    ({"minimum": "0"}, {}),
    ({"maximum": 10**30}, {}),
    ({"minimum": 0, "exclusiveMinimum": True}, {"minimum": 0}),
    ({"minimum": 0.5, "maximum": 1}, {"minimum": 0.5, "maximum": 1}),
    # This one filled the memory of its machine.
    ({"minLength": 5, "maxLength": 1}, {}),
    ({"maxLength": 10**12}, {}),
    ({"minimum": 5, "maximum": 1}, {}),
    ({"format": 5}, {}),
    ({"pattern": 5}, {}),
    ({"pattern": "^[a$"}, {}),
    ({"pattern": "^(a$"}, {}),
    # Versions of the spring and the summer of 2026 refused these (as its users report).
    ({"pattern": "[a-z]+"}, {}),
    ({"pattern": r"^\d{4}$"}, {}),
    ({"pattern": "^(?!a)b$"}, {}),
    ({"pattern": "^[z-a]{9,1}*$"}, {}),
    ({"pattern": "^[a-z]{9,1}$"}, {}),
    ({"pattern": "^[a-z0-9_-]{1,64}$"}, {"pattern": "^[a-z0-9_-]{1,64}$"}),
    ({"$ref": 5}, {}),
    ({"$ref": "#"}, {}),
    ({"$ref": "#/$defs/none"}, {}),
    ({"$ref": "#anchor"}, {}),
    ({"$ref": "https://example.com/schema.json"}, {}),
    ({"$ref": "#/properties/other"}, {"$ref": "#/properties/other"}),
    ({"$ref": "#/properties/p"}, {}),
    # Ollama's types know these as they ought to be.
    ({"description": ["a"]}, {}),
    ({"required": ["a", 1, "a"]}, {"required": ["a"]}),
    ({"properties": ["a"]}, {}),
]


@pytest.mark.parametrize(("given_schema", "entry"), REFUSED)
def test_what_local_servers_cannot_read_is_left_out(given_schema: Any, entry: Any) -> None:
    other = {"type": "string"}
    parameters = {"type": "object", "properties": {"p": given_schema, "other": other}}
    assert parameters_of(parameters)["properties"] == {"p": entry, "other": other}


def test_a_reference_that_leads_back_to_itself_is_cut_and_one_through_an_object_stays() -> None:
    looping = {
        "A": {"$ref": "#/$defs/B"},
        "B": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/A"}]},
        "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}},
    }
    both = {"a": {"$ref": "#/$defs/A"}, "n": {"$ref": "#/$defs/Node"}}
    fit = parameters_of({"type": "object", "properties": both, "$defs": looping})
    assert fit["properties"] == both
    assert fit["$defs"]["Node"] == looping["Node"]
    assert fit["$defs"]["A"] == looping["A"]
    assert fit["$defs"]["B"] == {"anyOf": [{"type": "string"}, {}]}


@pytest.mark.parametrize(
    ("top", "properties", "required"),
    [
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": {}, "b": {}}, ["x"]),
        (
            {"oneOf": [{"properties": {"k": {"const": 1}}}, {"properties": {"k": {"const": 2}}}]},
            {"a": {}, "b": {}, "k": {"anyOf": [{"const": 1}, {"const": 2}]}},
            ["x"],
        ),
        (
            {"allOf": [{"properties": {"c": {}}, "required": ["c"]}, {"$ref": "#/$defs/D"}]},
            {"a": {}, "b": {}, "c": {}, "d": {"type": "string"}},
            ["x", "c", "d"],
        ),
        ({"$ref": "#/$defs/D"}, {"a": {}, "b": {}, "d": {"type": "string"}}, ["x", "d"]),
        ({"enum": [{}], "const": {}, "not": {"required": ["a"]}}, {"a": {}, "b": {}}, ["x"]),
        ({"$ref": "#/$defs/Loop"}, {"a": {}, "b": {}}, ["x"]),
    ],
)
def test_unions_at_the_top_are_merged(top: Any, properties: Any, required: Any) -> None:
    defs = {
        "D": {"properties": {"d": {"type": "string"}}, "required": ["d"]},
        "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}]},
    }
    fit = parameters_of({"properties": {"a": {}, "b": {}}, "required": ["x"], "$defs": defs, **top})
    assert fit["properties"] == properties
    assert fit["required"] == required
    assert fit.keys() == {"type", "properties", "required", "$defs"}


def test_references_cost_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[str] = []
    target = references._target

    def counted(root: Any, pointer: str) -> Any:
        followed.append(pointer)
        return target(root, pointer)

    monkeypatch.setattr(references, "_target", counted)
    width, depth = 20, 40
    defs: Any = {
        f"d{level}": {"anyOf": [{"$ref": f"#/$defs/d{level + 1}"}] * width}
        for level in range(depth)
    }
    parameters_of({"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {}}})
    assert len(followed) < 4 * width * depth


@given(_schemas)
def test_what_is_offered_is_what_ollama_reads(schema: Any) -> None:
    try:
        pending: list[Any] = [parameters_of(schema)]
    except UnfitTool:
        return
    while pending:
        each = pending.pop()
        kinds = each.get("type", [])
        assert isinstance(kinds, str) or all(isinstance(kind, str) for kind in kinds)
        assert isinstance(each.get("description", ""), str)
        assert all(isinstance(name, str) for name in each.get("required", []))
        pending += [*each.get("properties", {}).values(), *each.get("anyOf", [])]
        assert all(isinstance(inner, dict) for inner in pending)
