// Canonical text by the npm package: one JSON text a line in, one canonical text a line out.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const canonicalize = createRequire(import.meta.url)("canonicalize");
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  process.stdout.write(canonicalize(JSON.parse(line)) + "\n");
}
