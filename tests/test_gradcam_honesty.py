"Tests of the tests: planted evidence is found, a map that ignores the model is caught, figures are readable."
import itertools, json

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F, torchvision.models as zoo
from PIL import ImageDraw
from torch import nn

from artinsight.data import CLASSES, STYLES
from artinsight.engine.heatmaps import border_mass, entropy, explanation_picture, map_grid, overlay, peaks
from artinsight.gradcam import GradCAM, captions, explain, gallery, map_pictures, right_and_wrong, several_models
from artinsight.trust.maps import (
    areas, deletion_insertion, honesty, honesty_figure, mean_interval, randomisation_test, rank_correlation,
    shift_stability, ssim, verdict)
from artinsight.engine.augment import normalise
from artinsight.engine.precision import PRECISIONS

SIDE, PATCH = 48, 12


def planted(n, seed):
    "Noise with a patch in the lower right corner, of the noise's own mean and spread, whose pattern is the class"
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, SIDE, SIDE, generator=rng), torch.randint(4, (n,), generator=rng)
    bars, steps = torch.arange(PATCH) // 2 % 2 * 2. - 1, torch.arange(PATCH) // (PATCH / 2) * 2. - 1
    kinds = torch.stack([bars.expand(PATCH, PATCH), bars.expand(PATCH, PATCH).T, torch.outer(bars, bars),
                         steps.expand(PATCH, PATCH)])
    x[:, :, -PATCH:, -PATCH:] = .6 * x[:, :, -PATCH:, -PATCH:] + .8 * kinds[y][:, None]
    return x, y


def net(seed, outputs=4):
    torch.manual_seed(seed)
    def block(a, b, stride):
        return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
    return nn.Sequential(block(3, 16, 1), block(16, 32, 2), block(32, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(32, outputs)).eval()


@pytest.fixture(scope='module')
def finder():
    "Trained for a few seconds to read the patch"
    model, (x, y) = net(0).train(), planted(512, 0)
    opt = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(32):
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            opt.step(), opt.zero_grad()
    return model.eval()


def share_in_corner(model, x): return (peaks(GradCAM(model)(x)) >= 1 - PATCH / SIDE).all(1).float().mean().item()


def test_planted_evidence_is_found_and_lost_with_random_weights(finder):
    x, y = planted(256, 1)
    assert (finder(x).argmax(1) == y).float().mean() > .95
    assert share_in_corner(finder, x) >= .9
    assert np.mean([share_in_corner(net(seed), x) for seed in range(1, 11)]) < .3


def test_verdicts(finder):
    x, _ = planted(48, 2)
    good, bad = honesty(GradCAM(finder), x), honesty(GradCAM(net(1)), x)
    assert good['verdict'] == ('better than random places and a centre blob, gone with random weights, '
                               'stable under a small shift')
    assert bad['verdict'] != good['verdict'] and bad['area']['gradcam'] < good['area']['gradcam'] / 10
    assert good['over_centre']['low'] > 0 and good['area']['gradcam'] > good['area']['centre']
    assert all(len(f['randomisation']) == 7 and f['layer'] == '2' and f['map_size'] == [12, 12] for f in (good, bad))
    json.dumps({k: v for k, v in good.items() if not isinstance(v, pd.DataFrame)})
    assert honesty(GradCAM(finder), x)['randomisation'].equals(good['randomisation']), 'the same every time'


def test_bf16_maps_of_a_trained_model_stay_near(finder):
    "What `precision='auto'` takes where the processor has it, whatever this one has"
    x, y = planted(64, 7)
    exact, rounded = (GradCAM(finder, precision=precision)(x, y)
                      for precision in (None, PRECISIONS['bf16 channels_last']))
    assert 0 < (rounded - exact).abs().max() <= .05
    assert share_in_corner(finder, x) >= .9 and (peaks(rounded) >= 1 - PATCH / SIDE).all(1).float().mean() >= .9


def test_a_map_that_ignores_the_model_is_caught(finder, monkeypatch):
    "An edge detector instead of Grad-CAM: it survives random weights, and the verdict must say so"
    x, _ = planted(32, 3)
    def edges(self, x, target=None):
        heat = F.avg_pool2d((x[..., 1:, 1:] - x[..., :-1, :-1]).abs().mean(1, keepdim=True), 4, 4, ceil_mode=True)[:, 0]
        return heat - heat.amin((1, 2), keepdim=True), self.predict(x)
    monkeypatch.setattr(GradCAM, 'run', edges)
    found = honesty(GradCAM(finder), x)
    assert found['randomised_rank'] > .99 and 'much the same with random weights' in found['verdict']


@pytest.mark.parametrize('change, words',
                         [(dict(empty=.6), 'mostly empty'), (dict(randomised_rank=.7), 'show the picture'),
                          (dict(randomised_rank=-.7), 'show the picture'),
                                           (dict(over_centre=dict(low=-.1, high=.1)), 'no better than a centre blob'),
                                           (dict(over_random=dict(low=-.2, high=-.1)), 'worse than random places'),
                                           (dict(shift_stability=dict(mean=.4)), 'not stable'),
                          (dict(shift_stability=dict(mean=None)), 'not stable')])
def test_each_rule_of_the_verdict(change, words):
    fine = dict(empty=0, randomised_rank=.1, over_centre=dict(low=.1, high=.2), over_random=dict(low=.1, high=.2),
                shift_stability=dict(mean=.9))
    assert verdict(fine).startswith('better than random places')
    assert words in verdict({**fine, **change})
    assert ';' not in verdict({**fine, **change})


def test_randomisation_leaves_the_model_and_the_random_state_alone(finder):
    x, before = planted(8, 4)[0], {k: v.clone() for k, v in finder.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    table = randomisation_test(GradCAM(finder), x)
    assert torch.rand(1) == expected and all(v.equal(before[k]) for k, v in finder.state_dict().items())
    assert table.layer.tolist() == ['5', '2.1', '2.0', '1.1', '1.0', '0.1', '0.0']
    resnet = randomisation_test(GradCAM(zoo.resnet18(num_classes=20).eval()), torch.randn(2, 3, 64, 64))
    assert resnet.layer.tolist() == ['fc', *(f'layer{i}.{j}' for i in (4, 3, 2, 1) for j in (1, 0)), 'bn1', 'conv1']


def test_deletion_and_insertion_on_a_model_that_counts_bright_pixels():
    "Logit 1 is the brightness of the upper left quarter: a map of that quarter deletes and inserts perfectly"
    class Corner(nn.Module):
        def __init__(self):
            super().__init__(); self.conv = nn.Conv2d(3, 1,
                                                      1); self.conv.weight.data.fill_(1); self.conv.bias.data.zero_()
        def forward(self, x):
            score = F.relu(self.conv(x))[:, :, :16, :16].mean((1, 2, 3)) * 40
            return torch.stack([torch.zeros_like(score) + 115, score], 1)   # 120 where all is there
    x = torch.zeros(4, 3, 32, 32)
    x[:, :, :16, :16] = 1
    area = areas(deletion_insertion(GradCAM(Corner(), 'conv'), x, 1))
    assert (area.gradcam > area.centre).all() and (area.gradcam > area.random).all() and (area.gradcam > .2).all()
    curves = deletion_insertion(GradCAM(Corner(), 'conv'), x, 1).set_index(['test', 'share']).probability.sort_index()
    nothing_left = Corner()(torch.zeros(1, 3, 32, 32)).softmax(1)[0, 1].item()
    assert curves.loc['deletion', 1.].tolist() == pytest.approx([nothing_left] * 12, abs=1e-6), 'grey: the mean colour'
    assert (curves.loc['insertion', 0.] > nothing_left).all(), 'blurred: some brightness is left'
    assert np.ptp(curves.loc['deletion', 0.]) < 1e-6
    assert np.ptp(curves.loc['insertion', 1.]) < 1e-6
    assert abs(curves.loc['deletion', 0.].iloc[0] - curves.loc['insertion', 1.].iloc[0]) < 1e-6


def test_shift_stability_follows_the_picture():
    class Bright(nn.Module):   # its map is the picture itself: perfectly equivariant
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 1, 1); self.conv.weight.data.fill_(1)
        def forward(self, x): return self.conv(x).mean((2, 3)) * torch.ones(1, 2)
    smooth = F.interpolate(torch.rand(3, 3, 6, 6), (32, 32), mode='bicubic')
    assert (shift_stability(GradCAM(Bright(), 'conv'), smooth, 0) > .999).all()
    fixed = GradCAM(Bright(), 'conv')   # a map that stays where it is while the picture moves
    still = fixed.run(smooth, 0)
    fixed.run = lambda x, target=None: still
    assert (shift_stability(fixed, smooth, 0) < .99).all()


def test_statistics_against_brute_force():
    maps = torch.rand(5, 7, 5)
    big = maps.repeat_interleave(100, 1).repeat_interleave(100, 2)   # 700 x 500 px: borders of 70 and 50 px, exactly
    inner = big[:, 70:-70, 50:-50].sum((1, 2))
    assert torch.allclose(border_mass(maps), 1 - inner / big.sum((1, 2)), atol=1e-5)
    p = (maps / maps.sum((1, 2), keepdim=True)).flatten(1)
    assert torch.allclose(entropy(maps), -(p * p.log()).sum(1) / np.log(35), atol=1e-5)
    from scipy.stats import spearmanr
    other = torch.rand(5, 7, 5).relu().sub(.5).relu()   # with ties
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps, other)]
    np.testing.assert_allclose(rank_correlation(maps, other), expected, atol=1e-5)
    assert (ssim(maps, maps.flip(0)) < .9).any() and torch.allclose(ssim(maps, maps), torch.ones(5))


def test_interval_covers_the_mean_and_leaves_gaps_out():
    values = np.r_[np.random.default_rng(0).normal(1, 1, 400), np.nan]
    found = mean_interval(values)
    assert found['n'] == 400 and found['low'] < 1 < found['high'] and .15 < found['high'] - found['low'] < .25
    assert mean_interval([np.nan]) == dict(mean=None, low=None, high=None, n=0)


# ---- explanations and figures

@pytest.fixture(scope='module')
def some():
    "A model with 20 outputs, and uint8 pictures"
    return net(3, 20), torch.randint(256, (6, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_explanations_are_plain_json_and_agree_with_the_model(some):
    model, images = some
    probs = model(normalise(images)).softmax(1)
    for target in (None, 'class', 'style', 'origin', 'AI', 'human', 'baroque', 'human_ukiyo_e', 3,
                   [0, 'AI', 'baroque', 'AI_baroque', 19, 'human']):
        answers = explain(model, images, target)
        assert json.loads(json.dumps(answers, allow_nan=False)) == answers and len(answers) == 6
        for answer, p in zip(answers, probs):
            assert answer['predicted'] == CLASSES[p.argmax()] == answer['top'][0]['class'] and len(answer['top']) == 5
            assert abs(answer['origin']['AI'] - p[:10].sum().item()) < 1e-4
            assert abs(sum(answer['origin'].values()) - 1) < 1e-4
            assert answer['map_size'] == [12, 12] == [len(answer['map']), len(answer['map'][0])]
            assert answer['style']['name'] in STYLES
            for name in ('peak', 'entropy', 'border_mass'): assert answer['empty'] == (answer[name] is None)
    assert [a['asked'] for a in answers] == ['AI_art_nouveau', 'AI', 'baroque', 'AI_baroque', 'human_ukiyo_e', 'human']


def test_explanations_of_saturated_probabilities(some):
    "Where the model is certain, other probabilities are exactly zero: nothing may become infinite"
    model = net(3, 20)
    with torch.no_grad(): model[-1].weight.mul_(1e4)
    for target in ('class', 'style', 'origin', 'human'):
        json.dumps(explain(model, some[1], target), allow_nan=False)


def test_batches_do_not_change_maps(some):
    model, images = some
    cam = GradCAM(model)
    whole, parts = map_pictures(cam, images, list(range(6))), map_pictures(cam, images, list(range(6)), batch=4)
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(whole, parts))


def texts(fig):
    "Boxes of all texts of a drawn figure, in pixels"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    hidden = {label for ax in fig.axes for axis in (ax.xaxis, ax.yaxis)
              for tick in axis.get_major_ticks() + axis.get_minor_ticks()
              if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
              for label in (tick.label1, tick.label2)}
    found = [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in found], fig.bbox


def assert_readable(fig, overlap=1.):
    boxes, page = texts(fig)
    assert boxes
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.width + 1 and box.y1 <= page.height + 1
        assert inside, f'{text!r} is cut'
    for i, (a, one) in enumerate(boxes):
        for b, other in boxes[i + 1:]:
            wide = min(one.x1, other.x1) - max(one.x0, other.x0)
            high = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert wide <= overlap or high <= overlap, f'{a!r} lies on {b!r}'


def test_no_label_is_cut_or_covered_even_the_longest(some):
    model, images = some
    longest = CLASSES.index('human_post_impressionism')
    probs = torch.full((6, 20), .01)
    probs[:, longest] = .81
    cam, truth = GradCAM(model), [CLASSES.index('AI_post_impressionism')] * 6
    maps, _ = map_pictures(cam, images)
    maps[2] = 0
    assert_readable(gallery(images, maps, probs, truth, range(6)))
    assert_readable(gallery(images, maps, probs, [longest] * 6, [1]))
    assert_readable(gallery(images, maps, probs, truth, []))
    assert_readable(several_models({'resnet18_augmented\n32 px': (cam, 32), 'resnet18_best\n48 px': (cam, 48)}, images,
                                   truth))
    assert_readable(several_models({'three\nlines\nof name': (cam, 32)}, images[:2], truth[:2]))
    assert_readable(map_grid(images[:1], {'why this class?': maps[:1]}, ['x']))


@pytest.fixture
def written(monkeypatch):
    "Each text that Pillow writes: its canvas, the words and their box"
    seen, plain = [], ImageDraw.ImageDraw.text
    def text(self, xy, words, fill, font, anchor):
        seen.append((self.im, words, self.textbbox(xy, words, font, anchor)))
        plain(self, xy, words, fill, font, anchor)
    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', text)
    return seen


@pytest.mark.parametrize('target', ['class', 'human_post_impressionism', 'origin'])
def test_no_word_of_an_explanation_is_cut_or_covered(some, written, target):
    model, images = some
    answer = explain(model, images[:1], target)[0]
    longest = dict(zip(('class', 'probability'), ('human_post_impressionism', 1.)))
    page = explanation_picture(images[0],
                               {**answer, 'predicted': longest['class'], 'top': [longest, *answer['top'][1:]]})
    assert len(written) == 17, "three headings, four on the scale, five classes with shares"
    for canvas, words, (left, top, right, bottom) in written:
        assert left >= 0 and top >= 0 and right <= canvas.size[0] and bottom <= canvas.size[1], f'{words!r} is cut'
    for (canvas, a, one), (other_canvas, b, other) in itertools.combinations(written, 2):
        wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
        assert canvas is not other_canvas or wide <= 0 or high <= 0, f'{a!r} lies on {b!r}'
    picture, marked = (np.asarray(page)[60:300, left:left + 240] for left in (20, 298))
    assert picture.std() > 10 and not np.array_equal(picture, marked), 'picture and map are there'


def test_empty_maps_are_named_not_drawn(some, written):
    model, images = some
    labels = [t for t, _ in texts(map_grid(images, {'why?': torch.zeros(6, 4, 4)}, ['x'] * 6))[0]]
    assert sum('nothing speaks for it' in t for t in labels) == 6
    answer = explain(model, images[:1])[0]
    answer.update(empty=True, map=np.zeros((4, 4)).tolist(), map_size=[4, 4])
    page = np.asarray(explanation_picture(images[0], answer))
    assert any('nothing speaks for it' in words for _, words, _ in written)
    assert np.array_equal(page[52:308, 10:266], page[52:308, 288:544]), 'the picture as it is, without a veil'


def test_honesty_figure_is_readable(finder):
    found = honesty(GradCAM(finder), planted(8, 6)[0])
    assert_readable(honesty_figure(found, 'resnet18_augmented'), overlap=3)


def test_overlay_blends_and_keeps_the_size():
    image = torch.randint(256, (3, 40, 40), dtype=torch.uint8)
    plain = image.permute(1, 2, 0).numpy()
    heat = torch.rand(5, 5)
    assert np.array_equal(overlay(image, heat, 0), plain)
    assert np.array_equal(overlay(plain, heat.numpy(), .5), overlay(image, heat, .5))
    full = overlay(image, heat / heat.max(), 1)
    assert full.shape == (40, 40, 3) and full.dtype == np.uint8 and len(np.unique(full.reshape(-1, 3), axis=0)) > 20


def test_choice_of_pictures():
    probs = np.eye(4)[[0, 1, 2, 3, 0, 1]] * np.array([.5, .6, .7, .8, .9, 1])[:, None]
    truth = np.array([0, 1, 0, 0, 1, 0])
    right, wrong = right_and_wrong(probs, truth)
    assert sorted(right) == [0, 1] and sorted(wrong) == [2, 3, 4, 5]
    assert right_and_wrong(probs, truth, seed=0)[1].tolist() == wrong.tolist()
    told = captions(np.eye(20)[[0, 5]], [0, 6])
    assert told == ['right, 100%\nAI_art_nouveau', 'said, 100%\nAI_realism\ntrue, 0%\nAI_renaissance']
