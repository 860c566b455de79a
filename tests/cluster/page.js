// A page that translates by gRPC-Web. It knows the contract by the descriptors that Envoy has, without generated code.
import { createFileRegistry, fromBinary, fromJson, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

async function connected(baseUrl) {
  const descriptors = new Uint8Array(await (await fetch("dragoman.binpb")).arrayBuffer());
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
  const service = registry.getService("dragoman.v1.TranslationService");
  return { registry, service, client: createClient(service, createGrpcWebTransport({ baseUrl })) };
}

// The answer as JSON has it, or the code and the reason of an error.
globalThis.translate = async (baseUrl, request, timeoutMs) => {
  const { registry, service, client } = await connected(baseUrl);
  const { input, output } = service.method.translate;
  try {
    return toJson(output, await client.translate(fromJson(input, request), { timeoutMs }), { registry });
  } catch (error) {
    const { code, rawMessage } = ConnectError.from(error);
    const [info] = ConnectError.from(error).findDetails(registry.getMessage("google.rpc.ErrorInfo"));
    return { code: Code[code], message: rawMessage, reason: info?.reason };
  }
};

// What a stream brings, message by message.
globalThis.stream = async (baseUrl, request) => {
  const { registry, service, client } = await connected(baseUrl);
  const { input, output } = service.method.streamTranslation;
  const events = [];
  for await (const event of client.streamTranslation(fromJson(input, request))) {
    events.push(toJson(output, event, { registry }));
  }
  return events;
};
