// What answers a worker's requests with ONNX Runtime Web, under Node and in a page alike: frames in, frames out.
// A frame: "PTLN" | header bytes, u32 | body bytes, u64 | header (JSON) | tensors; see portolan/core/frames.py.

const PREFIX = 16;
const ARRAYS = {
  bool: Uint8Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array,
  uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, float16: Uint16Array, float32: Float32Array,
  float64: Float64Array,
};

// The size of the frame that starts `bytes`, or 0 while its first bytes are not there.
export function frameSize(bytes) {
  if (bytes.byteLength < PREFIX) return 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return PREFIX + view.getUint32(4, true) + Number(view.getBigUint64(8, true));
}

export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const end = PREFIX + view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(PREFIX, end)));
  const tensors = {};
  let place = end;
  for (const [name, dtype, dims] of header.tensors) {
    const Kind = ARRAYS[dtype];
    if (!Kind) throw new Error(`tensors of type ${dtype} do not reach ONNX Runtime Web`);
    const size = dims.reduce((a, b) => a * b, 1) * Kind.BYTES_PER_ELEMENT;
    // A copy, since typed arrays must start at a multiple of their element's size; `slice` of Node's Buffer makes none.
    const copy = Uint8Array.prototype.slice.call(bytes, place, place + size);
    tensors[name] = { dtype, dims, data: new Kind(copy.buffer) };
    place += size;
  }
  return { fields: header.fields, tensors };
}

export function encode(fields, tensors) {
  const listed = Object.entries(tensors).map(([name, t]) => [name, t.dtype, t.dims]);
  const header = new TextEncoder().encode(JSON.stringify({ fields, tensors: listed }));
  const parts = Object.values(tensors).map((t) => new Uint8Array(t.data.buffer, t.data.byteOffset, t.data.byteLength));
  const body = parts.reduce((sum, part) => sum + part.byteLength, 0);
  const out = new Uint8Array(PREFIX + header.byteLength + body);
  out.set(new TextEncoder().encode('PTLN'));
  const view = new DataView(out.buffer);
  view.setUint32(4, header.byteLength, true);
  view.setBigUint64(8, BigInt(body), true);
  out.set(header, PREFIX);
  let place = PREFIX + header.byteLength;
  for (const part of parts) {
    out.set(part, place);
    place += part.byteLength;
  }
  return out;
}

export class Agent {
  constructor(ort, provider) {
    this.ort = ort;
    this.provider = provider;
    this.session = null;
  }

  // The frame that answers `bytes`; what fails is told in it.
  async answer(bytes) {
    try {
      const { fields, tensors } = decode(bytes);
      return await (fields.op === 'load' ? this.load(tensors) : this.run(tensors));
    } catch (error) {
      return encode({ error: { message: String((error && error.message) || error) } }, {});
    }
  }

  async load(files) {
    const { model, ...rest } = files;
    const facts = await this.facts();
    this.session = await this.ort.InferenceSession.create(model.data, {
      executionProviders: [this.provider],
      externalData: Object.entries(rest).map(([path, file]) => ({ path, data: file.data })),
      logSeverityLevel: 3,
    });
    return encode({ ...facts, outputs: this.session.outputNames }, {});
  }

  async facts() {
    if (this.provider !== 'webgpu') return { device: 'wasm' };
    const adapter = globalThis.navigator?.gpu ? await navigator.gpu.requestAdapter() : null;
    if (!adapter) throw new Error('the browser gives no WebGPU adapter');
    const { vendor, architecture } = adapter.info;
    return { device: `webgpu: ${[vendor, architecture].filter(Boolean).join(' ')}`, vendor, architecture };
  }

  async run(inputs) {
    const feeds = {};
    for (const [name, t] of Object.entries(inputs)) feeds[name] = new this.ort.Tensor(t.dtype, t.data, t.dims);
    const outputs = await this.session.run(feeds);
    const tensors = {};
    for (const [name, t] of Object.entries(outputs)) {
      const data = t.location === 'cpu' ? t.data : await t.getData();
      tensors[name] = { dtype: t.type, dims: t.dims, data };
    }
    return encode({}, tensors);
  }
}
