"""Graphs of any shape, for the tests of all that reads them."""

from __future__ import annotations

from hypothesis import strategies as st

from exesys.command import END
from exesys.workflow import START, Graph


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Several steps with one `from`, lists in `to`, several roots and ends, in any order."""
    names = [f"n{number}" for number in range(draw(st.integers(1, 8)))]
    steps: set[tuple[str, str]] = set()
    for number, name in enumerate(names):
        later = st.sampled_from([*names[number + 1 :], END])
        for _ in range(draw(st.integers(1, 3))):
            steps.add((name, ",".join(draw(st.lists(later, min_size=1, max_size=4, unique=True)))))
    if draw(st.booleans()):
        fed = {name for _, to in steps for name in to.split(",")}
        steps = {(from_ if from_ in fed else START, to) for from_, to in steps}
    return Graph(draw(st.permutations(sorted(steps))))
