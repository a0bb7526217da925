#!/usr/bin/env node
// An evidence plugin that is not written in Go: who is on call, and whether somebody
// has taken a lock's trouble on. It reads a file, or an address that answers with the
// same JSON:
//
//   {"shifts": [{"who": "eve", "from": "2026-03-01T08:00:00Z", "until": "2026-03-01T20:00:00Z"}],
//    "acknowledged": [{"lock": "app.conf", "who": "eve", "until": "2026-03-01T13:00:00Z"}]}
//
// What a plugin in another language owes to aimlock, in order: the cookie, the socket,
// the handshake on stdout, Base, its kinds, and to end when it is asked to.
'use strict';

const fs = require('node:fs/promises');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const cookie = ['AIMLOCK_PLUGIN', 'b5b3e3c7c8f14c5f9a0d0c63f2a4d1e86f07b7d4a9d24e0f8e1f3a6c5d9b2e70'];
if (process.env[cookie[0]] !== cookie[1]) {
  console.error('oncall 1.0.0 is a plugin of aimlock (evidence) and is not run by hand: see aimlock plugin -help');
  process.exit(1);
}

// aimlock reads log lines in hclog's JSON from stderr.
const log = (level, message, more = {}) =>
  console.error(JSON.stringify({ '@level': level, '@message': message, '@timestamp': new Date().toISOString(), ...more }));

const load = (file) =>
  grpc.loadPackageDefinition(loader.loadSync(path.join(__dirname, file), { keepCase: true, longs: String, defaults: true }));
const api = load('plugin.proto').aimlock.plugin.v1;
const controller = load('go-plugin.proto').plugin;
const health = load('health.proto').grpc.health.v1;

const json = (v) => Buffer.from(JSON.stringify(v));
const fail = (code, reason, message) => Object.assign(new Error(message), { code, details: message, reason });

const info = {
  name: 'oncall', version: '1.0.0', sdk: 'node', protocol: 1, doc: 'Who is on call, and what they have taken on.',
  kinds: [{
    kind: 'evidence', capabilities: [],
    config: {
      blocks: [],
      attributes: [
        { name: 'source', type: 'string', required: true, doc: 'A file, or an address that begins with https:// or http://.' },
        { name: 'token', type: 'string', secret: true, doc: 'Sent to an address as a bearer token.' },
      ],
    },
    facts: [
      { name: 'on_call', type: 'string', doc: 'Who is on call; null if nobody is.' },
      { name: 'acknowledged', type: 'bool', doc: 'Whether somebody has taken the trouble of this lock on.' },
      { name: 'acknowledged_by', type: 'string', doc: 'Who; null if nobody has.' },
    ],
  }],
};

function problemsOf(config) {
  const out = [];
  if (!/^(https?:\/\/[^/]+|\/)/.test(config.source || '')) {
    out.push({ path: 'source', message: 'it must be an absolute path, or begin with https:// or http://' });
  }
  if (config.token && !/^https?:/.test(config.source || '')) {
    out.push({ path: 'token', message: 'a file is read without a token' });
  }
  return out;
}

const instances = new Map();
let last = 0;

const base = {
  async Info() { return info; },
  async Validate({ config }) { return { problems: problemsOf(JSON.parse(config)) }; },
  async Configure({ kind, config }) {
    if (kind !== 'evidence') throw fail(grpc.status.UNIMPLEMENTED, 'unsupported', `oncall is no ${kind}`);
    const parsed = JSON.parse(config);
    const problems = problemsOf(parsed);
    if (problems.length > 0) {
      throw fail(grpc.status.INVALID_ARGUMENT, 'invalid_config', problems.map((p) => `${p.path}: ${p.message}`).join('; '));
    }
    instances.set(String(++last), parsed);
    return { instance: String(last) };
  },
  async Release({ instance }) { instances.delete(instance); return {}; },
};

async function read(config, signal) {
  if (config.source.startsWith('/')) return JSON.parse(await fs.readFile(config.source, { encoding: 'utf8', signal }));
  const headers = config.token ? { authorization: `Bearer ${config.token}` } : {};
  const res = await fetch(config.source, { headers, signal });
  if (!res.ok) throw new Error(`it answers ${res.status}`);
  return res.json();
}

const known = (name, value) => ({ name, value: json(value), age_ms: 0 });
const line = (s) => String(s).replace(/[\x00-\x1f\x7f]+/g, ' ');

const evidence = {
  async Observe({ instance, lock }, signal) {
    const config = instances.get(instance);
    if (!config) throw fail(grpc.status.FAILED_PRECONDITION, 'no_instance', `instance ${instance} is not there`);
    let state;
    try {
      state = await read(config, signal);
      if (!Array.isArray(state.shifts) || !Array.isArray(state.acknowledged)) throw new Error('shifts and acknowledged are missing');
    } catch (err) {
      const why = line(`${config.source} cannot be read: ${err.message}`);
      return { facts: info.kinds[0].facts.map(({ name }) => ({ name, unknown: true, why })) };
    }
    const now = Date.now();
    const lasts = (e) => (!e.from || Date.parse(e.from) <= now) && (!e.until || now < Date.parse(e.until));
    const shift = state.shifts.find(lasts);
    const ack = state.acknowledged.find((a) => a.lock === (lock.name || lock.key) && lasts(a));
    return {
      facts: [known('on_call', shift ? line(shift.who) : null), known('acknowledged', Boolean(ack)), known('acknowledged_by', ack ? line(ack.who) : null)],
    };
  },
};

// unary makes gRPC's handler of an async function. What the caller no longer waits for
// is aborted.
const unary = (f) => (call, done) => {
  const abort = new AbortController();
  call.on('cancelled', () => abort.abort());
  f(call.request, abort.signal).then((res) => done(null, res), (err) => {
    if (err.code === undefined) log('error', err.message);
    done(Number.isInteger(err.code) ? err : { code: grpc.status.UNKNOWN, details: line(err.message) });
  });
};
const handlers = (methods) => Object.fromEntries(Object.entries(methods).map(([name, f]) => [name, unary(f)]));

async function main() {
  const server = new grpc.Server();
  server.addService(api.Base.service, handlers(base));
  server.addService(api.Evidence.service, handlers(evidence));
  server.addService(health.Health.service, handlers({ async Check() { return { status: 'SERVING' }; } }));
  server.addService(controller.GRPCController.service, handlers({
    async Shutdown() { setImmediate(end); return {}; },
  }));
  // The host gives a folder that only it and this process may enter, and expects the
  // socket in it.
  const socket = path.join(process.env.PLUGIN_UNIX_SOCKET_DIR, `oncall-${process.pid}.sock`);
  function end() {
    server.tryShutdown(async () => {
      await fs.rm(socket, { force: true });
      process.exit(0);
    });
    setTimeout(() => server.forceShutdown(), 500).unref();
  }
  process.on('SIGTERM', end);
  server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), (err) => {
    if (err) {
      log('error', `listen: ${err.message}`);
      process.exit(1);
    }
    // go-plugin's own version, the protocol's, and where: nothing else goes to stdout.
    process.stdout.write(`1|1|unix|${socket}|grpc\n`);
  });
}

main();
