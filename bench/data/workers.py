"""Processes that decode images, and what to say when they fail."""

import gc
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from bench.core.errors import UserError, WorkerDied, describe_error

T = TypeVar("T")

# What helps where processes that decode images fail, by what is said then. They hand on each batch as a file /torch_...
# in shared memory.
CURES = {
    "Too many open files|ancdata": "fewer --workers or a higher limit of open files (ulimit -n) help",
    "Bus error|/torch_|shared memory|No space left": "where shared memory is full, fewer --workers or a larger /dev/shm"
    " (docker run --shm-size) help",
    "ended with code|Cannot allocate|unavailable": "where memory is short, fewer --workers help",
}


def decoded(dataset: Dataset[T], workers: int, **settings: Any) -> Iterator[T]:
    """Yield the batches of a `DataLoader` with these settings; `workers` processes read them, 0: this one.

    Raises UserError of an image that cannot be read, and WorkerDied.
    """
    loader = DataLoader(dataset, num_workers=workers, worker_init_fn=_settle, **settings)
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "").startswith("torch."):  # of a loader that is not ours
        before = signal.SIG_DFL
    processes: Sequence[BaseProcess] = ()
    try:
        batches = iter(loader)
        processes = getattr(batches, "_workers", ())  # active_children() leaves out those that have ended already
        if threading.current_thread() is threading.main_thread():
            # Torch raises the death of a worker wherever this process happens to be, once for each child that ends,
            # even while the first is being dealt with. Without its handler, asking for the next images does.
            signal.signal(signal.SIGCHLD, before)
        yield from batches
    except UserError as error:  # of a worker, it comes with that process's traceback in its text
        raise UserError(str(error.args[0]).rpartition("UserError: ")[2].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        if workers and (died := _died(error, processes)):
            raise died from error
        raise


def _died(error: Exception, workers: Sequence[BaseProcess]) -> WorkerDied | None:
    """Return how a data-loading worker failed and the fix, or None if the error is not a worker's."""
    ended = wait([worker.sentinel for worker in workers], timeout=1)  # its last words may come before its end
    for worker in workers:
        if worker.sentinel in ended:  # a process closes its files a moment before it has an exit code
            worker.join(1)
    code = next((worker.exitcode for worker in workers if worker.exitcode), None)
    if code:
        said = f"ended with code {code}{f' ({signal.strsignal(-code)})' if code < 0 else ''}"
    else:
        said = f"failed: {describe_error(error)}"
    for sign, cure in CURES.items():
        if re.search(sign, said):
            return WorkerDied(f"a process that decodes images {said}; {cure}")
    return None


def _settle(worker: int) -> None:
    """Let a forked worker share its parent's memory, and ignore signals to stop: its parent ends it after its step."""
    gc.freeze()  # the garbage collector would write to all shared pages, and so copy them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process when its parent terminates it. SIGTERM from others, such as Slurm, is meant for the parent."""
    while True:
        if signal.sigwaitinfo([signal.SIGTERM]).si_pid == parent:
            os._exit(0)
