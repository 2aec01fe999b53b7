// `node check.mjs`, after `npm install`: 0 where the answers are the bundle's, 1 where they are not.
import process from 'node:process';
import { compare } from './compare.mjs';

const problems = await compare({ threads: 1 });
console.log(problems.length ? problems.join('\n') : 'answers as packed');
process.exit(problems.length ? 1 : 0); // the runtime's threads would keep Node alive
