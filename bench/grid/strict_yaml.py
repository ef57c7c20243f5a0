"""Plain YAML from untrusted sources: bounded, without tags and aliases."""

import json
import re
from typing import Any

import yaml

from bench.core.errors import UserError

LONGEST = 100  # characters of a number that somebody has meant
# What YAML 1.1, which PyYAML reads, and YAML 1.2 take for two different things.
_TWO_READINGS = re.compile(
    r"""yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF
    |[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?  # base 60
    |[-+]?0[0-9_]+|0o[0-7]+                         # base 8
    |[-+]?0b[01_]+|[-+]0x[0-9a-fA-F_]+
    |(?=.*_)[-+]?(0x[0-9a-fA-F_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*)""",
    re.VERBOSE,
)


class _Loader(yaml.SafeLoader):
    """Plain YAML: mappings, lists, words, numbers of up to 64 bits, true, false, null.

    Without aliases (a few lines of them can stand for gigabytes), without repeated keys, and without what the versions
    of YAML read differently.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {line}: aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: a key must be a plain word")
            if key_node.value in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key_node.value!r} is there twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        value.encode()  # a lone surrogate cannot be written to a record
        unquoted = isinstance(node, yaml.ScalarNode) and (node.style is None or not node.tag.endswith(":str"))
        if unquoted and len(value) <= LONGEST and _TWO_READINGS.fullmatch(value):
            one, other = json.dumps(yaml.safe_load(value)), json.dumps(_by_1_2(value))
            if one != other:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f"line {line}: {value} is {one} in YAML 1.1 and {other} in YAML 1.2; write one of these"
                )
        return value

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a whole number of more than 64 bits")
        return value


def _by_1_2(value: str) -> str | int:
    """Return how YAML 1.2 reads what has two readings."""
    if re.fullmatch("[-+]?[0-9]+", value):
        return int(value)
    return int(value, 8) if value.startswith("0o") else value


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    None: yaml.SafeLoader.yaml_constructors[None],  # refuses the other tags
    **{f"tag:yaml.org,2002:{kind}": getattr(_Loader, f"construct_yaml_{kind}") for kind in _PLAIN},
}
# YAML 1.1 reads 1e-3 as a string; people who write it mean a number.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Parse YAML text. Raises UserError naming `source` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML raises nearly anything on a tag that its value does not suit
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split()) or type(error).__name__}") from error
