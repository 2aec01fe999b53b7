// Under Node: requests on stdin, answers on stdout. The argument is the folder with node_modules.
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import { Agent, frameSize } from './agent.mjs';

// stdout is for frames alone.
for (const name of ['log', 'info', 'debug', 'warn']) console[name] = console.error;

const dist = path.join(process.argv[2], 'node_modules', 'onnxruntime-web', 'dist');
const ort = await import(pathToFileURL(path.join(dist, 'ort.node.min.mjs')).href);
ort.env.wasm.numThreads = 1;
const agent = new Agent(ort, 'wasm');

let held = Buffer.alloc(0);
for await (const chunk of process.stdin) {
  held = Buffer.concat([held, chunk]);
  for (let size = frameSize(held); size && held.byteLength >= size; size = frameSize(held)) {
    const answer = await agent.answer(held.subarray(0, size));
    held = held.subarray(size);
    for (let done = 0; done < answer.byteLength; ) {
      try {
        done += fs.writeSync(1, answer, done);
      } catch (error) {
        if (error.code !== 'EAGAIN') throw error;
      }
    }
  }
}
process.exit(0);
