// Where the steps of a job stand in its picture: pure, numbers in and numbers out.
//
// Layered as Sugiyama et al. did it (1981): a step's layer is the longest way to it from a root; within a layer steps
// are ordered by where those stand that feed them, there and back a few times. Above `most` steps those that have the
// same neighbours and the same command become one.

export const BOX = { width: 168, height: 38, right: 46, below: 12 };
const MARGIN = 8;
const SWEEPS = 4;
const MOST_PLACES = 600; // more places for long edges would take longer than they are worth
const LEAST_FOLDED = 3;

/** A step's name in its job; a second step of the same `from` goes by where it goes, too. */
export const nameOf = (step) => `${step.from}>${[step.to].flat().join(",")}`;

/** Return who feeds whom: pairs of places in `steps`. */
export function edgesOf(steps) {
  const by = new Map();
  steps.forEach((step, place) => {
    if (!by.has(step.from)) by.set(step.from, []);
    by.get(step.from).push(place);
  });
  return steps.flatMap((step, place) => [step.to].flat().flatMap((to) => (by.get(to) ?? []).map((other) => [place, other])));
}

/** Return the layer of each node: the longest way to it. What goes round in a circle stays where it was reached. */
export function layersOf(count, edges) {
  const layer = new Array(count).fill(0);
  const open = new Array(count).fill(0);
  const next = Array.from({ length: count }, () => []);
  for (const [one, other] of edges) { next[one].push(other); open[other]++; }
  const ready = [];
  open.forEach((number, place) => { if (!number) ready.push(place); });
  while (ready.length) {
    const place = ready.pop();
    for (const other of next[place]) {
      layer[other] = Math.max(layer[other], layer[place] + 1);
      if (!--open[other]) ready.push(other);
    }
  }
  return layer;
}

/** Fold steps: return groups, each a list of places. With `most` or fewer steps each is alone. */
export function fold(steps, edges, most) {
  if (steps.length <= most) return steps.map((_, place) => [place]);
  const feeders = steps.map(() => []);
  const fed = steps.map(() => []);
  for (const [one, other] of edges) { feeders[other].push(one); fed[one].push(other); }
  const alike = group(steps, (step, place) => `${step.cmd}|${feeders[place]}|${fed[place]}`);
  const folded = alike.flatMap((places) => (places.length < LEAST_FOLDED ? places.map((place) => [place]) : [places]));
  if (folded.length <= most) return folded;
  // Still too many to be told apart: one for each command of a layer.
  const layer = layersOf(steps.length, edges);
  return group(steps, (step, place) => `${layer[place]}|${step.cmd}`);
}

function group(steps, keyOf) {
  const found = new Map();
  steps.forEach((step, place) => {
    const key = keyOf(step, place);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(place);
  });
  return [...found.values()];
}

/**
 * Lay out the steps of a job: `nodes` are { steps (places), x, y }, `edges` { from, to (places in `nodes`), through
 * (points between) }; `width` and `height` are in px.
 */
export function layout(steps, most = 60) {
  const fine = edgesOf(steps);
  const groups = fold(steps, fine, most);
  const home = new Array(steps.length);
  groups.forEach((places, number) => places.forEach((place) => { home[place] = number; }));
  const pairs = new Map();
  for (const [one, other] of fine) {
    if (home[one] !== home[other]) pairs.set(`${home[one]},${home[other]}`, [home[one], home[other]]);
  }
  const layer = layersOf(groups.length, [...pairs.values()]);
  // An edge over several layers gets a place in each, so that it passes between boxes and not behind them.
  const links = [];
  const edges = [...pairs.values()].map(([from, to]) => {
    const between = [];
    for (let number = layer[from] + 1; number < layer[to] && layer.length < MOST_PLACES; number++) between.push(layer.push(number) - 1);
    [from, ...between].forEach((one, at) => links.push([one, between[at] ?? to]));
    return { from, to, between };
  });
  const layers = [];
  layer.forEach((number, place) => (layers[number] ??= []).push(place));
  order(layers, links, layer.length);
  const high = (place) => (place < groups.length ? BOX.height : 4) + BOX.below;
  const heights = layers.map((each) => each.reduce((sum, place) => sum + high(place), 0) - BOX.below);
  const tallest = Math.max(...heights);
  const at = new Array(layer.length);
  layers.forEach((each, number) => {
    let y = MARGIN + (tallest - heights[number]) / 2;
    for (const place of each) {
      at[place] = { x: MARGIN + number * (BOX.width + BOX.right), y };
      y += high(place);
    }
  });
  return {
    nodes: groups.map((places, number) => ({ steps: places, ...at[number] })),
    edges: edges.map(({ from, to, between }) => ({ from, to, through: between.map((place) => at[place]) })),
    width: 2 * MARGIN + layers.length * (BOX.width + BOX.right) - BOX.right,
    height: 2 * MARGIN + tallest,
  };
}

/** Order the layers in place, so that fewer edges cross. */
function order(layers, edges, count) {
  const near = [Array.from({ length: count }, () => []), Array.from({ length: count }, () => [])];
  for (const [one, other] of edges) { near[0][other].push(one); near[1][one].push(other); }
  const at = new Array(count);
  const place = () => layers.forEach((each) => each.forEach((node, number) => { at[node] = number - each.length / 2; }));
  place();
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const side = near[sweep % 2];
    const middle = (node) => (side[node].length ? side[node].reduce((sum, other) => sum + at[other], 0) / side[node].length : at[node]);
    for (const each of sweep % 2 ? [...layers].reverse() : layers) {
      const wanted = new Map(each.map((node) => [node, middle(node)]));
      each.sort((one, other) => wanted.get(one) - wanted.get(other));
      each.forEach((node, number) => { at[node] = number - each.length / 2; });
    }
    place();
  }
}

/** Put steps in the order in which they are drawn: by layer, then by name, numbers in it as numbers. */
export function inOrder(steps) {
  const layer = layersOf(steps.length, edgesOf(steps));
  const names = new Intl.Collator("en", { numeric: true });
  return steps.map((step, place) => [layer[place], step])
    .sort(([one, a], [other, b]) => one - other || names.compare(a.from, b.from)).map(([, step]) => step);
}
