"""A process that has imported the harness and forks others that run its command line, so that none has to import torch.

Reads a JSON object a line: {"run": [words], "out": file, "die_at": number, "within": folder} answers with the number of
a process, the leader of a group of its own; {"wait": number} with its exit code, -9 when it was killed.

`die_at`: the process kills itself just before that operation, of all by which files below the folder `within` are
opened for writing, renamed, removed, touched. With 0 it lives, and writes to `<out>.count` how many there were.
`environment`: variables that it has beyond its parent's.
`full`: once a file whose path has that text is written the `number`th time, no file may be longer than 1,000 bytes.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.utime", "os.link", "os.chmod"}
count = 0


def watch(die_at: int, within: str) -> None:
    """Count operations on files below `within` and die at one of them."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        global count
        if event not in OPERATIONS or not any(isinstance(one, str | Path) and within in str(one) for one in given[:2]):
            return
        if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fill(text: str, number: int) -> None:
    """Let no file be longer than 1,000 bytes once one whose path has the text is written that time."""
    opened = tempfile.NamedTemporaryFile
    seen = 0

    def opens(*given: Any, **more: Any) -> Any:
        nonlocal seen
        seen += text in str(Path(more["dir"], more["prefix"]))
        if seen == number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return opened(*given, **more)

    tempfile.NamedTemporaryFile = opens  # type: ignore[assignment]


def run(order: dict[str, Any]) -> int:
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    os.environ.update(order.get("environment", {}))
    sys.argv = ["bench", *order["run"]]
    if "die_at" in order:
        watch(order["die_at"], order["within"])
    if "full" in order:
        fill(order["full"], order["number"])
    code = 0
    try:
        main()
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    if order.get("die_at") == 0:
        Path(order["out"] + ".count").write_text(str(count))
    return code


if __name__ == "__main__":
    from bench.cli.main import main
    from bench.core.environment import tune_process

    tune_process()
    os.fsync = lambda file: None  # as in conftest.py: a kill loses nothing that was written
    import priors.catalogue  # noqa: F401
    from methods import methods

    assert "byol" in methods, "all of them are imported"
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif answer := os.fork():
            pass
        else:
            os.setsid()
            os._exit(run(order))
        print(answer, flush=True)
