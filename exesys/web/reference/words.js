// What stands in an OpenAPI document, in words: schemas as one reads them, examples, addresses and commands of a shell.
// Nothing here touches a page.

export const METHODS = ["get", "post", "patch", "delete"];
export const JSON_KIND = "application/json";
const LIMITS = [["minimum", "≥ "], ["exclusiveMinimum", "> "], ["maximum", "≤ "], ["maxLength", "length ≤ "], ["pattern", ""], ["format", ""]];

/** Return the name that a `$ref` means. */
export const nameOf = (ref) => ref.replace("#/components/schemas/", "");

const between = (lists, sign) => lists.flatMap((list, place) => (place ? [sign, ...list] : list));

/** Write a schema: a list of texts, and of `{ name }` where another schema is named. */
export function spell(schema, indent = "") {
  if (schema.$ref) return [{ name: nameOf(schema.$ref) }];
  if (schema.allOf) return between(schema.allOf.map((each) => spell(each, indent)), " & ");
  if (schema.anyOf) return between(schema.anyOf.map((each) => spell(each, indent)), " | ");
  if ("const" in schema) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((each) => JSON.stringify(each)).join(" | ")];
  if (schema.type === "array") return ["[", ...spell(schema.items, indent), " …]"];
  if (schema.type === "object") return spellObject(schema, indent);
  const limits = LIMITS.filter(([key]) => key in schema).map(([key, sign]) => sign + schema[key]);
  return [(schema.type ?? "any") + (limits.length ? ` (${limits.join(", ")})` : "")];
}

function spellObject(schema, indent) {
  const inner = `${indent}  `;
  const needed = new Set(schema.required);
  const lines = Object.entries(schema.properties ?? {}).flatMap(([name, each]) => [
    `\n${inner}${name}${needed.has(name) ? "" : "?"}: `, ...spell(each, inner), each.description ? { note: `  ${each.description}` } : "",
  ]);
  if (typeof schema.additionalProperties === "object") lines.push(`\n${inner}[name]: `, ...spell(schema.additionalProperties, inner));
  return lines.length ? ["{", ...lines, `\n${indent}}`] : ["{ … }"];
}

/** Give an example of what a schema describes; `known` are the schemas by name. */
export function example(schema, known) {
  if (schema.examples) return schema.examples[0];
  if (schema.$ref) return example(known[nameOf(schema.$ref)], known);
  if (schema.anyOf) return example(schema.anyOf[0], known);
  if (schema.allOf) return example(schema.allOf[0], known);
  if (schema.enum) return schema.enum[0];
  if (schema.type === "object") {
    const needed = [...(schema.required ?? []), ...(schema.oneOf?.[0].required ?? [])];
    return Object.fromEntries(needed.map((name) => [name, example(schema.properties[name], known)]));
  }
  if (schema.type === "number" || schema.type === "integer") return Math.max(1, schema.minimum ?? 1);
  return schema.type === "string" ? "NAME" : [];
}

/** Write the address of an operation; `value(name)` gives what is to stand for a parameter, or "". */
export function address(rest, path, parameters, value) {
  const query = new URLSearchParams();
  let filled = path;
  for (const { name, in: place } of parameters) {
    const given = value(name);
    if (place === "path") filled = filled.replace(`{${name}}`, given ? encodeURIComponent(given) : name.toUpperCase());
    else if (place === "query" && given) query.set(name, given);
  }
  return `${rest}${filled}${query.size ? `?${query}` : ""}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Write the command for a shell; without a `body` it sends none. */
export function curl(method, url, { body, token = false, stream = false } = {}) {
  const parts = ["curl"];
  if (stream) parts.push("-N");
  if (method !== "GET") parts.push("-X", method);
  if (token) parts.push('-H "Authorization: Bearer $TOKEN"');
  if (body !== undefined) parts.push(`-H ${quoted(`Content-Type: ${JSON_KIND}`)}`, "-d", quoted(JSON.stringify(body)));
  return [...parts, quoted(url)].join(" ");
}

/** Give each operation of a document: its path, its method, and what is told of it. */
export function* operations(document) {
  for (const [path, item] of Object.entries(document.paths)) {
    for (const method of METHODS.filter((each) => each in item)) yield { path, method: method.toUpperCase(), told: item[method] };
  }
}
