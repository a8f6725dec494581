"""Loader workers leave signals to the training, and end when it ends, however that happens."""

import os
import signal
import threading
import time
from typing import Any, Callable, Optional

# Seconds after which a worker has noticed that the training process is gone.
_POLL_SECONDS = 0.5


class WorkerGuard:
    """A ``worker_init_fn`` of PyTorch's ``DataLoader``.

    A signal to the process group (Ctrl-C, batch systems) also reaches the workers. They ignore it:
    the training decides, and needs them until it has finished its step. SIGTERM from the training
    process itself ends a worker.

    A worker whose training was killed would wait for ever to put its batch into a full pipe, with
    nobody at the other end; a thread watches the parent and ends the worker.

    Args:
        init: another ``worker_init_fn``, called first.
    """

    def __init__(self, init: Optional[Callable[[int], Any]] = None):
        self.init = init
        self.parent = os.getpid()

    def __call__(self, worker_id: int) -> None:
        """Called in the worker with its number."""
        if self.init is not None:
            self.init(worker_id)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if hasattr(signal, "sigtimedwait"):  # Linux
            # Threads that begin later inherit this, so only the watching one gets the signal.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End the process when the parent asks for it or is gone."""
        while os.getppid() == self.parent:
            if hasattr(signal, "sigtimedwait"):
                caught = signal.sigtimedwait({signal.SIGTERM}, _POLL_SECONDS)
                if caught is not None and caught.si_pid == self.parent:
                    os._exit(0)
            else:
                time.sleep(_POLL_SECONDS)
        # Not sys.exit, which would wait for the full pipe.
        os._exit(1)
