"""A picture of each page, light, dark and on a phone.

    EXESYS_PICTURES=docs/pictures bin/test.sh tests/browser/test_pictures.py

makes those of the documents anew; without that variable they go to
EXESYS_ARTEFACTS, and without that nowhere.
"""

import os
import threading
from pathlib import Path

import pytest
from harness import until
from pictures import script, small

from exesys import JobError, Workflow

MOST_BYTES = 80_000
SHOWN_S = 25  # so many seconds of figures are waited for, so that there is something in the plots
PLACES = {
    "jobs": "#/jobs",
    "job": "#/job/nightly-report-2026-11-29",
    "failed-job": "#/job/import-4711",
    "send": "#/send?cmd=index_directory",
    "failed": "#/dead",
    "queues": "#/queues",
    "workers": "#/workers",
    "runners": "#/runners",
    "timers": "#/timers",
    "servers": "#/apps",
    "help": "#/help",
    "overview": "#/",
}
DARK = ("job", "overview")
PHONE = ("jobs", "job", "overview")
FIGURES = script("live", "figures().length")


@pytest.fixture(scope="module")
def busy(system, client):
    """Some life for the pictures: jobs of each state, a workflow half way, a paused queue, runners."""
    flow = Workflow()
    split = flow.step("echo", {"path": "reports", "files": 5}, name="split")
    parts = [flow.step("stage.act", {"run": "picture", "parts": 4}, name="clean")]
    parts += [flow.step("echo", after=split, name=name) for name in ("parse", "index", "thumbnails")]
    merged = flow.step("echo", after=parts, name="merge")
    flow.step("echo", after=merged, name="publish")
    flow.step("echo", after=merged, name="notify")
    client.workflow(flow, job_id="nightly-report-2026-11-29")
    for number in range(4711, 4714):
        with pytest.raises(JobError):
            client.run("stage.stumble", {"run": f"import of file {number}"}, job_id=f"import-{number}", timeout=10)
    client.submit("stage.act", {"run": "video", "parts": 3}, job_id="video-transcode-7")
    with system.redis(1) as data:
        data.rpush("stage:picture", "read", "checked")
        data.rpush("stage:video", "first pass", "second pass")
    for handle in client.submit_many("echo", range(40), queue="mail", priority=3):
        handle.accepted(10)
    client.tune("queue", "merge", "mail", {"rate": "100/m", "paused": True}, timeout=10)
    for uuid in ("router", "web"):
        client.start_runner("exesys_test.ticks", 1, type="ticks", uuid=uuid)
    stop = threading.Event()

    def load():
        number = 0
        while not stop.wait(0.05):
            number += 1
            client.submit_many("exesys_test.spin", [0.001] * (5 + number % 7))
            if number % 40 == 0:
                client.submit("fail", "now and then")

    loader = threading.Thread(target=load)
    loader.start()
    yield
    stop.set()
    loader.join()
    with system.redis(1) as data:
        data.rpush("stage:picture", "done", "done")
        data.rpush("stage:video", "done")


@pytest.fixture(scope="module")
def album():
    """Where the pictures are kept, None when nobody wants them."""
    named = os.environ.get("EXESYS_PICTURES") or os.environ.get("EXESYS_ARTEFACTS")
    if not named:
        return None
    path = Path(named)
    path.mkdir(parents=True, exist_ok=True)
    return path


class Album:
    """Pictures of the pages as one profile of the browser shows them; its plots fill meanwhile."""

    def __init__(self, watched, system, path, suffix=""):
        self._watched = watched
        self._system = system
        self._path = path
        self._suffix = suffix
        self._overview = watched.open(system)
        self._blank = watched.context.new_page()
        self.sizes = {}

    def take(self, *names):
        for name in names:
            page = self._overview if name == "overview" else self._watched.open(self._system, PLACES[name])
            page.locator("main :is(tbody tr:not(.spacer), .card):visible").first.wait_for()
            if name == "overview":
                shown = SHOWN_S if self._path else 2
                until(lambda page=page, shown=shown: page.evaluate(FIGURES) >= shown, "there are figures", every_s=0.5)
            if name == "send":
                page.get_by_label("Data, as JSON").fill('{\n  "path": "docs",\n  "glob": "*.md"\n}')
                page.get_by_text("Options", exact=True).click()
            picture = small(self._blank, page.screenshot(animations="disabled"))
            if self._path:
                (self._path / f"dashboard-{name}{self._suffix}.png").write_bytes(picture)
            self.sizes[name + self._suffix] = len(picture)
            page.close()


def test_each_page_is_pictured(system, busy, album, watch):
    phone = watch(viewport={"width": 360, "height": 740}, device_scale_factor=1.5)
    albums = [
        Album(watch(), system, album),
        Album(watch(color_scheme="dark"), system, album, "-dark"),
        Album(phone, system, album, "-phone"),
    ]
    for each, names in zip(albums, (PLACES, DARK, PHONE), strict=True):
        each.take(*names)
        assert all(2_000 < size <= MOST_BYTES for size in each.sizes.values()), each.sizes
