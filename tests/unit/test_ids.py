"""Names for jobs: none comes twice, also not from threads side by side or in a forked process."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

from exesys.bus.ids import DRAWN, Ids


def test_all_differ_also_when_threads_draw_them_side_by_side() -> None:
    ids = Ids()
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda _: ids(), range(20 * DRAWN)))
    assert len(set(drawn)) == len(drawn)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in drawn)


def test_a_forked_process_draws_its_own() -> None:
    ids = Ids()
    ids()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, "\n".join(ids() for _ in range(DRAWN)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        others = told.read().split()
    os.waitpid(child, 0)
    assert len(others) == DRAWN
    assert not set(others) & {ids() for _ in range(DRAWN)}
