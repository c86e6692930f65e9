"""Test cases as JUnit XML, in the dialect of Jenkins that pytest calls xunit2.

Each suite carries its counts, time and timestamp, each case its classname, name and time; it holds a failure, an error
or a skipped with message and text, or its figures as system-out.
"""

import datetime
import os
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from normfuse.storage import write
from normfuse.testcases import Case

_TAGS = {"failed": "failure", "error": "error", "skipped": "skipped"}

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped: control characters, halves of surrogate pairs, U+FFFE and U+FFFF."""


def save_junit(path: str, suite: str, cases: Sequence[Case]) -> None:
    """Writes test cases to a file, whole or not at all.

    Args:
        path: the file, `.xml`.
        suite: what the test suite is called.
        cases: its test cases.

    Raises:
        NormfuseError: it cannot be written.
    """
    content = to_xml(suite, cases, datetime.datetime.now(datetime.UTC))
    write([(os.fspath(path), lambda file: file.write(content))])


def to_xml(suite: str, cases: Sequence[Case], when: datetime.datetime) -> bytes:
    """Test cases as an XML document in UTF-8.

    Args:
        suite: what the test suite is called.
        cases: its test cases.
        when: the time that it carries.
    """
    seconds = sum(case.seconds for case in cases)
    root = ElementTree.Element("testsuites")
    counts = {
        name: str(sum(case.outcome == outcome for case in cases))
        for name, outcome in (("failures", "failed"), ("errors", "error"), ("skipped", "skipped"))
    }
    head = {"name": _legal(suite), "tests": str(len(cases)), **counts}
    times = {"time": f"{seconds:.3f}", "timestamp": when.isoformat(timespec="seconds")}
    parent = ElementTree.SubElement(root, "testsuite", {**head, **times})
    for case in cases:
        attributes = {"classname": f"normfuse.{case.kind}", "name": _legal(case.name), "time": f"{case.seconds:.3f}"}
        element = ElementTree.SubElement(parent, "testcase", attributes)
        if case.outcome in _TAGS:
            child = ElementTree.SubElement(element, _TAGS[case.outcome], {"message": _legal(case.message)})
        else:
            child = ElementTree.SubElement(element, "system-out")
        child.text = _legal(case.text)
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _legal(text: str) -> str:
    """A text in which what XML cannot hold is written as Python escapes it."""
    return _ILLEGAL.sub(lambda found: ascii(found.group())[1:-1], text)
