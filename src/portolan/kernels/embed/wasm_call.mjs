// Calls a kernel's WebAssembly module: node wasm_call.mjs MODULE ENTRY < case > results.
//
// In: count of sizes, sizes, count of arrays, bytes of each, number of arguments (all int64, little-endian), then the
// arguments' bytes. Out: the results' bytes. The module's own `malloc` gives the places; pointers have 32 bits.
import { readFileSync, writeSync } from "node:fs";

const [file, entry] = process.argv.slice(2);
const input = readFileSync(0);
let at = 0;
const number = () => Number(input.readBigInt64LE((at += 8) - 8));
const numbers = () => Array.from({ length: number() }, number);
const nothing = () => 0;
const system = new Proxy({}, { get: () => nothing });
const module = await WebAssembly.instantiate(readFileSync(file), { wasi_snapshot_preview1: system });
const wasm = module.instance.exports;
wasm._initialize?.();

const place = (bytes) => (wasm.malloc(bytes + 64) + 63) & ~63;
const sizes = numbers();
const bytes = numbers();
const given = number();
const sizesAt = place(8 * sizes.length + 8);
const arrays = bytes.map((count) => place(count + 1));
const arraysAt = place(4 * arrays.length);
// Memory may have moved while it grew: views are made after the last call of malloc.
const spaceSize = () => {
  const view = new DataView(wasm.memory.buffer);
  sizes.forEach((size, n) => view.setBigInt64(sizesAt + 8 * n, BigInt(size), true));
  return Number(wasm[`${entry}_workspace`](sizesAt));
};
const space = place(spaceSize() + 128);
const view = new DataView(wasm.memory.buffer);
arrays.forEach((where, n) => view.setUint32(arraysAt + 4 * n, where, true));
const memory = new Uint8Array(wasm.memory.buffer);
for (let n = 0; n < given; n++) {
  memory.set(input.subarray(at, at + bytes[n]), arrays[n]);
  at += bytes[n];
}
wasm[entry](arraysAt, sizesAt, space, 0n, wasm[`${entry}_tasks`](sizesAt));
const results = arrays.slice(given).map((where, n) => memory.slice(where, where + bytes[given + n]));
for (const result of results) {
  for (let sent = 0; sent < result.length; ) sent += writeSync(1, result, sent);
}
