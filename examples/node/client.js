// Asks a ganserve for the images of some seeds and writes one PNG file a seed.
//
//   node client.js --address localhost:50051 --seeds 0,7,12 --out images
//   node client.js --address localhost:50051 --seeds 0,7,12 --out images --stream
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '..', '..', 'protos');
const DEADLINE_MILLISECONDS = 30_000;

function connect(address) {
  const definition = protoLoader.loadSync('ganserve/v1/image_generation.proto', {
    includeDirs: [PROTOS],
    keepCase: true,
    longs: String, // a seed has 64 bits, a JavaScript number 53
    enums: String,
    defaults: true,
  });
  const { ganserve } = grpc.loadPackageDefinition(definition);
  return new ganserve.v1.ImageGenerationService(address, grpc.credentials.createInsecure(), {
    'grpc.max_receive_message_length': -1, // the caller decides how much it asks for
    // A server's machine that vanishes closes no connection.
    'grpc.keepalive_time_ms': 20_000,
    'grpc.keepalive_timeout_ms': 10_000,
  });
}

// Yields one reply with all images.
async function* generateImages(service, request, options) {
  yield await new Promise((resolve, reject) => {
    service.GenerateImages(request, options, (error, reply) =>
      error ? reject(error) : resolve(reply),
    );
  });
}

// Yields replies of some images each, as they are made; the server waits for a slow reader.
async function* streamImages(service, request, options) {
  yield* service.StreamImages(request, options);
}

async function main() {
  const { values: flags } = parseArgs({
    options: {
      address: { type: 'string', default: 'localhost:50051' },
      model: { type: 'string', default: '' },
      seeds: { type: 'string', default: '0' },
      out: { type: 'string', default: 'images' },
      stream: { type: 'boolean', default: false },
    },
  });
  const seeds = flags.seeds.split(',');
  const wrong = seeds.find((seed) => !/^\d+$/.test(seed) || BigInt(seed) >= 2n ** 64n);
  if (wrong !== undefined) {
    throw new Error(`--seeds: expected integers from 0 to 2^64 - 1 such as 0,7,12, got ${wrong}`);
  }
  const request = {
    model_name: flags.model,
    seeds: { values: seeds },
    format: 'IMAGE_FORMAT_PNG',
  };
  const service = connect(flags.address);
  const options = { deadline: Date.now() + DEADLINE_MILLISECONDS };
  const call = flags.stream ? streamImages : generateImages;
  fs.mkdirSync(flags.out, { recursive: true });
  try {
    for await (const reply of call(service, request, options)) {
      reply.images.forEach((image, index) => {
        const file = path.join(flags.out, `${reply.seeds[index]}.png`);
        fs.writeFileSync(file, image);
        console.log(file);
      });
    }
  } finally {
    service.close();
  }
}

main().catch((error) => {
  const isStatus = error.code in grpc.status;
  console.error(isStatus ? `${grpc.status[error.code]}: ${error.details}` : error.message);
  process.exitCode = 1;
});
