"""Which names a pickle of weights may hold: classes that only carry data. None of them is ever looked up or called.

Training scripts put more than tensors into a checkpoint: paths, dates, settings, counters, versions, whole modules. The
reader turns all of it into descriptions and uses none, so that a name cannot do harm here. A file that names what could
do harm in the hands of another program is refused all the same, so that nobody passes it on: functions of Python's
library other than those below, functions of any package that are called and are no known constructor, and names that
reach into a function or class.
"""

import re
import sys

from audit.storage.tensors.plain_pickle import GETATTR, Name, Plain

_STANDARD: dict[str, frozenset[str]] = {
    "collections": frozenset({"OrderedDict", "defaultdict", "Counter", "deque"}),
    "argparse": frozenset({"Namespace"}),
    "types": frozenset({"SimpleNamespace"}),
    "functools": frozenset({"partial"}),
    "uuid": frozenset({"UUID", "SafeUUID"}),
    "decimal": frozenset({"Decimal"}),
    "fractions": frozenset({"Fraction"}),
    "time": frozenset({"struct_time"}),
    "array": frozenset({"array", "_array_reconstructor"}),
    "random": frozenset({"Random"}),
    "re": frozenset({"_compile"}),
    "_codecs": frozenset({"encode"}),
    "copyreg": frozenset({"_reconstructor", "__newobj__", "__newobj_ex__"}),
    "builtins": frozenset(
        {
            "object", "type", "int", "float", "complex", "bool", "str", "bytes", "bytearray", "list", "tuple", "dict",
            "set", "frozenset", "slice", "range", "NoneType", "Ellipsis", "NotImplemented",
            "unicode", "long", "xrange", "basestring",
        }
    ),
}  # fmt: skip
_OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}
_ALL_DATA = {"pathlib", "datetime", "zoneinfo", "typing", "enum", "ipaddress", "numbers", "dataclasses", "abc"}
_OLD_HARMFUL = {"commands", "popen2", "cPickle", "os2", "urllib2", "httplib", "dl"}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_CONSTRUCTORS = (
    re.compile(r"torch\._utils\._rebuild_\w+"),
    re.compile(r"torch\._tensor\._rebuild_from_type_v2"),
    re.compile(r"torch\.storage\._load_from_bytes"),
    re.compile(r"torch\.serialization\._get_layout"),
    re.compile(r"torch\.(device|dtype)"),
    re.compile(r"numpy\.(dtype|ndarray|[a-z]+\d+|bool_?|str_|bytes_|void|longdouble|clongdouble)"),
    re.compile(r"numpy\.(core|_core)\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)"),
    re.compile(r"numpy\.random\._pickle\.__\w+_ctor"),
    re.compile(r"(\w+\.)*persistence\._reconstruct_persistent_obj"),
)
"""Functions that are called to make data again: those of torch, numpy and the persistent objects of snapshots."""


def is_harmless(name: Name, called: bool) -> bool:
    """Tell whether a file of weights may hold the global `name`, which it calls or only refers to.

    A `getattr` that names a part of a class or object does not count as called: what it names is held to the same rules
    as if it had been named outright.
    """
    if name in GETATTR:
        return not called
    module, attribute = name
    if not _MODULE.fullmatch(module) or not _MODULE.fullmatch(attribute):
        return False
    module = _OLD_NAMES.get(module, module)
    package, last = module.split(".")[0], attribute.split(".")[-1]
    if package in sys.stdlib_module_names or package in _OLD_HARMFUL:
        return attribute in _STANDARD.get(module, ()) or (package in _ALL_DATA and "__" not in attribute)
    full = f"{module}.{attribute}"
    if any(pattern.fullmatch(full) for pattern in _CONSTRUCTORS):
        return True
    if "__" in attribute:
        return False
    return not called or last.lstrip("_")[:1].isupper()


def harmful(content: Plain) -> list[Name]:
    """Names in a pickle for which it is refused."""
    return [name for name in content.globals if not is_harmless(name, name in content.called)]
