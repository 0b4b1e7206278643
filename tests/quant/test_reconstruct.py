import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from repquant.errors import InputError
from repquant.models.blocks import SHORTCUT_KINDS, DeployBlock
from repquant.models.shortcut import split_identity
from repquant.quant.bias_correction import correct_biases
from repquant.quant.calibrate import activation_ranges, collect_histograms
from repquant.quant.convert import layer_names, layer_pairs, quantize_model
from repquant.quant.ptq import PtqMethod, progress_total
from repquant.quant.reconstruct import ReconstructionOptions, reconstruct
from repquant.targets.target import resolve_target

FAST = ReconstructionOptions(steps=12, batch=32)
PLAIN = pytest.mark.parametrize("network", [False], indirect=True, ids=["plain"])
SQUEEZE_EXCITE = pytest.mark.parametrize("network", [True], indirect=True, ids=["squeeze-excite"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The networks are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photos(count, seed):
    """Smooth images: white noise has nothing that errors of neighbouring weights could cancel on."""
    generator = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(count, 3, 4, 6, generator=generator), size=(32, 48), mode="bicubic")
    brightness = torch.randn(count, 1, 1, 1, generator=generator) / 2
    return smooth + brightness + torch.randn(smooth.shape, generator=generator) / 10


@pytest.fixture
def images():
    return photos(16, seed=1)


class Setting:
    """A float model on a target, and its quantized forms."""

    def __init__(self, model, images, keep_float=(), **settings):
        self.model, self.images, self.keep_float = model, images, keep_float
        self.target = resolve_target("onnxruntime", **settings)
        histograms = collect_histograms(model, [images], keep_float)
        self.ranges = activation_ranges("max", histograms, self.target)

    def quantize(self, rounded=None):
        if rounded is None:
            return quantize_model(self.model, self.ranges, self.target, self.keep_float)
        return quantize_model(rounded.model, self.ranges, self.target, self.keep_float, rounded.weight_grids)

    def reconstruct(self, options=FAST, **arguments):
        return reconstruct(self.model, self.quantize(), self.images, options, **arguments)

    @torch.inference_mode()
    def error(self, quantized, images=None):
        images = self.images if images is None else images
        return (quantized(images) - self.model(images)).square().mean().item()


def same(first, second):
    """Whether two results are bit-identical."""
    states = (first.model.state_dict(), second.model.state_dict())
    grids = (first.weight_grids, second.weight_grids)
    return all(torch.equal(x, states[1][name]) for name, x in states[0].items()) and all(
        torch.equal(grid.scale, grids[1][name].scale) for name, grid in grids[0].items()
    )


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_the_network_comes_closer_to_float(network, images, granularity):
    """Also on images that nothing was learned from; and closer than with corrected biases."""
    setting = Setting(network, images, weight_bits=4)
    nearest = setting.quantize()
    rounded = setting.quantize(setting.reconstruct(ReconstructionOptions(steps=100, batch=64, granularity=granularity)))
    for unseen in (images, photos(16, seed=2)):
        assert setting.error(rounded, unseen) < 0.15 * setting.error(nearest, unseen)
    if not any("se." in name for name in layer_names(network)):  # the other network's output is nearly constant
        corrected = quantize_model(correct_biases(network, nearest, [images]), setting.ranges, setting.target)
        assert setting.error(rounded) < 0.6 * setting.error(corrected)


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 3}, {"per_tensor_weights": True}], ids=str)
def test_quantizing_the_result_finds_the_chosen_integers(network, images, settings):
    setting = Setting(network, images, **settings)
    before, rounded = setting.quantize(), setting.reconstruct()
    scheme = setting.target.weight
    pairs = layer_pairs(rounded.model, setting.quantize(rounded))
    assert tuple(pairs) == layer_names(network) == tuple(rounded.weight_grids)
    for name, (layer, quantized) in pairs.items():
        grid, counts = rounded.weight_grids[name], quantized.integers.weight_grid.step_counts(layer.weight)
        old = layer_pairs(network, before)[name]
        assert torch.equal(grid.scale, old[1].integers.weight_grid.scale), "the grid is kept"
        assert torch.equal(quantized.integers.float_weight(), layer.weight), "the weight is on the grid"
        assert quantized.integers.weight.min() >= scheme.qmin
        assert quantized.integers.weight.max() <= scheme.qmax
        float_counts = grid.step_counts(old[0].weight)
        assert ((counts - float_counts).abs() < 1 + 1e-4).all(), "one of the two integers next to it"
        assert torch.allclose(quantized.integers.float_bias(), layer.bias, atol=quantized.integers.bias_scale.max())


@PLAIN
def test_gains_fold_into_the_scales(network, images):
    setting = Setting(network, images, weight_bits=4)
    rounded = setting.reconstruct(replace(FAST, affine=True))
    pairs, old = layer_pairs(rounded.model, setting.quantize(rounded)), layer_pairs(network, setting.quantize())
    changed = 0
    for name, (layer, quantized) in pairs.items():
        scale, before = quantized.integers.weight_grid.scale, old[name][1].integers.weight_grid.scale
        assert torch.equal(scale, rounded.weight_grids[name].scale)
        assert torch.equal(quantized.integers.float_weight(), layer.weight)
        assert (scale / before - 1).abs().max() < 1
        changed += (scale != before).sum().item()
    assert changed > 0
    assert setting.error(setting.quantize(rounded)) < setting.error(setting.quantize())


@PLAIN
def test_gains_need_a_scale_for_each_channel(network, images):
    setting = Setting(network, images, per_tensor_weights=True)
    with pytest.raises(InputError, match=r"one per tensor; quantize the weights per channel, or .* without affine"):
        setting.reconstruct(replace(FAST, affine=True))


class Unusual(nn.Module):
    """Groups, dilation, string padding, reflected borders, layers out of order, one that is used twice, none unused."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)
        self.twice = nn.Conv2d(8, 8, 1, groups=8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding="same", dilation=2, groups=4)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect", bias=False)
        self.narrow = nn.Conv2d(8, 4, (1, 2), stride=(1, 2))
        self.unused = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        x = self.narrow(torch.relu(self.twice(torch.relu(self.twice(x)))))
        return self.last(x.permute(0, 2, 3, 1)).flatten(1)


def test_any_layers_in_any_order(images):
    torch.manual_seed(0)
    model = Unusual().eval()
    setting = Setting(model, images, keep_float=["unused"], weight_bits=4)
    rounded = setting.reconstruct(ReconstructionOptions(steps=100, batch=64, granularity="block"))
    assert setting.error(setting.quantize(rounded)) < 0.5 * setting.error(setting.quantize())
    assert rounded.model.first.bias is None
    assert "unused" not in rounded.weight_grids
    assert torch.equal(rounded.model.unused.weight, model.unused.weight)


@PLAIN
@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
def test_a_network_with_the_identity_apart(network, images, kind):
    setting = Setting(split_identity(network, kind), images, weight_bits=4)
    rounded = setting.reconstruct(ReconstructionOptions(steps=40, batch=64, granularity="block"))
    assert setting.error(setting.quantize(rounded)) < 0.5 * setting.error(setting.quantize())


@PLAIN
@pytest.mark.parametrize("kind", SHORTCUT_KINDS)
def test_the_end_of_a_block_is_behind_its_shortcut(network, images, kind):
    """With activations of few bits the shortcut is off too: only who sees the sum can make up for that."""
    split = split_identity(network, kind)
    setting = Setting(split, images, weight_bits=4, activation_bits=3)
    errors = {}
    for granularity in ("layer", "block"):
        options = ReconstructionOptions(steps=100, batch=64, granularity=granularity)
        quantized = setting.quantize(setting.reconstruct(options))
        ends = [form.stages[1](form.stages[0](form.stem(images))).detach() for form in (quantized, split)]
        errors[granularity] = (ends[0] - ends[1]).square().mean().item()
    assert errors["block"] < 0.9 * errors["layer"]


def test_a_layer_that_no_image_reaches_is_rounded_to_nearest(images):
    torch.manual_seed(0)
    model = Unusual().eval()
    setting = Setting(model, images, keep_float=["unused"], weight_bits=4)
    quantized = quantize_model(model, {**setting.ranges, "unused": (-1.0, 1.0)}, setting.target)
    rounded = reconstruct(model, quantized, images, FAST)
    assert torch.equal(rounded.model.unused.weight, quantized.unused.integers.float_weight())
    assert "unused" in rounded.weight_grids


def test_a_single_layer_is_a_model(images):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3)
    setting = Setting(model, images, weight_bits=3)
    rounded = setting.reconstruct(ReconstructionOptions(steps=100))
    assert setting.error(setting.quantize(rounded)) < 0.7 * setting.error(setting.quantize())


def test_the_rows_are_what_the_kernel_sees(images):
    """An exact problem: with inputs and weights on their grids the error is zero, and no weight has to move."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), nn.Flatten(2)).eval()
    pixels = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0)) / 255
    model[0].weight.data = torch.randint(-127, 128, model[0].weight.shape) / 127
    model[0].weight.data[:, 0, 0, 0] = 1.0
    setting = Setting(model, pixels)
    rounded = setting.reconstruct(ReconstructionOptions(steps=60))
    assert torch.allclose(rounded.model[0].weight, model[0].weight, atol=1e-6)
    assert torch.allclose(rounded.model[0].bias, model[0].bias, atol=1e-4)


@PLAIN
def test_dropped_inputs_and_absolute_errors(network, images):
    setting = Setting(network, images, weight_bits=4, activation_bits=5)
    plain = setting.reconstruct()
    for options in (replace(FAST, drop=0.5), replace(FAST, loss="mae")):
        other = setting.reconstruct(options)
        assert not same(plain, other)
        assert setting.error(setting.quantize(other)) < setting.error(setting.quantize())


@PLAIN
def test_layers_in_float_stay_as_they_are(network, images):
    setting = Setting(network, images, keep_float=["first", "last"])
    rounded = setting.reconstruct()
    names = layer_names(network)
    assert set(rounded.weight_grids) == set(names[1:-1])
    for name in (names[0], names[-1]):
        assert torch.equal(rounded.model.get_submodule(name).weight, network.get_submodule(name).weight)


def test_the_seed_decides_and_nothing_given_is_changed(network, images):
    setting = Setting(network, images)
    quantized, before = setting.quantize(), copy.deepcopy(network.state_dict())
    integers = copy.deepcopy(quantized.state_dict())
    first = reconstruct(network, quantized, images, FAST)
    torch.manual_seed(99)  # torch's global generator has no part in it
    again = reconstruct(network, quantized, images, FAST)
    assert same(first, again)
    assert not same(first, reconstruct(network, quantized, images, replace(FAST, seed=1)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(torch.equal(integers[key], value) for key, value in quantized.state_dict().items())
    for model in (network, quantized, first.model):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any(module.relu.inplace for module in model.modules() if isinstance(module, DeployBlock))


@PLAIN
def test_images_go_through_in_chunks_with_the_same_result(network, monkeypatch):
    images = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    setting = Setting(network, images)
    whole = setting.reconstruct()
    monkeypatch.setattr("repquant.quant.reconstruct._CHUNK", 3)
    for (name, x), y in zip(
        whole.model.state_dict().items(), setting.reconstruct().model.state_dict().values(), strict=True
    ):
        assert torch.allclose(x, y, atol=1e-3), name  # the float targets may differ in their last bit


@PLAIN
def test_rows_are_bounded(network, images, monkeypatch):
    setting = Setting(network, images, weight_bits=4)
    monkeypatch.setattr("repquant.quant.reconstruct._ROW_BYTES", 1)
    rounded = setting.reconstruct(replace(FAST, drop=0.5))  # one row of each image
    assert rounded.model.head.weight.isfinite().all()


class Interruption:
    """Stops a run after a number of steps, as Ctrl-C does."""

    def __init__(self, after):
        self.left = after

    def __call__(self, steps):
        self.left -= steps
        if self.left < 0:
            raise KeyboardInterrupt


@SQUEEZE_EXCITE
@pytest.mark.parametrize("options", [FAST, replace(FAST, drop=0.5, affine=True, granularity="block")], ids=["", "all"])
def test_an_interrupted_run_goes_on_to_the_same_result(network, images, tmp_path, options):
    setting, file = Setting(network, images, weight_bits=4), tmp_path / "reconstruction.safetensors"
    total = progress_total(network, PtqMethod(rounding="learned", reconstruction=options), len(images))
    assert total == options.steps * len(layer_names(network))
    reported = []
    expected = setting.reconstruct(options, on_step=reported.append)
    assert sum(reported) == total

    for after in (2.5, 1.5):  # in the middle of the third layer; then, two layers later, again
        with pytest.raises(KeyboardInterrupt):
            setting.reconstruct(options, on_step=Interruption(after * options.steps + _finished(file)), checkpoint=file)
    assert _finished(file) // options.steps == 3
    for _ in range(2):  # the second time everything is in the file
        reported.clear()
        resumed = setting.reconstruct(options, on_step=reported.append, checkpoint=file)
        assert sum(reported) == total
        assert same(resumed, expected)
    assert reported == [total]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def _finished(file):
    """Steps that the layers in a checkpoint took."""
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as checkpoint:
        return FAST.steps * sum(key.endswith("/integers") for key in checkpoint.keys())  # noqa: SIM118


@PLAIN
def test_a_checkpoint_of_other_arguments_is_refused(network, images, tmp_path):
    setting, file = Setting(network, images), tmp_path / "reconstruction.safetensors"
    setting.reconstruct(checkpoint=file)
    changed = copy.deepcopy(network)
    changed.head.bias.data[0] += 1e-3
    quantized = setting.quantize()
    coarse = Setting(network, images, weight_bits=6).quantize()
    wider = quantize_model(
        network, {name: (low, 1.1 * high) for name, (low, high) in setting.ranges.items()}, setting.target
    )
    for name, arguments in {
        "options": (network, quantized, images, replace(FAST, seed=3)),
        "model": (changed, quantized, images, FAST),
        "images": (network, quantized, images + 1e-3, FAST),
        "grids": (network, coarse, images, FAST),
        "grids ": (network, wider, images, FAST),
    }.items():
        message = rf"of another reconstruction, with other {name.strip()}; give .* or another file, or remove it"
        with pytest.raises(InputError, match=message):
            reconstruct(*arguments, checkpoint=file)


@PLAIN
def test_a_file_that_is_no_checkpoint_is_refused(network, images, tmp_path):
    setting, file = Setting(network, images), tmp_path / "reconstruction.safetensors"
    file.write_bytes(b"\x10something else")
    with pytest.raises(InputError, match="damaged or no checkpoint of a reconstruction"):
        setting.reconstruct(checkpoint=file)
    file.unlink()
    setting.reconstruct(checkpoint=file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        setting.reconstruct(checkpoint=file)


@PLAIN
def test_a_checkpoint_that_cannot_be_written_is_found_out_at_the_start(network, images, tmp_path):
    steps = []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write to"):
        Setting(network, images).reconstruct(on_step=steps.append, checkpoint=tmp_path / "file" / "checkpoint")
    assert not steps


@PLAIN
def test_the_folder_of_a_checkpoint_is_made(network, images, tmp_path):
    file = tmp_path / "a" / "b" / "checkpoint"
    Setting(network, images).reconstruct(checkpoint=file)
    assert file.is_file()


@PLAIN
def test_what_does_not_fit_is_refused(network, images):
    setting = Setting(network, images)
    with pytest.raises(InputError, match=r"shape \(3, 32, 48\) are no batch"):
        reconstruct(network, setting.quantize(), images[0], FAST)
    with pytest.raises(InputError, match="no batch"):
        reconstruct(network, setting.quantize(), images[:0], FAST)
    with pytest.raises(InputError, match="other layers than the float model"):
        reconstruct(nn.Conv2d(3, 4, 1), setting.quantize(), images, FAST)
    with pytest.raises(InputError, match="nothing to reconstruct"):
        reconstruct(network, network, images, FAST)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="unknown granularity 'stage' of the reconstruction; allowed are layer, block"):
        ReconstructionOptions(granularity="stage")
    with pytest.raises(InputError, match="steps"):
        ReconstructionOptions(steps=0)
