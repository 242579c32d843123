"""The dashboard's scripts by themselves: what they reckon, in the browser that runs them."""

import itertools
import random

import pytest
from pictures import script

WIDTH, HEIGHT = 168, 38  # of a box


@pytest.fixture(scope="module")
def page(system, chromium):
    page = chromium.new_page()
    page.goto(system.config.web_url)
    yield page
    page.close()


def parsed(page, pieces):
    return page.evaluate(
        f"""async (pieces) => {{
          const Parser = await {script("sse", "Parser")};
          const found = [];
          const parser = new Parser((message) => found.push(message));
          pieces.forEach((piece) => parser.feed(piece));
          return [found, parser.lastId];
        }}""",
        pieces,
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_read_however_they_are_cut(page, end):
    messages = ('id: 7\nevent: step\ndata: {"a":\ndata:1}', ": hello", "id: 8", "data:  x\nnothing", "event: lost", "")
    whole = "".join(f"{message}\n\n" for message in messages).replace("\n", end)
    expected = [
        [{"id": "7", "event": "step", "data": '{"a":\n1}'}, {"id": "8", "event": "message", "data": " x"}],
        "8",
    ]
    assert parsed(page, [whole]) == expected
    assert parsed(page, list(whole)) == expected
    for _ in range(20):
        cuts = sorted(random.sample(range(len(whole)), 3))
        assert parsed(page, [whole[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]) == expected


def test_what_has_not_come_whole_is_not_told(page):
    assert parsed(page, ["data: 1\n"]) == [[], ""]


def laid_out(page, steps, most=60):
    return page.evaluate(f"([steps, most]) => {script('layout', 'layout(steps, most)')}", [steps, most])


def some_graph(dice, count):
    """Steps, each fed by some before it; those that feed none go to the end."""
    feeds = [sorted({dice.randrange(place) for _ in range(dice.randint(0, 2))}) for place in range(count) if place]
    to = {place: [] for place in range(count)}
    for place, feeders in enumerate(feeds, 1):
        for feeder in feeders:
            to[feeder].append(f"s{place}")
    return [{"from": f"s{place}", "to": names or ["end_job"], "cmd": "echo"} for place, names in to.items()]


@pytest.mark.parametrize("seed", range(8))
def test_boxes_never_overlap_and_edges_lead_to_the_right(page, seed):
    dice = random.Random(seed)
    steps = some_graph(dice, dice.randint(1, 50))
    told = laid_out(page, steps)
    boxes = told["nodes"]
    assert sorted(place for box in boxes for place in box["steps"]) == list(range(len(steps)))
    for number, one in enumerate(boxes):
        assert 0 <= one["x"] <= told["width"] - WIDTH
        assert 0 <= one["y"] <= told["height"] - HEIGHT
        for other in boxes[:number]:
            assert abs(one["x"] - other["x"]) >= WIDTH or abs(one["y"] - other["y"]) >= HEIGHT
    assert len(told["edges"]) == sum(name != "end_job" for step in steps for name in step["to"])
    for edge in told["edges"]:
        way = [boxes[edge["from"]], *edge["through"], boxes[edge["to"]]]
        for before, after in itertools.pairwise(way):
            assert before["x"] + WIDTH < after["x"]
        for point in edge["through"]:
            inside = [box for box in boxes if box["x"] == point["x"] and 0 < point["y"] + 2 - box["y"] < HEIGHT]
            assert inside == [], "an edge passes between boxes"


def test_many_steps_that_are_alike_are_one_box(page):
    parts = [{"from": f"p{number}", "to": "end", "cmd": f"kind{number % 2}"} for number in range(300)]
    root = {"from": "root", "to": [step["from"] for step in parts], "cmd": "echo"}
    told = laid_out(page, [root, *parts, {"from": "end", "to": "end_job", "cmd": "echo"}])
    assert sorted(len(box["steps"]) for box in told["nodes"]) == [1, 1, 150, 150]
    # Of a chain nothing is alike: one box for each command of a layer is all that can be done.
    chain = [{"from": f"c{number}", "to": f"c{number + 1}", "cmd": "echo"} for number in range(100)]
    assert len(laid_out(page, chain)["nodes"]) == 100


def test_events_make_rows_as_lists_do(page):
    """A row that came by events is that of GET /jobs; what comes late changes nothing."""
    told = page.evaluate(
        f"""async () => {{
          const take = await {script("jobrows", "take")};
          const rowOf = await {script("jobrows", "rowOf")};
          const event = (state, attempt, to = "B") =>
            ({{ job_id: "j", from: "A", to, cmd: "echo", state, attempt, at_ms: 1000 + attempt }});
          let row = take(undefined, event("start", 0));
          const states = [row.state];
          const told = [["processing", 1], ["start", 1], ["processing", 2], ["error", 1], ["data_available", 2]];
          for (const [state, attempt] of told) {{
            row = take(row, event(state, attempt));
            states.push(row.state);
          }}
          row = take(row, event("error", 1, "C"));
          const step = (to, state) => ({{ from: "A", to, cmd: "echo", state, attempt: 1, accepted_ms: 5 }});
          const listed = rowOf({{ job_id: "j", steps: [step(["B", "C"], "data_available"), step("D", "standby")] }});
          return [states, row.state, row.more, listed.state, listed.done, listed.accepted_ms];
        }}"""
    )
    states = ["start", "processing", "start", "processing", "processing", "data_available"]
    assert told == [states, "error", 1, "standby", 1, 5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.0042, "4.2 ms"),
        (0.42, "420 ms"),
        (4.2, "4.2 s"),
        (42, "42 s"),
        (4200, "70 min"),
    ],
)
def test_durations_are_short(page, seconds, text):
    assert page.evaluate(f"(value) => {script('format', 'seconds(value)')}", seconds) == text
