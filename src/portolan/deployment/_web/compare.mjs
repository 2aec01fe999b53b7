// Compares what the model answers here with the golden answers of the bundle; a list of what differs, in words.
import { ARRAYS, json, load } from './model.mjs';

function decoded({ dtype, dims, base64 }) {
  const raw = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return { data: new ARRAYS[dtype](raw.buffer), dims };
}

function differs(got, wanted, { rtol, atol }) {
  if (got.length !== wanted.length) return `${got.length} numbers in place of ${wanted.length}`;
  for (let i = 0; i < wanted.length; i++) {
    const [a, b] = [Number(got[i]), Number(wanted[i])];
    if (!(a === b || Math.abs(a - b) <= atol + rtol * Math.abs(b))) return `${a} in place of ${b} at ${i}`;
  }
  return null;
}

export async function compare(options) {
  const golden = await json('golden.json');
  const model = await load(options);
  const got = {};
  for (const call of golden.inputs) {
    const feeds = Object.fromEntries(Object.entries(call).map(([name, tensor]) => [name, decoded(tensor)]));
    for (const [name, { data }] of Object.entries(await model.run(feeds))) (got[name] ??= []).push(...data);
  }
  const problems = [];
  for (const [name, tensor] of Object.entries(golden.outputs)) {
    const problem = differs(got[name], decoded(tensor).data, golden.tolerance[name]);
    if (problem) problems.push(`${name}: ${problem}`);
  }
  return problems;
}
