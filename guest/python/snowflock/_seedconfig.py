"""The configuration file of a seed (manual, section 4: "really just a python snippet"), read without running it: assignments of
strings, and of integers with arithmetic.
"""

import ast
import operator
import os

from ._errors import SnowflockError

_FILE_MAX = 1 << 20
_INTEGER_MAX = 2**53 - 1
_KEYS = {"disk_image": str, "vcpus": int, "memory": int}
_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.BitXor: operator.xor,
    ast.Pow: operator.pow,
}
_UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert}


def read_seed_config(path):
    """The shape of a VM, as the control API takes it. Raises SnowflockError 'bad-config' with the place of what is wrong."""
    values = {}
    for statement in _parse(path).body:
        name, value = _assignment(path, statement)
        if name in values:
            raise _wrong(path, statement, "%s is set twice" % name)
        values[name] = value
    missing = [key for key in _KEYS if key not in values]
    if missing:
        raise SnowflockError("bad-config", "%s: %s is missing" % (path, ", ".join(missing)))
    image = values["disk_image"]
    if "/" in image:
        image = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), image))
    return {"diskImage": image, "vcpus": values["vcpus"], "memoryMib": values["memory"]}


def _parse(path):
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_MAX + 1)
        if len(text) > _FILE_MAX:
            raise ValueError("it has more than %d characters" % _FILE_MAX)
        return ast.parse(text, filename=str(path))
    except SyntaxError as error:
        raise SnowflockError("bad-config", "%s:%s: %s" % (path, error.lineno, error.msg)) from error
    except (OSError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise SnowflockError("bad-config", "cannot read configuration file %s: %s" % (path, error)) from error


def _assignment(path, statement):
    wrong = not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name)
    if wrong:
        raise _wrong(path, statement, "only KEY = VALUE is allowed here")
    name = statement.targets[0].id
    if name not in _KEYS:
        raise _wrong(path, statement, "there is no option %s; there are %s" % (name, ", ".join(_KEYS)))
    value = _value(path, statement.value)
    if not isinstance(value, _KEYS[name]):
        raise _wrong(path, statement, "%s must be %s" % (name, "a string" if _KEYS[name] is str else "an integer"))
    return name, value


def _value(path, node):
    if isinstance(node, ast.Constant) and type(node.value) in (str, int):
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _checked(path, node, _UNARY[type(node.op)], _value(path, node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _checked(path, node, _BINARY[type(node.op)], _value(path, node.left), _value(path, node.right))
    raise _wrong(path, node, "only strings, integers and their arithmetic are allowed here")


def _checked(path, node, compute, *operands):
    if any(type(each) is not int for each in operands):
        raise _wrong(path, node, "arithmetic works on integers only")
    if compute in (operator.pow, operator.lshift) and not 0 <= operands[1] <= 53:
        raise _wrong(path, node, "the result is too large")
    try:
        result = compute(*operands)
    except (ArithmeticError, ValueError) as error:
        raise _wrong(path, node, str(error)) from error
    if abs(result) > _INTEGER_MAX:
        raise _wrong(path, node, "the result is too large")
    return result


def _wrong(path, node, problem):
    return SnowflockError("bad-config", "%s:%d: %s" % (path, node.lineno, problem))
