"Grad-CAM against its peers (captum, pytorch-grad-cam), against theory, and against evidence that we planted ourselves."
import runpy, sys
from pathlib import Path

import cv2, numpy as np, pytest, torch, torchvision.models as zoo
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM as PeerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from artinsight.data import CLASSES
from artinsight.gradcam import GradCAM, ask, default_layer, layers, scale, score

PEERS = [('resnet18', 224, 'layer4'), ('resnet18', 64, 'layer4'), ('resnet18', 64, 'layer3'), ('resnet18', 64, 'layer2.0'),
         ('resnet18', 32, 'layer2'), ('mobilenet_v2', 224, 'features'), ('mobilenet_v2', 64, 'features.13'),
         ('mobilenet_v2', 64, 'features.17.conv.2')]


def make(name, classes=20):
    "A model with random weights that reacts to its pictures: BatchNorm statistics measured, a head with weights of a useful size"
    torch.manual_seed(0)
    model = zoo.get_model(name, weights=None, num_classes=classes)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None
        if isinstance(m, nn.Linear): nn.init.normal_(m.weight, std=.2)
    with torch.no_grad(): model.train()(torch.randn(8, 3, 96, 96))
    return model.eval()


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
    for target, by_hand in [('origin', (p[:, ai].sum(1) / p[:, ~ai].sum(1)).log()), ('human', (p[:, ~ai].sum(1) / p[:, ai].sum(1)).log()),
                            ('baroque', logits[:, style].exp().sum(1).log())]:
        grad, = torch.autograd.grad(by_hand.sum(), acts[0], retain_graph=True)
        expected = (grad.mean((2, 3), keepdim=True) * acts[0]).sum(1).relu().detach()
        got = GradCAM(model, 'layer3')(x, target, raw=True)
        assert (got - expected).abs().max() <= 1e-6 and expected.max() > 0


@pytest.mark.parametrize('name', ['alexnet', 'vgg11_bn', 'squeezenet1_1', 'densenet121', 'googlenet', 'shufflenet_v2_x0_5', 'mobilenet_v3_small',
                                  'efficientnet_b0', 'regnet_y_400mf', 'convnext_tiny', 'mnasnet0_5', 'resnext50_32x4d'])
def test_default_layer_of_other_torchvision_cnns(name):
    kwargs = dict(init_weights=True) if name == 'googlenet' else {}
    torch.manual_seed(0)
    model, x = zoo.get_model(name, weights=None, num_classes=20, **kwargs).eval(), pictures(2, 96)
    cam = GradCAM(model)
    maps = cam(x, [1, 2])
    table = layers(model, 96).set_index('layer')
    assert maps.shape[1:] == tuple(table.loc[default_layer(model, 96), ['height', 'width']]) and min(maps.shape[1:]) >= 3
    assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1
    peer = LayerGradCam(model, children(model, cam.at((96, 96)))).attribute(x, torch.tensor([1, 2]), relu_attributions=True)[:, 0].detach()
    raw = cam(x, [1, 2], raw=True)
    assert (raw - peer).abs().max() <= 1e-5 * max(1, peer.max())


def test_layers_before_work_in_place():
    "The layer's output is overwritten by the ReLU after it: the map must still be that of the output itself"
    class Plain(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=inplace))
            self.head = nn.Linear(8, 4)
        def forward(self, x): return self.head(self.body(x).mean((2, 3)))
    x = pictures(2, 16)
    for layer in ('body.0', 'body.1', 'body.2', 'body.3', 'body'):
        a, b = (GradCAM(Plain(inplace).eval(), layer)(x, 1, raw=True) for inplace in (True, False))
        assert a.equal(b) and a.max() > 0, layer


def state(model):
    return [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]


def test_model_is_left_exactly_as_found_also_after_an_error():
    model, x = make('resnet18').train(), pictures(2, 64)
    model.layer1.eval()
    for p in model.layer2.parameters(): p.requires_grad_(False)
    flags, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    needs = [p.requires_grad for p in model.parameters()]
    GradCAM(model)(x)
    for bad in (lambda: GradCAM(model, 'layer4')(x[:, :, :32, :32]), lambda: GradCAM(model)(x, 20), lambda: GradCAM(model)(x, 'nothing'),
                lambda: GradCAM(model)(x, [1]), lambda: GradCAM(model, 'fc')(x), lambda: GradCAM(model)(x[0])):
        with pytest.raises(ValueError): bad()
    with pytest.raises(RuntimeError): GradCAM(model, 'layer3')(x[:, :2])   # wrong number of channels: torch's own error
    assert state(model) == flags and torch.is_grad_enabled()
    assert all(v.equal(weights[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == needs and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('wrong, message', [('layer4', 'layer2'), ('fc', 'layer2'), ('layer9', 'layer4'), ('', 'layer4')])
def test_layers_that_cannot_work_are_refused_in_one_line_naming_one_that_does(wrong, message):
    with pytest.raises(ValueError, match=message) as e: GradCAM(make('resnet18'), wrong)(pictures(1, 32))
    assert '\n' not in str(e.value)


def test_the_benchmark_refuses_a_1x1_layer_in_one_line(monkeypatch):
    script = Path(__file__).parent.parent/'benchmarks'/'gradcam.py'
    monkeypatch.setattr(sys, 'argv', [str(script), '--size', '32'])
    with pytest.raises(SystemExit, match="1x1 at 32x32 px: try 'layer2'") as end: runpy.run_path(str(script), run_name='__main__')
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
