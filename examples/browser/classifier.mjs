// A classifier in ONNX Runtime Web: pixels in, probabilities out. The file is the one that `repquant` writes.

// Normalized planes (1, 3, H, W) of RGBA pixels, as canvas gives them, with the mean and deviation of each channel.
export function normalized(rgba, side, mean, std) {
  const planes = new Float32Array(3 * side * side);
  for (let pixel = 0; pixel < side * side; pixel++)
    for (let channel = 0; channel < 3; channel++)
      planes[channel * side * side + pixel] = (rgba[4 * pixel + channel] / 255 - mean[channel]) / std[channel];
  return planes;
}

export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

export class Classifier {
  // `ort` is the package onnxruntime-web, `file` an address or the bytes of an ONNX file.
  static async open(ort, file) {
    const classifier = new Classifier();
    classifier.ort = ort;
    classifier.session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    return classifier;
  }

  // Logits of normalized images in one array, and the milliseconds that they took.
  async run(images, shape) {
    const input = new this.ort.Tensor("float32", images, shape);
    const started = performance.now();
    const outputs = await this.session.run({ [this.session.inputNames[0]]: input });
    return { logits: outputs[this.session.outputNames[0]].data, ms: performance.now() - started };
  }
}
