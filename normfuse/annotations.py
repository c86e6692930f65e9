"""Test cases as GitHub shows them: annotations of a workflow's run, and a table in the summary of its step.

    ::error file=…,title=…::message        https://docs.github.com/actions/reference/workflow-commands-for-github-actions

A runner reads such lines on stdout and stderr alike; they go to stderr, as stdout holds results. What failed or could
not be judged is an error, what was skipped is a warning.
"""

import os
from collections.abc import Mapping, Sequence

from normfuse.printable import printable
from normfuse.testcases import Case

_LEVELS = {"failed": "error", "error": "error", "skipped": "warning"}


def is_github(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a step of a workflow on GitHub."""
    return environment.get("GITHUB_ACTIONS") == "true"


def annotations(file: str, cases: Sequence[Case]) -> list[str]:
    """The workflow commands for the cases that did not pass.

    Args:
        file: what they are attached to: the path of the candidate.
        cases: the test cases.
    """
    return [
        f"::{_LEVELS[case.outcome]} file={_property(file)},title={_property(f'normfuse {case.kind}: {case.name}')}::"
        + _escaped(case.message or case.text)
        for case in cases
        if case.outcome in _LEVELS
    ]


def summary(title: str, cases: Sequence[Case]) -> str:
    """The cases as a table in Markdown.

    Args:
        title: the heading.
        cases: the test cases.
    """
    rows = [f"| {_cell(case.name)} | {case.kind} | {case.outcome} | {_cell(case.message)} |" for case in cases]
    return "\n".join([f"### {_cell(title)}", "", "| case | kind | outcome | why |", "|---|---|---|---|", *rows, "", ""])


def append_summary(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Appends to the summary of the step, where the runner has named a file for it.

    Args:
        text: Markdown.
        environment: where the runner says `GITHUB_STEP_SUMMARY`.

    Raises:
        OSError: the file cannot be written.
    """
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)


def _escaped(text: str) -> str:
    return printable(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """A text in one cell: on one line, and none of it Markdown or HTML."""
    line = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{mark}" if mark in "\\|`*_[]" else mark for mark in line)
