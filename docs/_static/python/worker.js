// The worker that runs Python, so that the page stays alive whatever the code does, and can end it.
//
// in    {start: {anywhere, packages}}                                    {id, name, given}
// out   {said}   {ready: versions}   {absent: {reason, host}}   {error}   {id, value}   {id, absent}   {id, error}

import { begin } from "./engine.js";

let engine = null, host = null;             // the host that could have what this copy of the book lacks
class Absent extends Error {}
const say = (said) => postMessage({ said });

async function call(name, given) {
  for (let tries = 0; tries < 5; tries++) {
    const value = JSON.parse(await engine.call(name, JSON.stringify(given)));
    if (!value.missing) return value;
    say(`Loading ${value.missing}…`);
    if (!(await engine.load(value.missing))) {
      throw new Absent(`This needs the package ${value.missing}, which this copy of the book does not have.`);
    }
  }
  throw new Error("It needs too many packages.");
}

async function start({ anywhere, packages }) {
  say("Loading Python…");
  const found = await begin(new URL(".", import.meta.url), anywhere, packages, say);
  host = found.host;
  if (!found.engine) throw new Absent("This copy of the book comes without Python.");
  engine = found.engine;
  return { ready: JSON.parse(await engine.call("ready", "null")) };
}

onmessage = async ({ data }) => {
  try {
    postMessage(data.start ? await start(data.start) : { id: data.id, value: await call(data.name, data.given) });
  } catch (error) {
    const reason = String(error.message ?? error);
    postMessage({ id: data.id, ...(error instanceof Absent ? { absent: { reason, host } } : { error: reason }) });
  }
};
