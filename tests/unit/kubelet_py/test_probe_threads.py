from __future__ import annotations

import threading

from kubelet_py.pods.probe_threads import KEPT, ProbeThreads

LONG = 30.0


def test_calls_that_hang_delay_no_other() -> None:
    threads, release = ProbeThreads(), threading.Event()
    hanging = [threading.Event() for _ in range(3 * KEPT)]

    def hang(begun: threading.Event) -> None:
        begun.set()
        release.wait(LONG)

    for begun in hanging:
        threads.run(lambda begun=begun: hang(begun))  # type: ignore[misc]
    done = threading.Event()
    threads.run(done.set)
    assert done.wait(LONG) and all(begun.wait(LONG) for begun in hanging)
    release.set()
    threads.stop()


def test_few_threads_serve_many_calls_and_end_when_told() -> None:
    threads, names, turn = ProbeThreads(), set[str](), threading.Semaphore(0)

    def call() -> None:
        names.add(f"{threading.get_ident()}")
        turn.release()

    before = threading.active_count()
    for _ in range(300):
        threads.run(call)
        assert turn.acquire(timeout=LONG)
    assert len(names) < 300
    threads.stop()
    for thread in [thread for thread in threading.enumerate() if thread.name == "probe"]:
        thread.join(LONG)
    assert threading.active_count() <= before
