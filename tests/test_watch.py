"""What ends the process that works is told by the one that waits."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched on Linux")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Whoever runs the tests in the background of a shell ignores interrupts, which children inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


HEAD = "import os, signal, sys, time; from normfuse.watch import watched; watched(); "


def run(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_exit_status_and_the_streams_are_those_of_the_work() -> None:
    process = run("print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert process.communicate(timeout=60) == ("out\n", "err\n")
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_is_one_line_and_a_provider_that_failed(number: signal.Signals) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
    process = run(f"{code}os.kill(os.getpid(), {int(number)}); time.sleep(60)")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert out == ""
    assert err.count("\n") == 1
    assert number.name in err


def test_who_has_no_memory_left_is_told_so() -> None:
    process = run("os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)")
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert out == ""
    assert err == "Error: the process was killed, most likely for want of memory; no file is half-written\n"


def test_other_signals_end_both() -> None:
    process = run("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_on_to_the_work(number: signal.Signals) -> None:
    code = f"signal.signal({int(number)}, lambda *_: sys.exit(7)); print('ready', flush=True); time.sleep(60)"
    process = run(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 7


def test_a_kill_ends_the_work_too() -> None:
    process = run("print(os.getpid(), flush=True); time.sleep(60)")
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    assert worker != process.pid
    process.kill()
    process.communicate(timeout=60)  # the streams are closed when both have gone
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{worker}/stat") and time.monotonic() < end:
        with open(f"/proc/{worker}/stat", encoding="ascii") as stat:
            if stat.read().rsplit(")", 1)[1].split()[0] == "Z":
                break  # nobody has asked how it ended
        time.sleep(0.01)
    else:
        assert not os.path.exists(f"/proc/{worker}/stat")


def test_the_command_line_is_watched() -> None:
    code = (
        "import os, signal, resource, normfuse.cli as cli; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); "
        "cli.main.add_command(cli.click.Command('crash', callback=lambda: os.kill(os.getpid(), signal.SIGABRT))); "
        "cli.main(['crash'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr.startswith("Error: SIGABRT")


STARTS = "import os, signal, sys; from normfuse.interrupts import Interrupts, end_at_once; "
AT_ONCE = "os.kill(os.getpid(), signal.SIGINT)"
VERB = (
    "import normfuse.cli as cli; from normfuse.verb import Verb\n"
    "def work():\n    {work}\n"
    "cli.main.add_command(Verb('work', callback=lambda **_: work()))\n"
    "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    "cli.main(['work'])"
)


@pytest.mark.parametrize(
    "code",
    [
        f"{STARTS}end_at_once(); {AT_ONCE}",
        STARTS + VERB.format(work=AT_ONCE),
        STARTS + VERB.format(work=f"exec({AT_ONCE!r})"),
        STARTS
        + VERB.format(
            work=f"\n    try:\n        {AT_ONCE}\n    except KeyboardInterrupt as e: raise ImportError from e"
        ),
        STARTS + VERB.format(work=f"\n    try:\n        {AT_ONCE}\n    finally: {AT_ONCE}"),
    ],
    ids=["starting", "working", "within exec", "made another error", "twice"],
)
def test_an_interrupt_is_one_line_and_130(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    code = f"{STARTS}signal.signal(signal.SIGINT, signal.SIG_IGN); end_at_once()\nwith Interrupts(): {AT_ONCE}"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_interrupt_that_something_swallowed_can_be_repeated() -> None:
    code = (
        f"{STARTS}import time; end_at_once()\n"
        "with Interrupts():\n"
        f"    for pause in (1.1, 0):\n        try:\n            {AT_ONCE}\n"
        "        except KeyboardInterrupt: print('came'); time.sleep(pause)\n"
        f"{AT_ONCE}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "came\ncame\n", "")
