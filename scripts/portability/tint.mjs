// Asks Tint, the WGSL compiler of Chromium, about variants, through WebGPU in a page without a window.
//
// usage: node tint.mjs FOLDER CHROMIUM LIST
//
// FOLDER holds variants.json and node_modules. Each line of LIST is the path of a WGSL text, named as in
// variants.json. For each a line goes out: "NAME: ok", or the first line of what Tint says instead of "ok".
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { basename, join, resolve } from 'node:path';

const BATCH = 32;

const [folder, executablePath, list] = process.argv.slice(2);
const { chromium } = createRequire(resolve(folder, 'node_modules'))('playwright-core');

const variants = new Map(JSON.parse(readFileSync(join(folder, 'variants.json'), 'utf8')).map((v) => [v.file, v]));
const shaders = readFileSync(list, 'utf8').split('\n').filter(Boolean).map((path) => {
  const name = basename(path, '.wgsl');
  const { subgroups, new_limits } = variants.get(name);
  // naga 30 knows subgroups without this line, and refuses it.
  const enable = subgroups ? 'enable subgroups; ' : '';
  return { name, code: enable + readFileSync(path, 'utf8'), pipeline: new_limits };
});

// Runs in the page. Pipelines show what exceeds the limits; all else shows in a module.
async function check({ code, pipeline }) {
  const module = device.createShaderModule({ code });
  const { messages } = await module.getCompilationInfo();
  const bad = messages.find(({ type }) => type !== 'info');
  if (bad) return `${bad.lineNum}:${bad.linePos}: ${bad.type}: ${bad.message}`;
  if (!pipeline) return 'ok';
  return device.createComputePipelineAsync({ layout: 'auto', compute: { module } }).then(
    () => 'ok',
    (error) => error.message,
  );
}

// WebGPU is for pages with an origin: an empty one from this machine.
const server = createServer((_, answer) => answer.setHeader('content-type', 'text/html').end());
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
// The sandbox does not start for root, as in most containers; the page is ours.
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'],
});
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.evaluate(async () => {
    const adapter = await navigator.gpu.requestAdapter();
    // Without limits of its own, so that the least ones hold.
    globalThis.device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });
  });
  await page.addScriptTag({ content: `globalThis.check = ${check}` });
  for (let i = 0; i < shaders.length; i += BATCH) {
    const batch = shaders.slice(i, i + BATCH);
    const answers = await page.evaluate((all) => Promise.all(all.map(check)), batch);
    answers.forEach((answer, j) => console.log(`${batch[j].name}: ${answer.trim().split('\n')[0]}`));
  }
} finally {
  await browser.close();
  server.close();
}
