// Prints what the compilers said, and exits with 1 if one refused a variant or gave no answer.
//
// usage: node report.mjs FOLDER
//
// FOLDER holds variants.json, the texts, and for each compiler NAME.list, the paths of what it was asked now,
// NAME.answers, its lines "TEXT: ok" or "TEXT: MESSAGE", and NAME.refused, the paths of what has never passed.
import { readFileSync, readdirSync } from 'node:fs';
import { basename, extname, join, resolve } from 'node:path';

const [folder] = process.argv.slice(2);
const lines = (file) => readFileSync(join(folder, file), 'utf8').split(/\r?\n/).filter(Boolean);
const variants = JSON.parse(readFileSync(join(folder, 'variants.json'), 'utf8'));
const names = new Map(variants.map(({ file, name }) => [file, name]));
const skipped = variants.filter((v) => v.cooperative_matrices).length;
const variant = (text) => text.split('.')[0];
const count = (texts) => new Set(texts.map(variant)).size;

const row = (...cells) => console.log(cells.map((cell, i) => (i ? String(cell).padStart(13) : cell.padEnd(8))).join(''));
row('', 'variants', 'texts', 'asked now', 'not for it', 'refused');
const refusals = [];
for (const [compiler, kind] of [['tint', 'wgsl'], ['dxc', 'hlsl']]) {
  const texts = readdirSync(join(folder, kind)).map((file) => basename(file, extname(file)));
  const asked = lines(`${compiler}.list`).length;
  const answers = new Map(lines(`${compiler}.answers`).map((line) => [line.split(': ', 1)[0], line.replace(/^.*?: /, '')]));
  const refused = lines(`${compiler}.refused`).map((path) => [path, basename(path, extname(path))]);
  refused.forEach(([path, text]) => refusals.push({ compiler, path, text, message: answers.get(text) ?? 'no answer' }));
  row(compiler, count(texts), texts.length, asked, compiler === 'dxc' ? skipped : 0, count(refused.map(([, text]) => text)));
}
console.log('(not for it: cooperative matrices, which Tint gets as sums of invocations; what is not asked now passed before)');

// The same message is said about many variants of a kernel: the first of them stands for all.
const findings = new Map();
for (const refusal of refusals) {
  const [, place, message] = refusal.message.match(/^(?:[^ :]*:)?(\d+:\d+): (.*)/) ?? [, '', refusal.message];
  const key = `${refusal.compiler} ${refusal.text.replace(/^\d+-/, '')} ${message}`;
  const finding = findings.get(key) ?? { ...refusal, place, message, times: 0 };
  finding.times += 1;
  findings.set(key, finding);
}
for (const { compiler, path, text, place, message, times } of findings.values()) {
  console.log(`\n${compiler}: ${message}\n  in ${times} texts, as ${names.get(variant(text))}\n  ${resolve(folder, path)}${place && ':'}${place}`);
}
process.exitCode = refusals.length ? 1 : 0;
