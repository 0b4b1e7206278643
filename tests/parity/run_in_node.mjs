// node run_in_node.mjs PACKAGE MODEL IMAGES SHAPE LOGITS: run a file in ONNX Runtime Web on images in float32.
import fs from "node:fs";
import { pathToFileURL } from "node:url";

const [path, model, images, shape, logits] = process.argv.slice(2);
const ort = await import(pathToFileURL(`${path}/dist/ort.wasm.min.mjs`));
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });
const values = new Float32Array(new Uint8Array(fs.readFileSync(images)).buffer);
const input = new ort.Tensor("float32", values, shape.split(",").map(Number));
const outputs = await session.run({ [session.inputNames[0]]: input });
fs.writeFileSync(logits, new Uint8Array(outputs[session.outputNames[0]].data.buffer));
