// One Python for the page: started when first needed, ended by a time limit or a button, and then started again.

export class Ended extends Error {}

export class Absent extends Error {
  constructor({ reason, host }) {
    super(reason);
    this.host = host;
  }
}

class Session {
  #worker = null;
  #ready = null;
  #calls = new Map();
  #next = 0;
  #anywhere = false;
  #say = () => {};
  seconds = 60;                    // for one cell, or one check
  patience = 180;                  // seconds for each thing that is loaded
  packages = [];                   // beside NumPy, that must be there from the start
  onrestart = () => {};            // what the code had defined is gone

  allowElsewhere() {
    this.#anywhere = true;
    this.stop("");
  }

  // The result of a function of support.py; `say` is told in words what happens meanwhile.
  async call(name, given, say) {
    this.#say = say;
    this.#ready ??= this.#start();
    await this.#ready;
    say("Running…");
    const id = this.#next++;
    let timer = null;
    try {
      return await new Promise((resolve, reject) => {
        this.#calls.set(id, { resolve, reject });
        this.#worker.postMessage({ id, name, given });
        timer = setTimeout(() => this.stop(`Ended after ${this.seconds} seconds.`), this.seconds * 1000);
      });
    } finally {
      clearTimeout(timer);
      this.#calls.delete(id);
    }
  }

  // End whatever runs.
  stop(why = "Ended.") {
    this.#worker?.terminate();
    this.#worker = this.#ready = null;
    for (const { reject } of this.#calls.values()) reject(new Ended(why));
    this.#calls.clear();
    this.onrestart();
  }

  #start() {
    const worker = (this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" }));
    let what = "", waited = 0, timer = null;
    return new Promise((resolve, reject) => {
      const fail = (error) => {
        this.#calls.delete("start");
        if (this.#worker === worker) this.#worker = this.#ready = null;
        worker.terminate();
        reject(error);
      };
      this.#calls.set("start", { resolve, reject });
      timer = setInterval(() => {
        waited += 1;
        if (waited >= this.patience) fail(new Error(`${what} It takes longer than ${waited} seconds: is there a connection? Try again.`));
        else if (waited % 10 === 0) this.#say(`${what} ${waited} s`);
      }, 1000);
      worker.onerror = (event) => fail(new Error(event.message || "Python could not be started."));
      worker.onmessage = ({ data }) => {
        const error = data.absent ? new Absent(data.absent) : data.error ? new Error(data.error) : null;
        if (data.said) {
          [what, waited] = [data.said, 0];
          this.#say(what);
        } else if (data.id === undefined) {
          if (error) return fail(error);
          this.#calls.delete("start");
          resolve(data.ready);
        } else if (error) {
          this.#calls.get(data.id)?.reject(error);
        } else {
          this.#calls.get(data.id)?.resolve(data.value);
        }
      };
      worker.postMessage({ start: { anywhere: this.#anywhere, packages: this.packages } });
    }).finally(() => clearInterval(timer));
  }
}

export const session = new Session();
