// Python by Pyodide: from the book's own folder, where `python docs/pyodide.py BOOK` has put it, or from its distribution's host.

const VERSION = "314.0.7";
const HOST = "cdn.jsdelivr.net";
const ELSEWHERE = `https://${HOST}/pyodide/v${VERSION}/full/`;
const HERE = "../pyodide/";
const PLACE = "/book";

// begin(base, anywhere, packages, say) -> {host, engine}; no engine where there is no Python, and then `host` could have it.
// An engine has call(name, given), a function of support.py by name, with JSON; and load(name), whether that can be imported then.
export async function begin(base, anywhere, packages, say) {
  const place = anywhere ? ELSEWHERE : new URL(HERE, base).href;
  const host = anywhere ? null : HOST;
  if (!anywhere && !(await isThere(new URL("pyodide-lock.json", place)))) return { host, engine: null };
  const { loadPyodide } = await import(new URL("pyodide.mjs", place).href);
  const python = await loadPyodide({ indexURL: place, stdout: () => {}, stderr: () => {} });
  const quiet = { messageCallback: () => {}, errorCallback: () => {} };
  const load = async (name) => {
    if (!/^\w+$/.test(name)) return false;
    await python.loadPackagesFromImports(`import ${name}`, quiet).catch(() => {});
    return python.runPython(`import importlib.util; importlib.invalidate_caches(); importlib.util.find_spec("${name}") is not None`);
  };
  for (const name of ["numpy", ...packages]) {
    say(`Loading ${name}…`);
    await load(name);
  }
  await unpack(python, base);
  const support = python.pyimport("support");
  return { host, engine: { load, call: async (name, given) => support.call(name, given) } };
}

async function isThere(url) {
  const answer = await fetch(url, { method: "HEAD" }).catch(() => null);
  return answer !== null && answer.ok;
}

async function unpack(python, base) {
  const { archives } = await (await fetch(new URL("archives.json", base))).json();
  for (const name of archives) {
    python.unpackArchive(await (await fetch(new URL(name, base))).arrayBuffer(), "zip", { extractDir: PLACE });
  }
  python.FS.writeFile(`${PLACE}/support.py`, await (await fetch(new URL("support.py", base))).text());
  python.runPython(`import sys; sys.path.insert(0, "${PLACE}")`);
}
