"""How `verify` tells other programs what it found: `--junit` and `--annotations`, also where it ends in an error."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from normfuse.errors import NormfuseError
from normfuse.testcases import Case, of_error
from normfuse.verb import echo

JUNIT = click.option("--junit", type=click.Path(), metavar="FILE.xml", help="Write the verdicts as JUnit XML, too.")
ANNOTATIONS = click.option(
    "--annotations/--no-annotations",
    default=None,
    help="Annotate a workflow's run on GitHub. [default: where GITHUB_ACTIONS is true]",
)


@contextmanager
def told(
    reference: str, candidate: str, junit: str | None, annotate: bool | None, read: Sequence[str]
) -> Iterator[list[Case]]:
    """Gives a list for the cases of a verification, and tells of them when it ends; of its error, too.

    Args:
        reference: path of the model as it was.
        candidate: path of the model as it became.
        junit: the file for JUnit XML, if any.
        annotate: whether to annotate, or None where the environment decides.
        read: paths of files that are read, which must not be written.

    Raises:
        NormfuseError: the file cannot be written.
    """
    from normfuse.annotations import is_github
    from normfuse.storage import validate_place

    if junit is not None:
        if not junit.lower().endswith(".xml"):
            raise NormfuseError(f"--junit {junit}: name a file that ends in .xml")
        validate_place(junit)
        for path in (reference, candidate, *read):
            if os.path.realpath(path) == os.path.realpath(junit):
                raise NormfuseError(f"--junit {junit} would replace {path}, which is read; name another file")
    if annotate is None:
        annotate = is_github()
    cases: list[Case] = []
    start = time.perf_counter()
    try:
        yield cases
    except Exception as error:
        cases.append(of_error(error, max(0.0, time.perf_counter() - start - sum(case.seconds for case in cases))))
        try:
            _tell(f"{reference} → {candidate}", candidate, cases, junit, annotate)
        except NormfuseError as other:
            echo(f"Error: {other}", err=True)
        raise
    _tell(f"{reference} → {candidate}", candidate, cases, junit, annotate)


def _tell(title: str, candidate: str, cases: Sequence[Case], junit: str | None, annotate: bool) -> None:
    from normfuse.annotations import annotations, append_summary, summary

    if annotate:
        for line in annotations(candidate, cases):
            echo(line, err=True)
        try:
            append_summary(summary(f"normfuse verify {title}", cases))
        except OSError as error:
            echo(f"the summary of the step cannot be written: {error.strerror or error}", err=True)
    if junit is not None:
        from normfuse.junit import save_junit

        save_junit(junit, f"normfuse verify {title}", cases)
