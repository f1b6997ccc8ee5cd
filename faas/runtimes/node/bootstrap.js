// The Runtime API client for Node handlers: what runs inside a function's sandbox.
//
// One keep-alive connection over a plain socket: `http` would cost 12 ms of every cold start. `_HANDLER` names the
// handler as `file.export`; CommonJS and ES modules, async and callback style. With `FAAS_STEM` it is started before it
// is known for which function (`waitForAssignment`).
"use strict";

const net = require("node:net");
const path = require("node:path");
const fs = require("node:fs");

const STEM_CHANNEL = 3; // descriptor of the socket to the server, in a stem alone; closed before any of the function's code
const PREFIX = "/2018-06-01/runtime/";
const END = Buffer.from("\r\n\r\n");
const STREAMS = Symbol.for("aws.lambda.runtime.handler.streaming"); // a mark on handlers, as in AWS's client
const STREAMED_ERROR = 24576; // of an error behind a streamed answer, which goes where headers go

// Loads a handler and serves an event, of nobody, over a connection to itself: Node compiles at first use, and half of a
// start from a stem would be that. Nothing of it stays.
async function rehearse() {
  const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
  const listener = net.createServer((peer) => peer.on("data", () => peer.write(answer)));
  await new Promise((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const api = new RuntimeApi(`127.0.0.1:${listener.address().port}`);
  api.socket.removeAllListeners("close");
  const handler = await load(path.join(__dirname, "rehearsal.handler"));
  const { headers, body } = await api.request("GET", "invocation/next");
  await api.request("POST", "response", JSON.stringify(await call(handler, JSON.parse(body), context(headers))));
  api.socket.destroy();
  await new Promise((resolve) => listener.close(resolve));
  setEnvironment({ ...process.env });
  require("node:module")._initPaths();
  await new Promise(setImmediate);
  delete require.cache[path.join(__dirname, "rehearsal.js")];
  module.children.length = 0;
}

// From here on everything is as after an ordinary start: environment, module paths, working folder, open descriptors.
async function waitForAssignment() {
  await rehearse();
  fs.writeSync(STEM_CHANNEL, "[]\n"); // no file of a function's can take the place of a module of Node's own
  const chunks = [];
  for (let chunk = Buffer.alloc(1 << 18), size; (size = fs.readSync(STEM_CHANNEL, chunk)) > 0; ) {
    chunks.push(Buffer.from(chunk.subarray(0, size)));
  }
  fs.closeSync(STEM_CHANNEL);
  if (!chunks.length) process.exit(0); // the server has no use for it, or has ended
  const told = JSON.parse(Buffer.concat(chunks));
  setEnvironment(told.env);
  require("node:module")._initPaths(); // NODE_PATH
  process.chdir(told.workdir);
}

// In the order of an ordinary start. What is so already is not touched: when TZ is set, be it to what it was, Node has its
// time zone looked up in the whole folder of zones, which takes 4 ms.
function setEnvironment(wanted) {
  const names = Object.keys(wanted);
  const before = Object.keys(process.env);
  const other = before.findIndex((name, index) => name !== names[index]);
  for (const name of other < 0 ? [] : before.slice(other)) delete process.env[name];
  for (const name of names) if (process.env[name] !== wanted[name]) process.env[name] = wanted[name];
}

class RuntimeApi {
  constructor(address) {
    const [host, port] = address.split(":");
    this.address = address;
    this.data = Buffer.alloc(0);
    this.waiting = []; // who waits for answers, the next one first
    this.socket = net.connect({ host, port: Number(port || 80), noDelay: true });
    this.socket.on("data", (chunk) => {
      this.data = this.data.length ? Buffer.concat([this.data, chunk]) : chunk;
      this.parse();
    });
    this.socket.on("error", () => process.exit(1));
    this.socket.on("close", () => process.exit(1));
  }

  request(method, target, body) {
    this.socket.write(message(this.address, method, target, body));
    return this.answer();
  }

  next() {
    return this.request("GET", "invocation/next");
  }

  // Posts what became of an event, and returns the next one: both requests are one write.
  respond(target, body) {
    const next = message(this.address, "GET", "invocation/next");
    this.socket.write(Buffer.concat([message(this.address, "POST", target, body), next]));
    this.answer();
    return this.answer();
  }

  answer() {
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  parse() {
    for (;;) {
      const end = this.data.indexOf(END);
      if (end < 0 || !this.waiting.length) return;
      const headers = {};
      for (const line of this.data.toString("latin1", 0, end).split("\r\n").slice(1)) {
        const colon = line.indexOf(":");
        headers[line.slice(0, colon).trim().toLowerCase()] = line.slice(colon + 1).trim();
      }
      const stop = end + 4 + Number(headers["content-length"] || 0);
      if (this.data.length < stop) return;
      const body = this.data.subarray(end + 4, stop);
      this.data = this.data.subarray(stop);
      this.waiting.shift()({ headers, body });
    }
  }
}

function message(address, method, target, body) {
  const payload = body === undefined ? Buffer.alloc(0) : Buffer.from(body);
  const head = `${method} ${PREFIX}${target} HTTP/1.1\r\nHost: ${address}\r\nContent-Length: ${payload.length}\r\n\r\n`;
  return Buffer.concat([Buffer.from(head), payload]);
}

// AWS's `awslambda`: a handler that is given a stream to write its answer to. `stream` is required at its first use only.
globalThis.awslambda = {
  streamifyResponse: (handler) => Object.assign(handler, { [STREAMS]: true }),
  HttpResponseStream: {
    from(stream, head) {
      stream.setContentType("application/vnd.awslambda.http-integration-response");
      stream.write(JSON.stringify(head));
      stream.write(Buffer.alloc(8));
      return stream;
    },
  },
};

// The answer to one event as a Writable; the request's head goes with its first piece.
function responseStream(api, id) {
  const { Writable } = require("node:stream");
  let type = "application/octet-stream";
  let begun = false;
  const begin = () => {
    if (begun) return;
    begun = true;
    api.socket.write(
      `POST ${PREFIX}invocation/${id}/response HTTP/1.1\r\nHost: ${api.address}\r\nContent-Type: ${type}\r\n` +
        "Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n" +
        "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n",
    );
  };
  const stream = new Writable({
    write(chunk, _, done) {
      begin();
      if (!chunk.length) return done();
      api.socket.write(Buffer.concat([Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n")]), done);
    },
  });
  const end = (trailers) => {
    begin();
    api.socket.write(`0\r\n${trailers}\r\n`);
    return api.answer();
  };
  stream.setContentType = (value) => {
    if (!begun) type = String(value).replace(/[^\x20-\x7e]/g, "");
  };
  return { stream, end, hasBegun: () => begun };
}

// Resolves when the answer has been posted: after the handler's promise, and where it ends the stream itself, after that.
async function callStreaming(api, id, handler, event, about) {
  const { stream, end, hasBegun } = responseStream(api, id);
  const finished = new Promise((resolve, reject) => stream.on("finish", resolve).on("error", reject));
  finished.catch(() => {});
  try {
    await handler(event, stream, about);
    if (!stream.writableEnded) stream.end();
    await finished;
  } catch (error) {
    process.stderr.write(`${error && error.stack ? error.stack : error}\n`);
    if (!hasBegun()) return api.request("POST", `invocation/${id}/error`, errorBody(error));
    const { errorType } = JSON.parse(errorBody(error));
    const body = Buffer.from(errorBody(error)).subarray(0, STREAMED_ERROR).toString("base64");
    const type = errorType.replace(/[^\x21-\x7e]/g, "");
    return end(`Lambda-Runtime-Function-Error-Type: ${type}\r\nLambda-Runtime-Function-Error-Body: ${body}\r\n`);
  }
  return end("");
}

class InitError extends Error {
  constructor(type, message) {
    super(message);
    this.name = type;
  }
}

async function load(name) {
  const dot = name.lastIndexOf(".");
  if (dot <= 0) throw new InitError("Runtime.MalformedHandlerName", `the handler '${name}' is not FILE.EXPORT`);
  const base = path.resolve(process.env.LAMBDA_TASK_ROOT || "/var/task", name.slice(0, dot));
  const file = [".js", ".cjs", ".mjs"].map((extension) => base + extension).find((candidate) => fs.existsSync(candidate));
  if (!file) throw new InitError("Runtime.ImportModuleError", `Cannot find module '${name.slice(0, dot)}'`);
  let loaded;
  try {
    if (file.endsWith(".mjs")) {
      loaded = await import(file);
    } else {
      try {
        loaded = require(file);
      } catch (error) {
        const isModule = error.code === "ERR_REQUIRE_ESM" || /Cannot use import statement|Unexpected token 'export'/.test(error.message);
        if (!isModule) throw error;
        loaded = await import(file);
      }
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw Object.assign(error, { name: "Runtime.UserCodeSyntaxError" });
    if (error.code === "MODULE_NOT_FOUND" || error.code === "ERR_MODULE_NOT_FOUND") {
      throw new InitError("Runtime.ImportModuleError", error.message.split("\n")[0]);
    }
    throw error;
  }
  const wanted = name.slice(dot + 1);
  const handler = loaded[wanted] ?? loaded.default?.[wanted];
  if (typeof handler !== "function") {
    throw new InitError("Runtime.HandlerNotFound", `'${wanted}' is not exported, or no function`);
  }
  return handler;
}

function context(headers) {
  const deadline = Number(headers["lambda-runtime-deadline-ms"]);
  const given = headers["lambda-runtime-client-context"];
  return {
    awsRequestId: headers["lambda-runtime-aws-request-id"],
    invokedFunctionArn: headers["lambda-runtime-invoked-function-arn"],
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: given ? JSON.parse(given) : undefined,
    callbackWaitsForEmptyEventLoop: true,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
  };
}

function call(handler, event, about) {
  return new Promise((resolve, reject) => {
    const done = (error, result) => (error ? reject(error) : resolve(result));
    const returned = handler(event, about, done);
    if (returned && typeof returned.then === "function") returned.then(resolve, reject);
    else if (handler.length < 3) resolve(returned);
  });
}

function errorBody(error) {
  const known = error instanceof Error;
  return JSON.stringify({
    errorType: known ? error.name : typeof error,
    errorMessage: known ? error.message : String(error),
    trace: known && error.stack ? error.stack.split("\n").slice(0, 50) : [],
  });
}

// The secrets that are variables of the environment, from their files: FAAS_SECRETS says which. No process is started
// with a value in its environment, where others on the machine could read it.
function takeSecrets() {
  const pairs = process.env.FAAS_SECRETS;
  if (!pairs) return;
  delete process.env.FAAS_SECRETS;
  for (const pair of pairs.split(",")) {
    const [variable, name] = pair.split("=");
    process.env[variable] = fs.readFileSync(`/run/secrets/${name}`, "utf8");
  }
}

async function main() {
  takeSecrets();
  const api = new RuntimeApi(process.env.AWS_LAMBDA_RUNTIME_API);
  let handler;
  try {
    handler = await load(process.env._HANDLER || "");
  } catch (error) {
    process.stderr.write(`${error && error.stack ? error.stack : error}\n`);
    await api.request("POST", "init/error", errorBody(error));
    process.exit(1);
  }
  for (let event = await api.next(); ; ) {
    const { headers, body } = event;
    const id = headers["lambda-runtime-aws-request-id"];
    if (headers["lambda-runtime-trace-id"]) process.env._X_AMZN_TRACE_ID = headers["lambda-runtime-trace-id"];
    if (handler[STREAMS]) {
      await callStreaming(api, id, handler, JSON.parse(body), context(headers));
      event = await api.next();
      continue;
    }
    let target = `invocation/${id}/response`;
    let answer;
    try {
      const result = await call(handler, JSON.parse(body), context(headers));
      answer = JSON.stringify(result === undefined ? null : result);
    } catch (error) {
      process.stderr.write(`${error && error.stack ? error.stack : error}\n`);
      target = `invocation/${id}/error`;
      answer = errorBody(error);
    }
    event = await api.respond(target, answer);
  }
}

process.on("uncaughtException", (error) => {
  process.stderr.write(`${error && error.stack ? error.stack : error}\n`);
  process.exit(1);
});
// From the event loop both times, so that traces of errors at the start are the same.
if (process.env.FAAS_STEM) waitForAssignment().then(() => setImmediate(main));
else setImmediate(main);
