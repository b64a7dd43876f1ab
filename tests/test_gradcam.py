"Grad-CAM against its peers (captum, pytorch-grad-cam), against theory, and against evidence that we planted ourselves."
import runpy, sys, threading
from copy import deepcopy
from functools import cache
from pathlib import Path

import cv2, numpy as np, pytest, torch, torchvision.models as zoo
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM as PeerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from artinsight.data import CLASSES
from artinsight.engine.layers import default_layer, layers
from artinsight.gradcam import GradCAM, ask, scale

PEERS = [('resnet18', 224, 'layer4'), ('resnet18', 64, 'layer4'), ('resnet18', 64, 'layer3'),
         ('resnet18', 64, 'layer2.0'),
         ('resnet18', 32, 'layer2'), pytest.param('mobilenet_v2', 224, 'features', marks=pytest.mark.slow),
         ('mobilenet_v2', 64, 'features.13'), ('mobilenet_v2', 64, 'features.17.conv.2')]


@cache
def made(name, classes):
    "A model with random weights that reacts to its pictures: measured BatchNorm statistics, a head of useful weights"
    torch.manual_seed(0)
    model = zoo.get_model(name, weights=None, num_classes=classes)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None
        if isinstance(m, nn.Linear): nn.init.normal_(m.weight, std=.2)
    with torch.no_grad(): model.train()(torch.randn(8, 3, 96, 96))
    return model.eval()


def make(name, classes=20): return deepcopy(made(name, classes))


def pictures(n, size, seed=0): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def children(model, name): return dict(model.named_modules())[name]


@pytest.mark.parametrize('name, size, layer', PEERS)
def test_raw_maps_agree_with_captum(name, size, layer):
    model, x = make(name), pictures(4, size)
    for target in (None, 3, [0, 5, 11, 19]):
        asked = torch.tensor(ask(model(x).detach(), target))
        peer = LayerGradCam(model, children(model, layer)).attribute(x, asked, relu_attributions=True)[:, 0].detach()
        ours = GradCAM(model, layer)(x, target, raw=True)
        if target is None: assert (peer.amax((1, 2)) > 0).all()
        assert (ours - peer).abs().max() <= 1e-5 * max(1, peer.max())


@pytest.mark.parametrize('name, size, layer', PEERS)
def test_scaled_maps_agree_with_pytorch_grad_cam(name, size, layer):
    model, x = make(name), pictures(4, size)
    ours, asked = GradCAM(model, layer)(x), [ClassifierOutputTarget(i) for i in model(x).argmax(1).tolist()]
    assert (ours.amax((1, 2)) == 1).all()
    class AtLayer(PeerCAM):   # compared at the layer's resolution: no enlarging
        def get_target_width_height(self, _): return tuple(ours.shape[-2:])[::-1]
    with AtLayer(model, [children(model, layer)]) as cam: peer = torch.from_numpy(cam(x, asked))
    # the peer subtracts each map's smallest value before dividing; where the ReLU left no zero, so must we
    assert (scale(ours - ours.amin((1, 2), keepdim=True)) - peer).abs().max() <= 1e-5
    with PeerCAM(model, [children(model, layer)]) as cam: large = cam(x, asked)
    for mine, other in zip(peer.numpy(), large):
        mine = cv2.resize(mine, (size, size))
        np.testing.assert_allclose((mine - mine.min()) / np.ptp(mine), other, atol=1e-5)


@pytest.mark.parametrize('size', [64, 224])
def test_equals_classic_cam_where_a_linear_head_follows_global_pooling(size):
    model, x = make('resnet18'), pictures(3, size)
    seen = []
    handle = model.layer4.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad(): top = model(x).argmax(1)
    handle.remove()
    classic = torch.einsum('nc,nchw->nhw', model.fc.weight[top], seen[0]).relu() / seen[0].shape[-2:].numel()
    assert classic.max() > 0
    assert (GradCAM(model, 'layer4')(x, raw=True) - classic).abs().max() <= 1e-6 * classic.max()


def test_origin_and_style_are_the_gradients_that_they_claim_to_be():
    model, x = make('resnet18'), pictures(3, 64)
    acts = []
    model.layer3.register_forward_hook(lambda m, i, out: acts.append(out))
    logits = model(x)
    p = logits.softmax(1)
    ai = torch.tensor([c.startswith('AI') for c in CLASSES])
    style = torch.tensor([c.endswith('_baroque') for c in CLASSES])
    for target, by_hand in [('origin', (p[:, ai].sum(1) / p[:, ~ai].sum(1)).log()),
                            ('human', (p[:, ~ai].sum(1) / p[:, ai].sum(1)).log()),
                            ('baroque', logits[:, style].exp().sum(1).log())]:
        grad, = torch.autograd.grad(by_hand.sum(), acts[0], retain_graph=True)
        expected = (grad.mean((2, 3), keepdim=True) * acts[0]).sum(1).relu().detach()
        got = GradCAM(model, 'layer3')(x, target, raw=True)
        assert (got - expected).abs().max() <= 1e-6 and expected.max() > 0


LARGE = 'vgg11_bn', 'densenet121', 'convnext_tiny', 'resnext50_32x4d'  # take a second each


@pytest.mark.parametrize('name', ['alexnet', 'squeezenet1_1', 'googlenet', 'shufflenet_v2_x0_5', 'mobilenet_v3_small',
                                  'efficientnet_b0', 'regnet_y_400mf', 'mnasnet0_5',
                                  *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_default_layer_of_other_torchvision_cnns(name):
    kwargs = dict(init_weights=True) if name == 'googlenet' else {}
    torch.manual_seed(0)
    model, x = zoo.get_model(name, weights=None, num_classes=20, **kwargs).eval(), pictures(2, 96)
    cam = GradCAM(model)
    maps = cam(x, [1, 2])
    table = layers(model, 96).set_index('layer')
    assert maps.shape[1:] == tuple(table.loc[default_layer(model, 96), ['height', 'width']])
    assert min(maps.shape[1:]) >= 3
    assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1
    peer = LayerGradCam(model, children(model, cam.at((96, 96))))
    peer = peer.attribute(x, torch.tensor([1, 2]), relu_attributions=True)[:, 0].detach()
    raw = cam(x, [1, 2], raw=True)
    assert (raw - peer).abs().max() <= 1e-5 * max(1, peer.max())


def test_layers_before_work_in_place():
    "The layer's output is overwritten by the ReLU after it: the map must still be that of the output itself"
    class Plain(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace),
                                      nn.Conv2d(8, 8, 3), nn.ReLU(inplace=inplace))
            self.head = nn.Linear(8, 4)
        def forward(self, x): return self.head(self.body(x).mean((2, 3)))
    x = pictures(2, 16)
    for layer in ('body.0', 'body.1', 'body.2', 'body.3', 'body'):
        a, b = (GradCAM(Plain(inplace).eval(), layer)(x, 1, raw=True) for inplace in (True, False))
        assert a.equal(b) and a.max() > 0, layer


def state(model):
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()]


def test_model_is_left_exactly_as_found_also_after_an_error():
    model, x = make('resnet18').train(), pictures(2, 64)
    model.layer1.eval()
    for p in model.layer2.parameters(): p.requires_grad_(False)
    flags, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    needs = [p.requires_grad for p in model.parameters()]
    GradCAM(model)(x)
    for bad in (lambda: GradCAM(model, 'layer4')(x[:, :, :32, :32]), lambda: GradCAM(model)(x, 20),
                lambda: GradCAM(model)(x, 'nothing'),
                lambda: GradCAM(model)(x, [1]), lambda: GradCAM(model, 'fc')(x), lambda: GradCAM(model)(x[0])):
        with pytest.raises(ValueError): bad()
    with pytest.raises(RuntimeError): GradCAM(model, 'layer3')(x[:, :2])   # wrong number of channels: torch's own error
    assert state(model) == flags and torch.is_grad_enabled()
    assert all(v.equal(weights[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == needs and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('wrong, message',
                         [('layer4', 'layer2'), ('fc', 'layer2'), ('layer9', 'layer4'), ('', 'layer4')])
def test_layers_that_cannot_work_are_refused_in_one_line_naming_one_that_does(wrong, message):
    with pytest.raises(ValueError, match=message) as e: GradCAM(make('resnet18'), wrong)(pictures(1, 32))
    assert '\n' not in str(e.value)


def test_the_benchmark_refuses_a_1x1_layer_in_one_line(monkeypatch):
    script = Path(__file__).parent.parent/'benchmarks'/'gradcam.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--size', '32'])
    with pytest.raises(SystemExit, match="1x1 at 32x32 px: try 'layer2'") as end:
        runpy.run_path(str(script), run_name='__main__')
    assert '\n' not in str(end.value)


def test_empty_maps_stay_empty_and_empty_batches_are_fine():
    model = make('resnet18')
    with torch.no_grad(): model.fc.weight[3] = -1   # nothing ever speaks for class 3
    maps = GradCAM(model, 'layer4')(pictures(2, 64), 3)
    assert maps.equal(torch.zeros(2, 2, 2))
    assert GradCAM(model)(pictures(2, 64)[:0]).shape == (0, 4, 4)


def test_works_inside_no_grad_inference_mode_and_autocast_and_gives_the_same():
    model, x = make('resnet18'), pictures(2, 64)
    plain = GradCAM(model)(x, 1)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast('cpu', dtype=torch.bfloat16)):
        with context: assert (GradCAM(model)(x.clone(), 1) - plain).abs().max() < 1e-6
    assert not plain.requires_grad and plain.isfinite().all()


def test_two_threads_may_share_a_model():
    from concurrent.futures import ThreadPoolExecutor
    model, xs = make('resnet18'), [pictures(2, 64, seed) for seed in range(16)]
    cam = GradCAM(model, 'layer3')
    alone = [cam(x, raw=True) for x in xs]
    with ThreadPoolExecutor(4) as pool: together = list(pool.map(lambda x: cam(x, raw=True), xs))
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(alone, together))


# ---- layers that give something else than (n, channels, height, width)

class Tuple(nn.Module):
    "A block around torch's attention, whose layer gives a tuple (tokens, weights), as most attention code has it"
    def __init__(self):
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.weigh, self.lstm, self.head = nn.Softmax(-1), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 20)
        self.silent, self.marks, self.waves = nn.Conv2d(3, 8, 8, 8), Marks(), Waves()
    def forward(self, x):
        unused, maps = self.silent(x).detach().mean(), self.conv(x)
        tokens = maps.flatten(2).transpose(1, 2)
        heads = tokens.unflatten(2, (2, 4)).transpose(1, 2)
        mixed = self.weigh(heads @ heads.mT) @ heads   # (n, heads, tokens, tokens): four axes and no map
        tokens = self.attention(tokens, tokens, tokens)[0] + self.lstm(mixed.transpose(1, 2).flatten(2))[0]
        return self.head((tokens * self.marks(tokens)).mean(1)) + 0 * (unused + self.waves(maps).abs().mean().detach())


class Marks(nn.Module):
    def forward(self, x): return x.argmax(-1, keepdim=True)


class Waves(nn.Module):
    def forward(self, x): return torch.fft.fft2(x)


def swin(size=64):
    torch.manual_seed(0)
    model = zoo.swin_t(weights=None, num_classes=20).eval()
    nn.init.normal_(model.head.weight, std=.2)
    return model, pictures(2, size)


def test_channels_last_maps_are_those_of_the_same_layer_channels_first():
    "Swin's norm gives (n, h, w, channels), and its permute the same numbers as (n, channels, h, w)"
    model, x = swin(128)
    last, first = (GradCAM(model, name)(x, [1, 2], raw=True) for name in ('norm', 'permute'))
    assert last.shape == (2, 4, 4) and last.max() > 0 and torch.allclose(last, first, atol=1e-7)
    table = layers(model, 128).set_index('layer')
    told = table.loc[['norm', 'permute'], ['layout', 'channels', 'height', 'width']].values.tolist()
    assert told == [['nhwc', 768, 4, 4], ['nchw', 768, 4, 4]]
    assert GradCAM(model).at((128, 128)) == 'permute'


@pytest.mark.parametrize('inner', [2, 3, 4, 5])
def test_inside_a_convnext_block_height_and_width_are_the_spatial_ones(inner):
    "Between its two Permute modules a ConvNeXt block works channels last, also on pictures that are not square"
    torch.manual_seed(0)
    model, x = zoo.convnext_tiny(weights=None, num_classes=20).eval(), torch.randn(2, 3, 64, 96)
    name = f'features.5.8.block.{inner}'
    table = layers(model, (64, 96)).set_index('layer')
    assert table.loc[name, ['layout', 'height', 'width']].tolist() == ['nhwc', 4, 6]
    got, seen = GradCAM(model, name)(x, 3, raw=True), []
    model.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(out))
    grad, = torch.autograd.grad(model(x)[:, 3].sum(), seen[0])
    expected = (grad.mean((1, 2), keepdim=True) * seen[0]).sum(3).relu().detach()
    assert got.shape == (2, 4, 6) and expected.max() > 0 and (got - expected).abs().max() <= 1e-5 * expected.max()
    if inner == 5: assert torch.allclose(got, GradCAM(model, 'features.5.8.block.6')(x, 3, raw=True), atol=1e-7)


@pytest.mark.parametrize('layer, gives', [('attention', 'tuple'), ('lstm', 'tuple'), ('weigh', r'\(1, 2, 64, 64\)'),
                                          ('head', r'\(1, 20\)'), ('marks', 'torch.int64'),
                                          ('waves', 'torch.complex64'), ('attention.out_proj', 'nothing')])
def test_what_is_no_map_is_refused_by_what_it_is(layer, gives):
    cam = GradCAM(Tuple().eval(), layer)
    with pytest.raises(ValueError, match=f"layer '{layer}' gives {gives} .*: try 'conv'") as e: cam(pictures(1, 64))
    assert '\n' not in str(e.value)


def test_a_layer_without_a_way_to_the_answer_is_refused():
    cam = GradCAM(Tuple().eval(), 'silent')
    with pytest.raises(ValueError, match="'silent' has no part in the answer"): cam(pictures(1, 64))


def test_tokens_of_a_vision_transformer_are_refused_and_its_patches_are_not():
    "ViT takes pictures of one size, so that no size can follow: its convolution is known by its kind"
    torch.manual_seed(0)
    model = zoo.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=20).eval()
    nn.init.normal_(model.heads.head.weight)
    for layer in ('encoder', 'encoder.layers.encoder_layer_1', 'encoder.layers.encoder_layer_0.mlp'):
        cam = GradCAM(model, layer)
        with pytest.raises(ValueError, match=r"gives \(1, 17, 32\) .* try 'conv_proj'"): cam(pictures(1, 64))
    assert layers(model, 64).drop(columns='kind').values.tolist() == [['conv_proj', 'nchw', 32, 4, 4]]
    assert GradCAM(model)(pictures(2, 64), 3).shape == (2, 4, 4)


def test_windows_merged_into_the_batch_are_no_maps():
    "MaxViT cuts maps into windows: (n, windows, tokens, channels) has four axes, and none is a side of the picture"
    class Windows(nn.Module):
        def forward(self, x): return x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(2, 3).permute(0, 2, 3, 1)
    class Batched(nn.Module):
        def forward(self, x): return x.permute(0, 1, 3, 2).flatten(0, 1).unflatten(1, (-1, 4)).permute(0, 2, 1, 3)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Unflatten(0, (1, -1)), nn.Linear(16, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Windows(), Batched(), *head)
    for layer, gives in (('1', r'\(1, 4, 16, 8\)'), ('2', r'\(4, 4, 2, 16\)')):
        with pytest.raises(ValueError, match=f"gives {gives}"): GradCAM(model, layer)(pictures(1, 32))


def test_a_layer_that_is_called_twice_shows_its_last_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 3, 3, 2, 1), nn.Linear(3, 4)
        def forward(self, x): return self.head(self.conv(self.conv(x)).relu().mean((2, 3)))
    model, x = Twice().eval(), pictures(2, 32)
    acts = model.conv(model.conv(x))
    grad, = torch.autograd.grad(model.head(acts.relu().mean((2, 3)))[:, 1].sum(), acts)
    got, expected = GradCAM(model)(x, 1, raw=True), (grad.mean((2, 3), keepdim=True) * acts).sum(1).relu()
    assert got.shape == (2, 8, 8) and torch.allclose(got, expected, atol=1e-7)


def test_the_probe_leaves_the_model_as_found_also_where_it_takes_one_size_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 4))
    flags, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    assert layers(model, 8).layer.tolist() == ['0', '1']
    assert state(model) == flags and all(v.equal(weights[k]) for k, v in model.state_dict().items())


def test_all_layers_of_a_cnn_for_one_size_have_maps():
    "As the app's leaner model, whose convolutions over tiny maps are matrices: layers behind them are known"
    from artinsight.engine.inference import for_answers
    model, x = make('resnet18'), pictures(2, 32)
    lean = for_answers(model, 32).eval()
    assert set(layers(model, 32).layer) <= set(layers(lean, 32).layer)
    assert layers(lean, 32).set_index('layer').loc['layer4', ['layout', 'height', 'width']].tolist() == ['nchw', 1, 1]
    with pytest.raises(ValueError, match="map of 1x1 at 32x32 px: try 'layer2'"): GradCAM(lean, 'layer4')(x)
    assert (GradCAM(lean)(x, 1) - GradCAM(model)(x, 1)).abs().max() < 1e-3


def test_layers_are_known_while_the_model_works_in_another_thread():
    "Before: batches of the other thread were taken for the blank picture, and now and then no layer had a map."
    model, done = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval(), threading.Event()
    def work():
        while not done.is_set(): model(torch.zeros(5, 3, 32, 32))
    other = threading.Thread(target=work)
    other.start()
    try: seen = [len(layers(model, 32)) for _ in range(60)]
    finally: done.set(), other.join()
    assert set(seen) == {2}
