// Runs the model of this folder with ONNX Runtime Web, in a page or under Node:
//
//   import { load } from './model.mjs';
//   const model = await load();                      // load({ providers: ['webgpu', 'wasm'] }) in a page with WebGPU
//   const { logits } = await model.run({ image: new Float32Array(3 * 224 * 224) });
//
// An input is a typed array, for the shape in about.json, or `{ data, dims }` where a size is free.
import * as ort from 'onnxruntime-web';

export const ARRAYS = {
  bool: Uint8Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array,
  uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, float16: Uint16Array, float32: Float32Array,
  float64: Float64Array,
};
const HERE = new URL('.', import.meta.url);

// The bytes of a file of this folder: Node's fetch knows no files.
export async function bytes(name) {
  const url = new URL(name, HERE);
  if (url.protocol === 'file:') return new Uint8Array(await (await import('node:fs/promises')).readFile(url));
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

export async function json(name) {
  return JSON.parse(new TextDecoder().decode(await bytes(name)));
}

export class Model {
  constructor(session, about) {
    this.session = session;
    this.inputs = about.inputs;
    this.outputs = about.outputs;
  }

  // Runs once: arrays by input name in, `{ data, dims }` by output name out.
  async run(inputs) {
    const feeds = {};
    for (const { name, dtype, shape } of this.inputs) {
      const given = inputs[name];
      if (given === undefined) throw new Error(`the input ${name} is missing: ${this.inputs.map((i) => i.name)}`);
      const { data, dims } = ArrayBuffer.isView(given) ? { data: given, dims: shape } : given;
      if (dims.some((size) => typeof size !== 'number')) throw new Error(`${name} is ${shape}: give { data, dims }`);
      feeds[name] = new ort.Tensor(dtype, data, dims);
    }
    const found = await this.session.run(feeds);
    const answers = {};
    for (const { name } of this.outputs) {
      const tensor = found[name];
      answers[name] = { data: tensor.location === 'cpu' ? tensor.data : await tensor.getData(), dims: tensor.dims };
    }
    return answers;
  }
}

export async function load({ providers = ['wasm'], threads = 0 } = {}) {
  const about = await json('about.json');
  if (threads) ort.env.wasm.numThreads = threads;
  const externalData = [];
  for (const [path, file] of Object.entries(about.data)) externalData.push({ path, data: await bytes(file) });
  const session = await ort.InferenceSession.create(await bytes(about.model), { executionProviders: providers, externalData });
  return new Model(session, about);
}
