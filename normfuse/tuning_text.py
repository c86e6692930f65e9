"""What is said of a measurement: the description it is listed under, and the remark in the report."""

from collections.abc import Sequence

from normfuse.passes.lowering import NormSite, Operand
from normfuse.target import Target
from normfuse.tuning_cache import Record

_AROUND = {
    (False, False): "",
    (True, False): " behind a convolution",
    (False, True): " in front of a convolution",
    (True, True): " between convolutions",
}


def describe(site: NormSite, shape: tuple[int, ...], target: Target, around: tuple[bool, bool]) -> str:
    """What is measured, for people; `around`: whether a convolution stands in front, and behind."""
    found = site.standardize
    name = site.norm.name(found)
    if found.groups is not None:
        name += f" of {found.groups} groups"
    elif found.window is not None:
        name += f" of {found.size} channels"
    else:
        name += f" over {', '.join(str(axis) for axis in found.axes)}"
    affine = [_kind(letter, operand) for letter, operand in (("γ", site.scale), ("β", site.bias)) if operand]
    where = f"opset {site.weights.opset}, {target.provider}, {target.threads} thread{'s' * (target.threads > 1)}"
    return f"{' '.join([name, *affine])}{_AROUND[around]}; {_times(shape)} {site.dtype.name.lower()}; {where}"


def _kind(letter: str, operand: Operand) -> str:
    return letter if operand.is_constant else f"computed {letter}"


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def remark_on(record: Record, shape: tuple[int, ...], site: NormSite, around: tuple[bool, bool]) -> str:
    """What was measured, for the report."""
    timed = [form for form in record.forms if form.seconds is not None]
    own = next(form for form in timed if form.form == record.chosen)
    others = [form for form in timed if form is not own]
    sized = "" if all(isinstance(dim, int) for dim in site.dims) else f" at {_times(shape)}"
    forms = f"{len(timed)} forms measured{_AROUND[around]}{sized}"
    if not others:
        return f"no other form runs{sized}"
    allowed = [form for form in others if not form.problem]
    nearest = min(allowed or others, key=lambda form: form.seconds or 0.0)
    assert own.seconds is not None
    assert nearest.seconds is not None
    if not allowed or nearest.seconds >= own.seconds:
        text = f"fastest of {forms}: {_micro(own.seconds)}, next {_micro(nearest.seconds)} ({nearest.form})"
    else:
        text = (
            f"of {forms} none is clearly faster: {_micro(own.seconds)}, "
            f"best other {_micro(nearest.seconds)} ({nearest.form})"
        )
    refused = [form.form for form in timed if form.problem]
    return text + (f"; less accurate: {', '.join(refused)}" if refused else "")


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if seconds >= 1e-5 else f"{1e6 * seconds:.1f} µs"
