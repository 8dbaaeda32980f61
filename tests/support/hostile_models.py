"""Hostile files of model folders in the corpus that are whole JSON, and say what no file should: settings of
generation, tokenizers, chat templates, lists in config.json; and what a request asks of the grammar compiler.

Each entry changes one thing of a set that works.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.hostile_files import QWEN3, command, folder
from tests.support.hostile_parts import SHORT, Change, put

Changes = Callable[[], dict[str, Any]]

GENERATION: dict[str, Changes] = {
    **{
        f"{field}={value!r:.20}": lambda f=field, v=value: {f: v}
        for field, values in {
            "top_k": (50.5, "50", -1, 1e300, True, 2**31, [1]),
            "top_p": ("0.9", 2, -0.1, float("nan"), float("inf"), 10**400, {}),
            "temperature": ("hot", -1, float("inf"), float("nan"), 10**400, None, 1e-320),
            "repetition_penalty": (0, -1, float("inf"), float("nan"), 1e-320),
            "max_new_tokens": (0, -1, 1.5, 10**400, "many"),
            "eos_token_id": ("x", [None], -1, 10**30, [[1]], 1.0, {}, [True]),
        }.items()
        for value in values
    },
    "a million eos_token_id": lambda: {"eos_token_id": list(range(1_000_000))},
    "eos_token_id 300,000 times": lambda: {"eos_token_id": [1] * 300_000},
    "suppress_tokens": lambda: {"suppress_tokens": list(range(-5, 100_000))},
    "bad_words_ids": lambda: {"bad_words_ids": [[[1]]] * 1_000},
    "a hundred thousand fields": lambda: {f"f{i}": i for i in range(100_000)},
    "code": lambda: {"custom_generate": "../evil.py", "assistant_model": "/dev/zero"},
}
"""Fields of generation_config.json."""

CONFIG: dict[str, Changes] = {
    "a million layer_types": lambda: {"layer_types": ["full_attention"] * 400_000},
    "layer_types of layers": lambda: {"layer_types": ["sliding_attention", 5]},
    "10,000 architectures": lambda: {"architectures": [f"A{i}ForCausalLM" for i in range(10_000)]},
    "10,000 labels": lambda: {"id2label": {str(i): "x" for i in range(10_000)}, "num_labels": 10_000},
    "a text_config of a text_config": lambda: {"text_config": {"text_config": {"num_hidden_layers": 10**9}}},
    "layers of a text_config": lambda: {"text_config": {"num_hidden_layers": 10**9, "model_type": "qwen3"}},
    "layers of a vision_config": lambda: {"vision_config": {"num_hidden_layers": 10**9}},
    "experts": lambda: {"num_experts": 10**9, "num_experts_per_tok": 10**9},
    "a window": lambda: {"sliding_window": -5, "use_sliding_window": True},
    "a huge window": lambda: {"sliding_window": 10**30, "use_sliding_window": True, "max_window_layers": 0},
    "rope_theta": lambda: {"rope_theta": float("nan")},
    "rope_theta 0": lambda: {"rope_theta": 0, "rope_parameters": {"rope_theta": 0, "rope_type": "default"}},
    "a factor without end": lambda: {"rope_parameters": {"rope_type": "yarn", "factor": float("inf")}},
    "a factor of 400 digits": lambda: {"rope_parameters": {"rope_type": "linear", "factor": 10**400}},
    "longrope of 400,000 factors": lambda: {
        "rope_parameters": {"rope_type": "longrope", "long_factor": [1.0] * 400_000, "short_factor": [1.0]}
    },
    "rope inside rope": lambda: {"rope_parameters": {"full_attention": {"rope_type": {"rope_type": "x"}}}},
    "partial rotary": lambda: {"partial_rotary_factor": float("nan")},
    "epsilon": lambda: {"rms_norm_eps": -1},
    "no epsilon": lambda: {"rms_norm_eps": float("nan")},
    "a dropout": lambda: {"attention_dropout": 10**400},
    "20,000 eos_token_id": lambda: {"eos_token_id": list(range(20_000))},
    "eos_token_id of text": lambda: {"eos_token_id": "\x1b[2J"},
    "pad_token_id": lambda: {"pad_token_id": 10**9},
    "ignore of 300,000 names": lambda: {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "ignore": ["x" * 9] * 300_000,
            "config_groups": {},
        }
    },
    "100,000 groups": lambda: {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {f"g{i}": {"targets": ["Linear"]} for i in range(100_000)},
        }
    },
    "a minus": lambda: {"num_attention_heads": -8, "num_key_value_heads": -8},
    "heads that do not divide": lambda: {"num_attention_heads": 7, "num_key_value_heads": 3},
    "a digit too many": lambda: {"max_position_embeddings": 1e308},
    "auto_map of numbers": lambda: {"auto_map": [1, 2]},
    "is_encoder_decoder": lambda: {"is_encoder_decoder": True},
    "pruned_heads": lambda: {"pruned_heads": {"0": list(range(100_000))}},
    "output_attentions": lambda: {"output_attentions": True, "output_hidden_states": True},
    "tie_word_embeddings": lambda: {"tie_word_embeddings": "\u202e"},
    "per layer": lambda: {"per_layer_config": {str(i): {} for i in range(50_000)}},
}
"""Fields of config.json."""


def tokenizer() -> dict[str, Any]:
    """The small model's tokenizer."""
    return dict(json.loads((QWEN3 / "tokenizer.json").read_text()))


def _added(count: int, **more: Any) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": 10_000 + i, "content": f"<{i}>", **flags, **more} for i in range(count)]


TOKENIZERS: dict[str, Changes] = {
    "no model": lambda: {"model": {}},
    "a model of a number": lambda: {"model": 5},
    "an unknown model": lambda: {"model": {"type": "\x1b[2J", "vocab": {}}},
    "BPE of nothing": lambda: {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "merges of strangers": lambda: {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}},
    "merges of one": lambda: {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
    "ids of 40 bits": lambda: {"model": {"type": "BPE", "vocab": {"a": 2**40, "b": 0}, "merges": []}},
    "ids of 32 bits": lambda: {"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}},
    "ids below 0": lambda: {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "ids twice": lambda: {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    "ids beyond the model": lambda: {
        "model": {"type": "WordLevel", "vocab": {"1": 10**6, "x": 10**9}, "unk_token": "x"},
        "pre_tokenizer": {"type": "Whitespace"},
    },
    "200,000 words": lambda: {
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(200_000)}, "unk_token": "w0"}
    },
    "Unigram without words": lambda: {"model": {"type": "Unigram", "vocab": [], "unk_id": 0}},
    "Unigram's unknown": lambda: {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 10**9}},
    "Unigram's scores": lambda: {"model": {"type": "Unigram", "vocab": [["a", float("nan")]], "unk_id": 0}},
    "a long word": lambda: {
        "model": {
            "type": "WordPiece",
            "vocab": {"a" * 1_000_000: 0, "[UNK]": 1},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**18,
        }
    },
    "padding of a billion": lambda: {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    },
    "padding to a multiple": lambda: {
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": 10**9,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    },
    "truncation to 0": lambda: {
        "truncation": {"max_length": 0, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    },
    "truncation with a stride": lambda: {
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}
    },
    "an expression that is none": lambda: {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    },
    "an expression that takes forever": lambda: {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(.|.)*(.|.)*(.|.)*!"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "an expression of 400,000 brackets": lambda: {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(" * 400_000},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "a text that grows": lambda: {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "1"}, "content": "11"}] * 60,
        }
    },
    "a prefix of a million": lambda: {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    "10,000 normalizers": lambda: {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 10_000}
    },
    "deep normalizers": lambda: {"normalizer": _nested(50)},
    "a charsmap": lambda: {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "20,000 added tokens": lambda: {"added_tokens": _added(20_000)},
    "20,000 normalized tokens": lambda: {"added_tokens": _added(20_000, normalized=True)},
    "added tokens without text": lambda: {"added_tokens": _added(3, content="")},
    "added tokens of escapes": lambda: {"added_tokens": _added(3, content="\x1b[2J")},
    "added tokens far away": lambda: {"added_tokens": _added(3, id=2**32 - 1)},
    "a template of strangers": lambda: {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "a template of many": lambda: {
        "post_processor": {
            "type": "TemplateProcessing",
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [1] * 1_000_000, "tokens": ["x"] * 1_000_000}},
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100,
        }
    },
    "a decoder that is none": lambda: {"decoder": {"type": "\u202e"}},
    "a decoder that grows": lambda: {
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"Regex": "(.)"}, "content": "xx"}] * 60,
        }
    },
    "a decoder that strips": lambda: {
        "decoder": {"type": "Strip", "content": "1", "start": 10**9, "stop": 10**9}
    },
    "a version": lambda: {"version": "\x1b[2J"},
}
"""Fields of tokenizer.json."""


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


TOKENIZER_CONFIG: dict[str, Changes] = {
    **{
        f"model_max_length={v!r:.20}": lambda v=v: {"model_max_length": v}
        for v in (-1, 0, "x", 10**400, float("nan"), float("inf"), [1], None)
    },
    **{
        f"tokenizer_class={v!r:.30}": lambda v=v: {"tokenizer_class": v}
        for v in (
            "LlamaTokenizer",
            "BertTokenizer",
            "T5Tokenizer",
            "os.system",
            "../evil",
            5,
            [],
            "\x1b[2J",
            "",
            "PreTrainedTokenizer",
            "MistralCommonBackend",
            "AutoTokenizer",
        )
    },
    **{
        f"{t}={v!r:.20}": lambda t=t, v=v: {t: v}
        for t in ("bos_token", "eos_token", "pad_token", "unk_token")
        for v in (
            5,
            [],
            {"content": 5},
            "\x1b[2J",
            "x" * 100_000,
            {"__type": "AddedToken", "content": "y"},
            "\ud800",
        )
    },
    "extra_special_tokens": lambda: {"extra_special_tokens": {"\x1b": 5}},
    "additional_special_tokens": lambda: {"additional_special_tokens": [f"<{i}>" for i in range(5_000)]},
    "additional_special_tokens of numbers": lambda: {"additional_special_tokens": [1, [2]]},
    "added_tokens_decoder": lambda: {"added_tokens_decoder": {"99999999999999": {"content": "x"}}},
    "added_tokens_decoder of text": lambda: {"added_tokens_decoder": {"x": {"content": "x"}}},
    "added_tokens_decoder of lists": lambda: {"added_tokens_decoder": [1]},
    "padding_side": lambda: {"padding_side": "up", "truncation_side": 5},
    "name_or_path": lambda: {"name_or_path": "/dev/zero", "tokenizer_file": "/dev/zero"},
    "slow": lambda: {"use_fast": False, "from_slow": True},
    "model_input_names": lambda: {"model_input_names": 5},
    "clean up": lambda: {"clean_up_tokenization_spaces": "x", "split_special_tokens": []},
}
"""Fields of tokenizer_config.json."""

TEMPLATES: dict[str, Callable[[], Any]] = {
    "a number": lambda: 5,
    "a list": lambda: [{"name": "default", "template": 5}],
    "a list of strangers": lambda: [{"x": 1}],
    "names": lambda: [{"name": f"n{i}", "template": "x"} for i in range(1_000)],
    "nothing": lambda: "",
    "an open block": lambda: "{% if x %}",
    "an open bracket": lambda: "{{ (",
    "500,000 brackets": lambda: "{{ " + "(" * 500_000,
    "2,000 brackets": lambda: "{{ " + "(" * 2_000 + ")" * 2_000 + " }}",
    "2,000 conditions": lambda: "{% if true %}" * 2_000 + "{% endif %}" * 2_000,
    "100,000 expressions": lambda: "{{ messages }}" * 100_000,
    "100,000 sums": lambda: "{{ 1" + "+1" * 100_000 + " }}",
    "an endless macro": lambda: "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that prints": lambda: "{% macro m(n) %}x{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a printing loop": lambda: "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "a loop of a billion": lambda: "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a file": lambda: "{% include '/etc/passwd' %}",
    "a parent": lambda: "{% extends '/etc/passwd' %}",
    "an import": lambda: "{% import 'os' as os %}{{ os.system('id') }}",
    "a class": lambda: "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "a class by attr": lambda: "{{ ''|attr('__class__') }}",
    "a class by format": lambda: "{{ '{0.__class__}'.format(messages) }}",
    "globals": lambda: "{{ raise_exception.__globals__ }}",
    "cycler": lambda: "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "an exception of escapes": lambda: "{{ raise_exception('\\x1b[2J\\u202e') }}",
    "an exception of a megabyte": lambda: "{{ raise_exception('x' * 1000000) }}",
    "a division": lambda: "{{ 1 / 0 }}",
    "no such filter": lambda: "{{ messages|nope }}",
    "no such field": lambda: "{{ messages[9].content.x.y }}",
    "no such test": lambda: "{{ 1 is nope }}",
    "a surrogate": lambda: "{{ '\\ud800' }}",
    "a sort of all": lambda: "{{ messages|sort(attribute='x.y') }}",
    "tojson of itself": lambda: "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n|tojson }}",
    "changes the messages": lambda: "{% set _ = messages.append(messages) %}{{ messages }}",
    "strftime": lambda: "{{ strftime_now('%' * 1000) }}",
    "continue": lambda: "{% for m in messages %}{% continue %}{% endfor %}",
    "generation": lambda: "{% generation %}{% generation %}x{% endgeneration %}{% endgeneration %}",
}
"""Chat templates."""


def deep(depth: int) -> dict[str, Any]:
    """A schema of objects in objects."""
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


GRAMMARS: dict[str, Callable[[], dict[str, Any]]] = {
    "a string of a billion": lambda: {"json": {"type": "string", "minLength": 10**9}},
    "a string of no length": lambda: {"json": {"type": "string", "minLength": 5, "maxLength": 1}},
    "a string of -1": lambda: {"json": {"type": "string", "maxLength": -1}},
    "a list of a billion": lambda: {"json": {"type": "array", "minItems": 10**9, "items": {}}},
    "a list of 2,000 lists of 2,000": lambda: {
        "json": {"type": "array", "minItems": 2_000, "items": {"type": "array", "minItems": 2_000}}
    },
    "a number of many digits": lambda: {"json": {"type": "integer", "minimum": 10**400}},
    "a number between": lambda: {"json": {"type": "number", "minimum": 1e-300, "maximum": 1e300}},
    "no number between": lambda: {"json": {"type": "integer", "minimum": 5, "maximum": 1}},
    "a multiple of 0": lambda: {"json": {"type": "number", "multipleOf": 0}},
    "a multiple of little": lambda: {"json": {"type": "number", "multipleOf": 1e-300}},
    "an unknown type": lambda: {"json": {"type": "\x1b[2J"}},
    "types of types": lambda: {"json": {"type": [["string"]]}},
    "false": lambda: {"json": False},
    "true": lambda: {"json": "true"},
    "NaN": lambda: {"json": "NaN"},
    "never": lambda: {"json": {"not": {}}},
    "a reference elsewhere": lambda: {"json": {"$ref": "http://169.254.169.254/x"}},
    "a reference to a file": lambda: {"json": {"$ref": "file:///etc/passwd"}},
    "references in a circle": lambda: {
        "json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    },
    "a tree without leaves": lambda: {
        "json": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "object", "required": ["x"], "properties": {"x": {"$ref": "#/$defs/a"}}}},
        }
    },
    "references that double": lambda: {
        "json": {
            "$ref": "#/$defs/d40",
            "$defs": {
                "d0": {"type": "string"},
                **{
                    f"d{i}": {
                        "type": "array",
                        "prefixItems": [{"$ref": f"#/$defs/d{i - 1}"}] * 2,
                        "minItems": 2,
                    }
                    for i in range(1, 41)
                },
            },
        }
    },
    "choices that double": lambda: {
        "json": {
            "$ref": "#/$defs/d20",
            "$defs": {
                "d0": {"type": "string"},
                **{
                    f"d{i}": {
                        "anyOf": [
                            {"$ref": f"#/$defs/d{i - 1}"},
                            {"type": "array", "items": {"$ref": f"#/$defs/d{i - 1}"}},
                        ]
                    }
                    for i in range(1, 21)
                },
            },
        }
    },
    "all of choices": lambda: {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}": {}, f"b{j}": {}}} for j in range(30)]} for i in range(30)
            ]
        }
    },
    "oneOf of 900": lambda: {"json": {"oneOf": [{"const": i} for i in range(900)]}},
    "60 deep": lambda: {"json": deep(60)},
    "20 deep": lambda: {"json": deep(20)},
    "a pattern that takes forever": lambda: {"json": {"type": "string", "pattern": "(a+)+b"}},
    "a pattern that is none": lambda: {"json": {"type": "string", "pattern": "("}},
    "a pattern of itself": lambda: {"json": {"type": "string", "pattern": r"(a)\1"}},
    "a pattern that looks ahead": lambda: {"json": {"type": "string", "pattern": "(?=a)b"}},
    "900 patterns of properties": lambda: {
        "json": {"type": "object", "patternProperties": {f"^a{i}.*b$": {} for i in range(900)}}
    },
    "an unknown format": lambda: {"json": {"type": "string", "format": "\u202e"}},
    "formats": lambda: {
        "json": {
            "type": "array",
            "prefixItems": [
                {"type": "string", "format": f}
                for f in ("date-time", "uuid", "ipv6", "email", "uri", "regex")
            ],
        }
    },
    "an enum of 1,000": lambda: {"json": {"enum": ["x" * i for i in range(700)]}},
    "an enum of nothing": lambda: {"json": {"enum": []}},
    "a key twice": lambda: {"json": '{"type": "string", "type": "number"}'},
    "names of escapes": lambda: {
        "json": {"type": "object", "properties": {"\x1b[2J": {}}, "required": ["\ud800"]}
    },
    "whitespace": lambda: {"json": {}, "whitespace_pattern": "(a+)+"},
    "an expression of counts": lambda: {"regex": "((a{100}){100}){100}"},
    "an expression of letters": lambda: {"regex": r"\p{L}{1000}"},
    "an expression of anything": lambda: {"regex": "(.*a){20}.{200}b"},
    "an expression of choices": lambda: {"regex": "|".join(f"a{i}b*" for i in range(20_000))},
    "an expression that looks behind": lambda: {"regex": "(?<=a)b"},
    "an expression of nothing": lambda: {"regex": ""},
    "an expression that never matches": lambda: {"regex": "[^\\s\\S]"},
    "an expression of a surrogate": lambda: {"regex": "\ud800"},
    "a zero in an expression": lambda: {"regex": "a\0b"},
    "a negated class": lambda: {"regex": "[" + "".join(f"\\u{{{i:x}}}" for i in range(256, 8_000)) + "]+"},
    "no start": lambda: {"grammar": 'x: "a"'},
    "an empty grammar": lambda: {"grammar": ""},
    "a left recursion": lambda: {"grammar": 'start: start "a" | "b"'},
    "a GBNF recursion": lambda: {"grammar": 'root ::= root "a" | root'},
    "rules that double": lambda: {
        "grammar": 'start: a40\na0: "x"\n' + "\n".join(f"a{i}: a{i - 1} a{i - 1}" for i in range(1, 41))
    },
    "empty rules that double": lambda: {
        "grammar": 'start: a40\na0: "x"?\n' + "\n".join(f"a{i}: a{i - 1} a{i - 1}" for i in range(1, 41))
    },
    "5,000 rules": lambda: {
        "grammar": "start: a0\n" + "\n".join(f'a{i}: a{i + 1} | "x"' for i in range(5_000))
    },
    "a rule repeated": lambda: {"grammar": 'start: "a"~1..1000000000'},
    "an import of a file": lambda: {"grammar": "start: X\n%import /etc.passwd.X"},
    "ignore": lambda: {"grammar": 'start: "a"\n%ignore /.*/\n%ignore /(a+)+/'},
    "10,000 brackets": lambda: {"grammar": "start: " + "(" * 10_000 + '"a"' + ")" * 10_000},
    "100,000 alternatives": lambda: {"grammar": "start: " + " | ".join(f'"{i}"' for i in range(25_000))},
    "a special token": lambda: {"grammar": "start: <|im_end|> <[999999999]>"},
    "json in a grammar": lambda: {
        "grammar": 'start: x\nx: %json {"type": "string", "minLength": 1000000000}'
    },
    "an empty choice": lambda: {"choice": []},
    "a choice of nothing": lambda: {"choice": [""]},
    "a choice of numbers": lambda: {"choice": [1]},
    "a choice of prefixes": lambda: {"choice": ["x" * i for i in range(500)]},
    "a choice of long texts": lambda: {"choice": [f"{i}" * 200 for i in range(900)]},
    "two at once": lambda: {"choice": ["a"], "regex": "b"},
    "neither": dict,
    "json_object": lambda: {"json_object": True},
    "a tag": lambda: {"structural_tag": '{"type": "structural_tag", "structures": [], "triggers": [""]}'},
    "a name that is none": lambda: {"\x1b[2J": 1},
}
"""`structured_outputs` of a request."""


def generation_configs() -> Iterator[Change]:
    """generation_config.json."""
    for name, changes in GENERATION.items():
        yield name, lambda p, c=changes: beside(p, "generation_config.json", c())


def configs() -> Iterator[Change]:
    """config.json: a choice, and a load."""
    for name, changes in CONFIG.items():
        yield name, lambda p, c=changes: configured(p, c())


def tokenizers() -> Iterator[Change]:
    """tokenizer.json and tokenizer_config.json."""
    for name, changes in TOKENIZERS.items():
        yield (
            f"tokenizer.json: {name}",
            lambda p, c=changes: beside(p, "tokenizer.json", {**tokenizer(), **c()}),
        )
    for name, changes in TOKENIZER_CONFIG.items():
        yield name, lambda p, c=changes: beside(p, "tokenizer_config.json", c(), whole=True)


def templates() -> Iterator[Change]:
    """Chat templates."""
    for name, template in TEMPLATES.items():
        yield name, lambda p, t=template: chat(p, t())


def grammars() -> Iterator[Change]:
    """Structured outputs."""
    for name, asked in GRAMMARS.items():
        yield name, lambda p, a=asked: structured(a())


def structured(asked: dict[str, Any]) -> None:
    """A request with structured outputs; the next one is answered."""
    from tests.support.hostile import generate

    generate({"structured_outputs": asked})


def beside(path: Path, file: str, changes: dict[str, Any], whole: bool = False) -> None:
    """A generation by a model with another file; whole: with fields of the model's own file."""
    folder(path, {})
    own = json.loads((QWEN3 / file).read_text()) if whole else {}
    put(path / file, json.dumps({**own, **changes}).encode())
    command(["generate", str(path), "--prompt", "1 + 1 = x", "--max-tokens", "2", *SHORT])


def configured(path: Path, changes: dict[str, Any]) -> None:
    """A choice, and a generation, by a model with another config.json."""
    folder(path, changes)
    command(["select", str(path)])
    command(["generate", str(path), "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])


def chat(path: Path, template: Any) -> None:
    """A conversation by a model with this template."""
    folder(path, {})
    own = json.loads((QWEN3 / "tokenizer_config.json").read_text())
    put(path / "tokenizer_config.json", json.dumps({**own, "chat_template": template}).encode())
    for file in path.glob("chat_template*"):
        file.unlink()
    command(["generate", str(path), "--chat", "--prompt", "1 + 1", "--max-tokens", "2", *SHORT])
