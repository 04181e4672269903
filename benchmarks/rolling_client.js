// One client process of the rolling update that is not Python; see rolling_client.py, whose arguments
// these are, less the first. Of ours it uses nothing but the proto.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const [address, expectedPath, rowsPath, concurrency, retries, roundRobin] = process.argv.slice(2);
const PROGRESS_CALLS = 50;
const PAUSE_MILLISECONDS = 100; // after a failure, see rolling_client.py
const TIMEOUT_MILLISECONDS = 60_000;
const SERVICE = 'ganserve.v1.ImageGenerationService';

// What any client may give its gRPC library, as docs/other-clients.md has it. This library knows no
// health checks of servers, so those that drain are left only when they refuse.
const serviceConfig = {
  loadBalancingConfig: [{ [roundRobin === '1' ? 'round_robin' : 'pick_first']: {} }],
  methodConfig: [],
};
if (retries === '1') {
  serviceConfig.methodConfig.push({
    name: [{ service: SERVICE }],
    retryPolicy: {
      maxAttempts: 5,
      initialBackoff: '0.2s',
      backoffMultiplier: 3,
      maxBackoff: '6s',
      retryableStatusCodes: ['UNAVAILABLE', 'CANCELLED'],
    },
  });
}

const definition = protoLoader.loadSync('ganserve/v1/image_generation.proto', {
  includeDirs: [path.join(__dirname, '..', 'protos')],
  keepCase: true,
  longs: String, // a seed has 64 bits, a JavaScript number 53
});
const { ganserve } = grpc.loadPackageDefinition(definition);
const service = new ganserve.v1.ImageGenerationService(
  address,
  grpc.credentials.createInsecure(),
  {
    'grpc.service_config': JSON.stringify(serviceConfig),
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
  },
);
const expected = JSON.parse(fs.readFileSync(expectedPath, 'utf8'));
const seeds = Object.keys(Object.values(expected)[0]);
const rows = fs.createWriteStream(rowsPath);
let calls = 0;
let underWay = 0;
let stopping = false;

const now = () => Number(process.hrtime.bigint()) / 1e9;

function finish() {
  service.close();
  rows.end();
}

function enter(begin, seed, error, reply) {
  const times = `${begin.toFixed(6)},${(now() - begin).toFixed(6)}`;
  if (error) {
    rows.write(`${times},${grpc.status[error.code]},none,${JSON.stringify(error.details)}\n`);
  } else {
    const right = expected[reply.model.version]?.[seed] === reply.pixels.toString('hex');
    rows.write(`${times},OK,${right ? 'right' : 'wrong'},\n`);
  }
  calls += 1;
  if (calls % PROGRESS_CALLS === 0) console.log(calls);
}

function call() {
  if (stopping) {
    underWay -= 1;
    if (underWay === 0) finish();
    return;
  }
  const seed = seeds[Math.floor(Math.random() * seeds.length)];
  const begin = now();
  const request = { seeds: { values: [seed] }, format: 'IMAGE_FORMAT_RAW' };
  service.GenerateImages(request, { deadline: Date.now() + TIMEOUT_MILLISECONDS }, (error, reply) => {
    enter(begin, seed, error, reply);
    if (error) setTimeout(call, PAUSE_MILLISECONDS);
    else setImmediate(call);
  });
}

process.stdin.on('end', () => {
  stopping = true;
});
process.stdin.resume();
underWay = Number(concurrency);
for (let index = 0; index < underWay; index += 1) call();
