// Calls a server as Node's users would: by what reflection says, and by the .proto files.
//
// Usage: node node_peer.js HOST:PORT PROTO_FOLDER [CA [CERTIFICATE KEY]]; prints what it learned as JSON.
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { GrpcReflection } = require("grpc-js-reflection-client");

const [address, protoFolder, ca, certificate, key] = process.argv.slice(2);
const read = (file) => (file ? fs.readFileSync(file) : null);
const credentials = ca
  ? grpc.credentials.createSsl(read(ca), read(key), read(certificate))
  : grpc.credentials.createInsecure();
const TOKEN = process.env.DRAGOMAN_TOKEN;

function metadata() {
  const found = new grpc.Metadata();
  if (TOKEN) found.set("authorization", `Bearer ${TOKEN}`);
  return found;
}

function call(client, method, request) {
  return new Promise((resolve, reject) =>
    client[method](request, metadata(), { deadline: Date.now() + 60_000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    ),
  );
}

async function byReflection(version) {
  const reflection = new GrpcReflection(address, credentials, {}, version);
  const services = await reflection.listServices("*", metadata());
  const descriptor = await reflection.getDescriptorBySymbol("dragoman.v1.TranslationService", metadata());
  const { dragoman } = descriptor.getPackageObject({ keepCase: true, enums: String, oneofs: true });
  const client = new dragoman.v1.TranslationService(address, credentials);
  const request = { inputs: [{ text: "Good morning." }], source_language_code: "en", target_language_code: "fr" };
  const answer = await call(client, "translate", request);
  client.close();
  return { services, translation: answer.results[0].translation.text };
}

async function byFiles() {
  const options = { includeDirs: [protoFolder], enums: String, oneofs: true };
  const files = fs.readdirSync(protoFolder, { recursive: true }).filter((name) => name.endsWith(".proto"));
  const { dragoman, grpc: ofGrpc, inference } = grpc.loadPackageDefinition(loader.loadSync(files, options));
  const translation = new dragoman.v1.TranslationService(address, credentials);
  const health = new ofGrpc.health.v1.Health(address, credentials);
  const model = new inference.GRPCInferenceService(address, credentials);
  const request = { inputs: [{ text: "Good morning." }], sourceLanguageCode: "en", targetLanguageCode: "fr" };
  const answer = await call(translation, "translate", request);
  const { status } = await call(health, "check", { service: "inference.GRPCInferenceService" });
  const inferred = await call(model, "modelInfer", {
    parameters: { source_language: { stringParam: "en" }, target_language: { stringParam: "fr" } },
    inputs: [{ name: "text", datatype: "BYTES", shape: [1], contents: { bytesContents: [Buffer.from("Good morning.")] } }],
    outputs: [{ name: "translation" }],
  });
  [translation, health, model].forEach((client) => client.close());
  return {
    translation: answer.results[0].translation.text,
    status,
    inferred: inferred.outputs[0].contents.bytesContents[0].toString(),
  };
}

(async () => {
  const found = { byFiles: await byFiles() }; // first, as its errors have the code of the answer
  for (const version of ["v1", "v1alpha"]) found[version] = await byReflection(version);
  console.log(JSON.stringify(found));
  process.exit(0); // the reflection client keeps its channel open
})().catch((error) => {
  console.log(JSON.stringify({ code: error.code === undefined ? null : grpc.status[error.code], error: String(error.message) }));
  process.exit(1);
});
