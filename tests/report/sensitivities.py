"""Measurements as `analyze` makes them, with the figures that a test is about."""

from repquant.methods.divergence import Divergence
from repquant.methods.sensitivity import LayerSensitivity, Sensitivity


def divergence(kl):
    return Divergence(kl=kl, agreement=98.4375)


def layer(name, *, kind="conv3x3", share=None, without=10e-3, sigma=3.4):
    return LayerSensitivity(
        name=name,
        kind=kind,
        range_over_sigma=sigma,
        range_over_sigma_max=sigma and 594.04,
        diagonal_share=share,
        diagonal_ratio=None if share is None else 13.8,
        weight_sqnr_db=22.0,
        input_sqnr_db=46.34,
        only=divergence(0.5e-3),
        all_but=divergence(without),
    )


def measured(*layers, weights=9e-3, activations=1e-3, both=10e-3, histogram=None):
    return Sensitivity(
        images=256,
        weights=divergence(weights),
        activations=divergence(activations),
        both=divergence(both),
        layers=layers,
        histogram=histogram,
    )
