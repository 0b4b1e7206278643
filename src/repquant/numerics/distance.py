"""Distances between a float tensor and its quantized counterpart."""

import torch
from torch import Tensor


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB: 10 log10(sum r^2 / sum (r - a)^2).

    It is inf where the two are equal, and -inf where only the reference is zero.
    """
    reference, approximation = reference.double(), approximation.double()
    noise = (reference - approximation).square().sum()
    signal = reference.square().sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(signal / noise))


def softmax_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(reference) || softmax(logits)) in nats for each row: (N, K), (N, K) -> (N,)."""
    log_p = torch.log_softmax(reference_logits.double(), dim=1)
    log_q = torch.log_softmax(logits.double(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0.0)


def expected_drop(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """Return how much less likely the predicted class is, in the reference's own eyes: (N, K), (N, K) -> (N,).

    It is p[argmax reference] - p[argmax logits] with p = softmax(reference): 0 where both name the same class, never
    negative. Its mean estimates the drop of accuracy without labels, as far as the reference knows how sure it is.
    """
    p = torch.softmax(reference_logits.double(), dim=1)
    predicted = logits.argmax(1, keepdim=True)
    return p.amax(1) - p.gather(1, predicted).squeeze(1)


def cosine(reference: Tensor, approximation: Tensor) -> float:
    """Return the cosine of the angle between the two tensors, flattened; 1.0 where both are zero."""
    reference, approximation = reference.double().flatten(), approximation.double().flatten()
    norms = reference.norm() * approximation.norm()
    if norms == 0:
        return 1.0 if torch.equal(reference, approximation) else 0.0
    return float(reference.dot(approximation) / norms)
