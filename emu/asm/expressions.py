"""Expressions in assembler source: splitting operands, and the values of constant expressions."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'')
_TOKEN = re.compile(STRING.pattern + r"|[#;,()\[\]]")
_NAME = re.compile(r"(?<![\w'])[A-Za-z_.$][\w.$]*")
_NUMBER = re.compile(r"\s*-?(?:0x[0-9a-fA-F]+|0|[1-9][0-9]*)\s*")
_MEMORY = re.compile(r"(.*\[)(.*)(\].*)")
_MOST_BITS = 128  # of a value on the way: a mistake shall not fill the host's memory


def split_outside_strings(text: str, separator: str, nesting: bool = False) -> list[str]:
    """Split at a separator character, but not inside a string, nor (with nesting) inside brackets."""
    if separator not in text:
        return [text]
    parts, start, depth = [], 0, 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token == separator and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
        elif nesting and token in "([":
            depth += 1
        elif nesting and token in ")]":
            depth -= 1
    parts.append(text[start:])
    return parts


_BINARY: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@lru_cache(maxsize=4096)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def evaluate(expression: str, constants: Mapping[str, int]) -> int:
    """The value of a constant expression. Raises ValueError when it has none (an unknown name, a label, bad syntax)."""

    def value(node: ast.expr) -> int:
        result = part(node)
        if result.bit_length() > _MOST_BITS:
            raise ValueError(expression)
        return result

    def part(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) == 1:
            return ord(node.value)
        if isinstance(node, ast.Name) and node.id in constants:
            return constants[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.LShift) and right > _MOST_BITS:
                raise ValueError(expression)
            return _BINARY[type(node.op)](left, right)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return int(_BINARY[type(node.ops[0])](value(node.left), value(node.comparators[0])))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~value(node.operand)
        raise ValueError(expression)

    if _NUMBER.fullmatch(expression):
        return int(expression, 0)
    if any(name not in constants for name in _NAME.findall(expression)):
        raise ValueError(expression)
    try:
        return value(_parsed(expression.strip()))
    except (SyntaxError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(expression) from error


def _folded_sum(text: str, constants: Mapping[str, int]) -> str:
    """An address expression with its constant terms added up: with two of them Keystone may drop one silently."""
    if "+" not in text and "-" not in text:
        try:
            return hex(evaluate(text, constants))
        except ValueError:
            return text
    total, others, depth, term = 0, "", 0, ""
    for character in text + "+":
        depth += (character in "([") - (character in ")]")
        if character in "+-" and depth == 0 and term.strip("+- "):
            try:
                total += evaluate(term.strip().removeprefix("+"), constants)
            except ValueError:
                others += term.strip()
            term = ""
        term += character
    if not others:
        return hex(total) if total >= 0 else str(total)
    return others.removeprefix("+").strip() + (f" + {total:#x}" if total > 0 else f" - {-total:#x}" if total else "")


def fold(operands: str, constants: Mapping[str, int]) -> str:
    """The operands with each constant expression replaced by its value: Keystone refuses some, such as ~(1 << 3)."""

    def folded(text: str) -> str:
        try:
            value = evaluate(text, constants)
        except ValueError:
            return text
        return hex(value) if value >= 0 else str(value)

    parts = []
    for part in split_outside_strings(operands, ",", nesting=True):
        memory = _MEMORY.fullmatch(part)
        parts.append(memory[1] + _folded_sum(memory[2], constants) + memory[3] if memory else folded(part))
    return ", ".join(part.strip() for part in parts)
