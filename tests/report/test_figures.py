import pytest
from matplotlib.colors import to_hex

from repquant.methods.divergence import Divergence
from repquant.methods.sensitivity import LayerSensitivity, Sensitivity, StepHistogram
from repquant.report.figures import kl_figure, range_figure, weights_figure, write_figures


def layer(name, sigma, share=None, only=1e-3, without=4e-3):
    return LayerSensitivity(
        name=name,
        kind="conv3x3",
        range_over_sigma=sigma,
        range_over_sigma_max=sigma and 2 * sigma,
        diagonal_share=share,
        diagonal_ratio=None,
        weight_sqnr_db=None,
        input_sqnr_db=None,
        only=Divergence(kl=only, agreement=99.0),
        all_but=Divergence(kl=without, agreement=98.0),
    )


HISTOGRAM = StepHistogram(layer="identity", first=-2, diagonal=(0, 0, 0, 0, 3), others=(0, 50, 100, 50, 0))


@pytest.fixture
def sensitivity():
    whole = Divergence(kl=5e-3, agreement=98.0)
    return Sensitivity(
        images=8,
        weights=whole,
        activations=whole,
        both=whole,
        layers=(layer("stem", 4.0), layer("identity", 40.0, share=1.0, only=2e-3), layer("pool", None)),
        histogram=HISTOGRAM,
    )


def bars(axes):
    """Place -> height and color."""
    return {
        round(bar.get_x() + bar.get_width() / 2): (bar.get_height(), to_hex(bar.get_facecolor()))
        for bar in axes.patches
    }


def names(axes):
    return [text.get_text() for text in axes.get_xticklabels()]


def test_range_marks_layers_with_an_identity_and_leaves_out_those_without_one(sensitivity):
    (axes,) = range_figure(sensitivity.layers).axes
    assert names(axes) == ["stem", "identity"]
    (stem, blue), (identity, orange) = bars(axes)[0], bars(axes)[1]
    assert (stem, identity) == (4, 40)
    assert blue != orange
    assert list(axes.lines[0].get_ydata()) == [8, 80]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("identity" in text for text in texts)


def test_kl_of_each_layer_beside_the_whole(sensitivity):
    only, all_but = kl_figure(sensitivity).axes
    assert [height for height, _ in bars(only).values()] == [1, 2, 1]
    assert [height for height, _ in bars(all_but).values()] == [4, 4, 4]
    assert set(all_but.lines[0].get_ydata()) == {5}
    assert names(all_but) == ["stem", "identity", "pool"]


def test_weights_in_steps():
    (axes,) = weights_figure(HISTOGRAM).axes
    for patch, counts in zip(axes.patches, (HISTOGRAM.others, HISTOGRAM.diagonal), strict=True):
        values, edges, _ = patch.get_data()
        assert tuple(values) == counts
        assert tuple(edges) == (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)
    assert "sigma 0.7 steps" in axes.get_legend().get_texts()[0].get_text()


def test_without_identity_layers_and_without_weights_that_vary_and_the_same_each_time(tmp_path):
    whole = Divergence(kl=0.0, agreement=100.0)
    bare = Sensitivity(
        images=1, weights=whole, activations=whole, both=whole, layers=(layer("flat", None),), histogram=None
    )
    contents = []
    for _ in range(2):
        assert write_figures(bare, tmp_path) == ("range", "kl")
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"range.png", "range.svg", "kl.png", "kl.svg"}
    for name, content in contents[0].items():
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"<?xml")


def test_weights_of_a_layer_without_others(tmp_path):
    dead = StepHistogram(layer="dead", first=-1, diagonal=(0, 2, 0), others=(0, 0, 0))
    weights_figure(dead).savefig(tmp_path / "dead.svg")
