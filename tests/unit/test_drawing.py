"""Drawings of a job's steps, letter by letter, and the reasons why they wait."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.graphs import graphs

from exesys import drawing, lines
from exesys.command import END
from exesys.drawing import Node
from exesys.states import State
from exesys.workflow import Graph

STATES = {sign: state for state, sign in drawing.SIGNS.items()}


def nodes(drawn: str) -> list[Node]:
    """Read steps written like `✓A>B,C`; the command is the name in small letters."""
    found = []
    for word in drawn.split():
        from_, _, to = word[1:].partition(">")
        attempt = int(word[0] in "✓●✗")
        found.append(Node(from_, tuple(to.replace("END", END).split(",")), from_.lower(), STATES[word[0]], attempt))
    return found


def picture(*states: State) -> list[Node]:
    """The picture of the seed: A={B}, B={C}, C={D}, C={E}, D={end_job}, E={end_job}."""
    edges = [("A", "B", "cmd0"), ("B", "C", "cmd1"), ("C", "D", "cmd2"), ("C", "E", "cmd2")]
    edges += [("D", END, "cmd3"), ("E", END, "cmd3")]
    attempts = {State.data_available: 1, State.processing: 2, State.error: 3}
    return [
        Node(from_, (to,), cmd, state, attempts.get(state, 0))
        for (from_, to, cmd), state in zip(edges, states, strict=True)
    ]


UNDER_WAY = picture(State.data_available, State.processing, State.standby, State.standby, State.standby, State.standby)


def plain(text: str) -> str:
    """Leave out the state's word, which is tested once, and the blanks at the ends."""
    return "\n".join(re.sub(r"  \S+ +[a-z_]+$", "", line).rstrip() for line in text.splitlines())


# --- text -----------------------------------------------------------------------


def test_the_picture() -> None:
    assert drawing.text(UNDER_WAY) == (
        "✓    A            cmd0  data_available\n"
        "●    B            cmd1  processing, attempt 2\n"
        "├─·  C → D        cmd2  standby\n"
        "│ ·  D → end_job  cmd3  standby\n"
        "╰─·  C → E        cmd2  standby\n"
        "  ·  E → end_job  cmd3  standby"
    )


def test_every_state_has_its_sign_and_word() -> None:
    states = [State.data_available, State.data_available, State.error, State.start, State.error, State.standby]
    drawn = drawing.text(picture(*states))
    for sign, word in (("✓", "data_available"), ("✗", "error, attempt 3"), ("○", "start"), ("·", "standby")):
        assert any(sign in line and line.endswith(f"  {word}") for line in drawn.splitlines())
    assert len(set(drawing.SIGNS.values())) == len(State)


DRAWINGS = {
    "one": ("○a>END", "○  a → end_job"),
    "a chain": (
        "✓a>b ●b>c ·c>END",
        """
✓  a
●  b
·  c → end_job""",
    ),
    "a diamond": (
        "✓a>b,c ●b>d ○c>d ·d>END",
        """
✓      a
├─●─╮  b
╰─○─┤  c
·───╯  d → end_job""",
    ),
    "a fan-out, a fan-in, and again": (
        "✓a>p,q,r ✓p>m ✓q>m ✓r>m ●m>s,t ·s>z ·t>z ·z>END",
        """
✓      a
├─✓─╮  p
├─✓─┤  q
╰─✓─┤  r
●───╯  m
├─·─╮  s
╰─·─┤  t
·───╯  z → end_job""",
    ),
    "chains side by side": (
        "✓s>a1,a2 ✓a1>b1 ●b1>m ✓a2>b2 ·b2>m ·m>END",
        """
✓      s
├─✓    a1
│ ●─╮  b1
╰─✓ │  a2
  ·─┤  b2
·───╯  m → end_job""",
    ),
    "several roots, one of which does more": (
        "✓a>m ✓b>m ○c>m,x ·m>END ·x>END",
        """
╭─✓─╮  a
├─✓─┤  b
╰─○─┤  c
·─│─╯  m → end_job
  ·    x → end_job""",
    ),
    "several on both sides": (
        "✓a>m ○b>m ·m>x ·m>y ·x>END ·y>END",
        """
╭─✓─╮    a
╰─○─┤    b
    ├─·  m → x
    │ ·  x → end_job
    ╰─·  m → y
      ·  y → end_job""",
    ),
    "lines behind lines": (
        "✓a>x ✓a>y ✓b>x ○b>y ·x>END ·y>END",
        """
╭─✓─╮    a → x
├─✓─│─╮  a → y
├─✓─┤ │  b → x
│ ·─╯ │  x → end_job
╰─○───┤  b → y
·─────╯  y → end_job""",
    ),
    "a line to the left has its own row": (
        "✓s>a,b ✓a>c,m ✓c>END ●b>d ·d>e,f ·e>END ·f>m ·m>END",
        """
✓        s
├─✓─╮    a
│ ✓ │    c → end_job
╰─● │    b
  · │    d
  ├─│─·  e → end_job
  ╰─│─·  f
    ├─╯
·───╯    m → end_job""",
    ),
    "work as in a mosaic": (
        "✓p1>d12,d13,b1 ✓p2>d12,d23,b2 ✓p3>d13,d23,b3 ✓d12>c ✓d13>c ✓d23>c ✓c>g ●g>b1,b2,b3"
        " ·b1>add ·b2>add ·b3>add ·add>END",
        """
╭─✓─┬─┬─╮        p1
├─✓─┼─│─│─┬─╮    p2
│   ✓─│─│─│─│─╮  d12
╰─✓─┬─┼─│─┤ │ │  p3
    │ ✓─│─│─│─┤  d13
    │   │ ✓─│─┤  d23
✓───│───│───│─╯  c
●───┼───┼───┤    g
    │   ·─╮ │    b1
    │     │ ·    b2
    │     ├─╯
    ·─────┤      b3
·─────────╯      add → end_job""",
    ),
    "the last of several stays on their line where there is no room beside it": (
        "✓s>a,b,m ✓a>m ●b>c ·c>m ·m>END",
        """
✓─╮    s
├─│─✓  a
│ ├─╯
● │    b
·─┤    c
·─╯    m → end_job""",
    ),
    "two circles are not drawn as one": ("·a>b ·b>a ·c>d ·d>c", "·  a\n·  b\n\n·  c\n·  d"),
    "a circle": ("·a>b ·b>a,c ·c>END", "·    a\n·    b\n╰─·  c → end_job"),
    "steps that lead nowhere yet": (
        "✓a>b,z ·b>END ·q>r",
        """
╭─✓  a → b, z
│ ·  b → end_job
╰─·  q → r""",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_shapes(name: str) -> None:
    written, drawn = DRAWINGS[name]
    assert plain(drawing.text(nodes(written))) == drawn.strip("\n")


def test_a_wide_fan_out_is_narrow() -> None:
    parts = [f"p{n}" for n in range(150)]
    steps = [Node("s", tuple(parts), "split", State.data_available, 1)]
    steps += [Node(part, ("m",), "index", State.processing, 1) for part in parts]
    steps += [Node("m", (END,), "merge", State.standby)]
    drawn = drawing.text(steps).splitlines()
    assert drawn[1] == "├─●─╮  p0           index  processing"
    assert drawn[-2] == "╰─●─┤  p149         index  processing"
    assert drawn[-1] == "·───╯  m → end_job  merge  standby"


def read(graph: Graph) -> set[tuple[int, int]]:
    """Follow the lines of a drawing from each step, as an eye does, and return the edges seen.

    A place is (row, column, way): the line comes there from above (d), or goes left or right there (l, r).
    """
    rows = list(lines.Lines(graph).rows())

    def at(y: int, x: int) -> str:
        return rows[y][1][x] if y < len(rows) and 0 <= x < len(rows[y][1]) else " "

    def onward(y: int, x: int, way: str) -> Iterator[tuple[int, int, str]]:
        char, row = at(y, x), rows[y][1] if y < len(rows) else ""
        here = row.find("@")  # -1 between steps
        if way == "d":
            if char in "│├┤┼":
                yield y + 1, x, "d"
            if char in "├╰╭" and x < here:
                yield y, x + 1, "r"
            if char == "╯" if here >= 0 else char in "╯┤" and at(y, x - 1) == "─":
                yield y, x - 1, "l"
        else:
            if char in ("┼┬┤╮" if way == "r" else "┼├"):
                yield y + 1, x, "d"
            if char in "─│┼┬":
                yield y, x + (1 if way == "r" else -1), way

    seen = set()
    for y, (number, row) in enumerate(rows):
        if number is None:
            continue
        x = row.index("@")
        left = [(y, x + 1, "r")] if at(y, x + 1) == "─" and "╯" not in row[x:] else []
        below = rows[y + 1][1] if y + 1 < len(rows) else ""
        if at(y + 1, x) != "@" or (at(y + 1, x - 1) != "─" and "╯" not in below[x:]):
            left.append((y + 1, x, "d"))  # below is a line, or a step that nothing leads to from a side
        while left:
            y2, x2, way = left.pop()
            if at(y2, x2) == "@":
                seen.add((number, rows[y2][0]))
            else:
                left += onward(y2, x2, way)
    return seen


@given(graphs())
def test_the_lines_are_the_edges(graph: Graph) -> None:
    edges = {(number, fed) for number in range(len(graph.steps)) for fed in graph.successors(number)}
    assert read(graph) == edges


@given(graphs())
def test_every_step_has_one_row_behind_those_that_feed_it(graph: Graph) -> None:
    order = [number for number, _ in lines.Lines(graph).rows() if number is not None]
    assert order == lines.in_order(graph)
    assert sorted(order) == list(range(len(graph.steps)))
    for number in order:
        assert all(order.index(number) < order.index(fed) for fed in graph.successors(number))


any_edges = st.tuples(st.sampled_from("abcde"), st.sampled_from(["a", "b", "c", "a,b", "c,d", "e", "z", END]))


@given(st.lists(any_edges, max_size=9, unique=True), st.randoms(use_true_random=False))
def test_whatever_was_sent_can_be_drawn(sent: list[tuple[str, str]], chance: random.Random) -> None:
    """Sent one by one, steps may miss others, or go in a circle."""
    steps = [Node(from_, tuple(to.split(",")), "f", chance.choice(list(State)), 1) for from_, to in sent]
    drawn = drawing.text(steps)
    assert sum(char in STATES for char in drawn) == len(steps)
    for written in (drawing.dot(steps), drawing.mermaid(steps)):
        assert sum(char in STATES for char in written) == len(steps)
    unfinished = [step for step in steps if not step.state.final]
    assert len(drawing.why(steps)) == len(unfinished)


# --- a summary -------------------------------------------------------------------


def wide(parts: int) -> list[Node]:
    names = [f"p{n}" for n in range(parts)]
    steps = [Node("s", tuple(names), "split", State.data_available, 1)]
    steps += [Node(name, ("m",), "index" if n % 2 else "ocr", State(n % 5), 1) for n, name in enumerate(names)]
    return [*steps, Node("m", (END,), "merge", State.standby)]


def test_many_steps_are_counted_by_level() -> None:
    assert drawing.text(wide(1_000)) == (
        "1,002 steps in 3 levels\n"
        "1      1  split       ✓ 1 data_available\n"
        "2  1,000  ocr, index  ✓ 200 data_available  ● 200 processing  ○ 200 start  · 200 standby  ✗ 200 error\n"
        "3      1  merge       · 1 standby"
    )


def test_many_levels_are_put_together() -> None:
    chain = [
        Node(f"s{n}", (f"s{n + 1}" if n < 999 else END,), "f", State.data_available if n < 990 else State.standby, 1)
        for n in range(1_000)
    ]
    told = drawing.text(chain).splitlines()
    assert len(told) == 51
    assert told[0] == "1,000 steps in 1,000 levels"
    assert told[1] == "     1–20  20  f  ✓ 20 data_available"
    assert told[-1] == "981–1,000  20  f  ✓ 10 data_available  · 10 standby"


def test_a_graph_with_too_many_lines_is_counted() -> None:
    steps = [Node(f"r{n}", (f"e{n}", "all"), "f", State.start) for n in range(50)]
    steps += [Node(f"e{n}", (f"j{n % 7}",), "g", State.standby) for n in range(50)]
    steps += [Node(f"j{n}", (END,), "h", State.standby) for n in range(7)]
    steps += [Node("all", (*(f"e{n}" for n in range(50)), END), "i", State.standby)]
    assert drawing.text(steps).splitlines()[0] == "108 steps in 4 levels"


def test_a_summary_counts_what_goes_in_a_circle() -> None:
    ring = [Node(f"s{n}", (f"s{(n + 1) % 300}",), "f", State.standby) for n in range(300)]
    assert drawing.text(ring) == "300 steps in 1 level\n1  300  f  · 300 standby"


def test_nothing_is_drawn_as_nothing() -> None:
    assert drawing.text([]) == "no steps"
    assert drawing.why([]) == []


# --- for other tools ---------------------------------------------------------------


def test_dot() -> None:
    assert drawing.dot(UNDER_WAY) == (
        "digraph job {\n"
        '  node [shape=box, style="rounded,filled", fillcolor=white];\n'
        '  "A" [label="A\\ncmd0\\n✓ data_available", fillcolor="#d3f2d3"];\n'
        '  "B" [label="B\\ncmd1\\n● processing, attempt 2", fillcolor="#cfe4ff"];\n'
        '  "C" [label="C → D\\ncmd2\\n· standby", fillcolor="#eeeeee"];\n'
        '  "C>E" [label="C → E\\ncmd2\\n· standby", fillcolor="#eeeeee"];\n'
        '  "D" [label="D\\ncmd3\\n· standby", fillcolor="#eeeeee"];\n'
        '  "E" [label="E\\ncmd3\\n· standby", fillcolor="#eeeeee"];\n'
        '  "end_job" [shape=plain, style="", label="end_job"];\n'
        '  "A" -> "B";\n'
        '  "B" -> "C";\n'
        '  "B" -> "C>E";\n'
        '  "C" -> "D";\n'
        '  "C>E" -> "E";\n'
        '  "D" -> "end_job";\n'
        '  "E" -> "end_job";\n'
        "}"
    )


def test_mermaid() -> None:
    assert drawing.mermaid(UNDER_WAY) == (
        "flowchart TD\n"
        '  n0["✓ A<br/>cmd0<br/>data_available"]:::data_available\n'
        '  n1["● B<br/>cmd1<br/>processing, attempt 2"]:::processing\n'
        '  n2["· C → D<br/>cmd2<br/>standby"]:::standby\n'
        '  n3["· C → E<br/>cmd2<br/>standby"]:::standby\n'
        '  n4["· D<br/>cmd3<br/>standby"]:::standby\n'
        '  n5["· E<br/>cmd3<br/>standby"]:::standby\n'
        '  e(["end_job"])\n'
        "  n0 --> n1\n"
        "  n1 --> n2\n"
        "  n1 --> n3\n"
        "  n2 --> n4\n"
        "  n3 --> n5\n"
        "  n4 --> e\n"
        "  n5 --> e\n"
        "  classDef standby fill:#eeeeee,stroke:#555,color:#000\n"
        "  classDef processing fill:#cfe4ff,stroke:#555,color:#000\n"
        "  classDef data_available fill:#d3f2d3,stroke:#555,color:#000"
    )


MANY_TO_MANY = nodes("✓a>m ○b>m ·m>x ·m>z ·x>END")


def test_dot_with_many_to_many_and_a_step_that_is_not_there_yet() -> None:
    drawn = drawing.dot(MANY_TO_MANY).splitlines()
    assert '  ">m" [shape=point];' in drawn
    assert '  "z" [label="z\\nno step yet", style=dashed];' in drawn
    assert [line.strip(" ;") for line in drawn if "->" in line] == [
        '"a" -> ">m"',
        '"b" -> ">m"',
        '">m" -> "m"',
        '">m" -> "m>z"',
        '"m" -> "x"',
        '"m>z" -> "z"',
        '"x" -> "end_job"',
    ]


def test_mermaid_with_many_to_many_and_a_step_that_is_not_there_yet() -> None:
    drawn = drawing.mermaid(MANY_TO_MANY).splitlines()
    assert '  h0((" "))' in drawn
    assert '  x0["z<br/>no step yet"]:::lacking' in drawn
    assert drawn[-1] == "  classDef lacking fill:none,stroke:#555,stroke-dasharray:4"
    edges = [line.strip() for line in drawn if "-->" in line]
    assert edges == [
        *("n0 --> h0", "n1 --> h0", "h0 --> n2", "h0 --> n3", "n2 --> n4", "n3 --> x0", "n4 --> e"),
    ]


def test_names_are_escaped() -> None:
    """Names hold only letters, digits and _ . - ; should that change, a drawing must not break."""
    steps = [Node('a"b\\c', ("end",), 'f#"<x>', State.start), Node("end", (END,), "graph", State.standby)]
    assert r'"a\"b\\c" [label="a\"b\\c\nf#\"<x>\n○ start"' in drawing.dot(steps)
    assert r'"a\"b\\c" -> "end";' in drawing.dot(steps)
    assert 'n0["○ a#quot;b\\c<br/>f#35;#quot;#lt;x#gt;<br/>start"]:::start' in drawing.mermaid(steps)


@given(graphs())
def test_dot_and_mermaid_have_every_way(graph: Graph) -> None:
    steps = [Node(step.from_, step.to, "f", State.standby) for step in graph.steps]
    edges = {(graph.firsts[n], graph.firsts[fed]) for n in range(len(steps)) for fed in graph.successors(n)}
    edges |= {(graph.firsts[n], END) for n in graph.ends}
    assert without_hubs(re.findall(r'"(.+)" -> "(.+)";', drawing.dot(steps)), ">") == edges
    names = {f"n{n}": first for n, first in enumerate(graph.firsts)} | {"e": END}
    found = re.findall(r"(\w+) --> (\w+)", drawing.mermaid(steps))
    assert without_hubs([(names.get(a, a), names.get(b, b)) for a, b in found], "h") == edges


def without_hubs(edges: list[tuple[str, str]], sign: str) -> set[tuple[str, str]]:
    found = set()
    for start, end in edges:
        if end.startswith(sign):
            found |= {(start, last) for hub, last in edges if hub == end}
        elif not start.startswith(sign):
            found.add((start, end))
    return found


# --- why ----------------------------------------------------------------------------


def test_why_the_picture_waits() -> None:
    assert drawing.why(UNDER_WAY) == [
        "B runs on its attempt 2",
        "C → D waits for B (processing, attempt 2)",
        "C → E waits for B (processing, attempt 2)",
        "D waits for C → D (standby)",
        "E waits for C → E (standby)",
    ]


def test_why_a_join_waits() -> None:
    steps = nodes("✓A>B,C ●B>D ·C>D ·D>END")
    steps[1] = steps[1]._replace(attempt=2)
    assert drawing.why(steps)[-1] == "D waits for B (processing, attempt 2) and C (standby)"
    assert drawing.why(nodes("✓a>d ✗b>d ○c>d ·d>END"))[-1] == "d waits for b (error) and c (start)"


def test_why_a_join_of_many_waits() -> None:
    assert drawing.why(wide(10))[-1] == (
        "m waits for p0 (start), p1 (standby), p2 (processing), p4 (error), p5 (start) and 3 more"
    )


def test_why_a_step_is_not_taken() -> None:
    steps = nodes("○a>END ○b>END")
    steps[1] = steps[1]._replace(attempt=2, queue="mail")
    assert drawing.why(steps) == [
        "a waits for a free worker in the queue default",
        "b waits for a free worker in the queue mail, for its attempt 3",
    ]


def test_why_a_step_that_nothing_feeds_waits() -> None:
    assert drawing.why(nodes("·X>END")) == ["no step goes to X yet: it ends in error after 24 h"]
    assert drawing.why(nodes("·X>END"), standby_s=5_400) == ["no step goes to X yet: it ends in error after 1.5 h"]


def test_why_steps_of_one_name_wait_that_nothing_feeds() -> None:
    assert drawing.why(nodes("·X>a ·X>END ·a>END"))[:2] == [
        "no step goes to X yet: X → a ends in error after 24 h",
        "no step goes to X yet: X → end_job ends in error after 24 h",
    ]


def test_why_a_step_waits_that_is_just_fed() -> None:
    assert drawing.why(nodes("✓a>b ·b>END")) == ["b starts now: all that feed it have ended"]


def test_what_has_ended_waits_for_nothing() -> None:
    assert drawing.why(nodes("✓a>b ✗b>END")) == []


# --- size ---------------------------------------------------------------------------


def test_large_graphs_cost_little() -> None:
    many = [Node(f"r{n}", ("m",), "f", State.processing, 1) for n in range(5_000)]
    many += [Node("m", (f"e{n}",), "f", State.standby) for n in range(5_000)]
    began = time.process_time()
    for draw in (drawing.text, drawing.dot, drawing.mermaid):
        assert len(draw(many)) < 2_000_000
    assert len(drawing.why(many)) == 10_000
    assert time.process_time() - began < 5
