"Networks of timm and torchvision as encoders: trained, opened, probed, drawn, handed over."
import io, json, re
from contextlib import redirect_stdout
import numpy as np
import pytest
import torch
from packaging.version import Version

timm = pytest.importorskip('timm')

from recon_nb import InputError, export_encoder, load_pretrained, probe, train_gan
from recon_nb.backbones import set_stem
from recon_nb.cli import export
from recon_nb.contenders import as_contender, fingerprint
from recon_nb.config import get_preset
from recon_nb.encoder import check_encoder, make_encoder
from recon_nb.finetune import Recipe, param_groups, stages_of
from recon_nb.labelled import LabelledSet
from recon_nb.shapes import draw_shapes
from recon_nb.timm_folder import export_timm

PHOTOS, CLASSES = draw_shapes(48, size=64)
SMALL = dict(encoder='timm/test_resnet', size=64, width_dec=4, bs=16, epochs=1, progress=False)


@pytest.fixture(scope='module')
def home(tmp_path_factory): return tmp_path_factory.mktemp('backbone')

@pytest.fixture(scope='module')
def run(home): return train_gan(PHOTOS, 'improved', run_dir=home/'first', **SMALL)


def since_1_0_31(*values):
    "Small networks that older releases of timm don't have, or not with the maps of their stages."
    return pytest.param(*values, marks=pytest.mark.skipif(Version(timm.__version__) < Version('1.0.31'), reason='timm is older'))


@pytest.mark.parametrize('name,reductions', [
    ('timm/resnet18', (1,1,2,4,8)), ('torchvision/resnet18', (1,2,4,8)), ('timm/test_resnet', (2,4,8,16,32)),
    ('timm/test_convnext', None), ('timm/test_vit', (16,)*4), ('timm/test_efficientnet', None), since_1_0_31('timm/test_nfnet', None),
    since_1_0_31('timm/test_maxvit', None), ('timm/test_byobnet', None), ('timm/swin_tiny_patch4_window7_224', (4,8,16,32)),
    ('torchvision/mobilenet_v3_small', (2,4,8,16,32)), ('torchvision/regnet_x_400mf', None), ('torchvision/densenet121', None)])
def test_other_networks_keep_the_promise(name, reductions):
    size = 32 if 'resnet18' in name else 64
    enc = check_encoder(make_encoder(name, size=size), size)
    if reductions and 'vit' not in name: assert enc.reductions == reductions
    assert enc(torch.randn(2, 3, size, size)).shape[1] == enc.channels[-1]
    trained = [p for p in enc.parameters() if p.requires_grad]
    enc(torch.randn(2, 3, size, size)).square().sum().backward()
    assert all(p.grad is not None for p in trained), 'several processes would wait for its gradient'


@pytest.mark.parametrize('name,how,says', [
    ('timm/resnt18', {}, "Did you mean 'timm/resnet18'"), ('torchvision/resnt18', {}, "Did you mean 'torchvision/resnet18'"),
    ('timm/resnet18.a1_in1k', {}, 'names weights'), ('timm/test_convnext', dict(stem='cifar'), 'Leave stem out'),
    ('torchvision/vit_b_16', {}, 'not a sequence of parts'),
    ('timm/test_resnet', dict(size=72), 'power of two'), ('timmm/resnet18', {}, 'Accepted: paper, timm/..., torchvision/...')])
def test_what_can_not_work_is_said_in_a_sentence(name, how, says):
    with pytest.raises(InputError, match=re.escape(says)): make_encoder(name, **{'size': 64, **how})


def test_without_timm_the_answer_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(InputError, match=re.escape("pip install 'recon_nb[timm]'")): make_encoder('timm/resnet18')


@pytest.fixture(scope='module')
def resnet(home): # a small picture, and what is said of its stem
    said, small = io.StringIO(), dict(SMALL, encoder='timm/resnet18', size=32, bs=8, progress=True)
    with redirect_stdout(said): run = train_gan(PHOTOS[:10], 'improved', run_dir=home/'resnet', **small)
    return run, said.getvalue()


def test_the_stem_is_settled_by_the_size_noted_and_said(home, resnet):
    run, said = resnet
    assert "timm/resnet18, stem 'cifar': 4 x 4 places of 8 px in its last stage; its weights begin at random" in said
    assert json.loads((run.dir/'config.json').read_text())['stem'] == 'cifar'
    assert 'timm/resnet18' in repr(run) and 'width' not in repr(run)
    assert load_pretrained(run).config['architecture']['stem'] == 'cifar'
    with pytest.raises(InputError, match='encoder .paper. has no such choice'):
        train_gan(PHOTOS, 'improved', run_dir=home/'x', stem='cifar')
    with pytest.raises(InputError, match='has no such choice. It takes stem'):
        train_gan(PHOTOS, 'improved', run_dir=home/'x', **SMALL, between=False)


def test_second_round_resume_and_mixed_precision(home, run):
    photos = draw_shapes(150, size=64)[0] # enough places for the codes
    second = train_gan(photos, 'second-round', run_dir=home/'second', teacher=run.dir, precision='bf16',
                       **{k: v for k,v in SMALL.items() if k != 'width_dec'} | dict(bs=64))
    assert second.finished and second.task.target.outputs[0].stride == 32
    again = train_gan(photos, run_dir=home/'second', resume=True, epochs=2, progress=False)
    assert again.step == 2*second.step
    assert any(not torch.equal(v, again.encoder.state_dict()[k]) for k,v in second.encoder.state_dict().items())


def test_a_game_with_a_reading_decoder(home):
    run = train_gan(PHOTOS[:20], 'improved-gan', run_dir=home/'gan', width_d=4, **SMALL)
    assert run.reconstruct(PHOTOS[:2]).painted.shape == (2,64,64,3)


def test_scratch_is_the_same_architecture_by_seed(run):
    c = as_contender(None, like=run)
    a, b, other = (c.build(seed) for seed in (0, 0, 1))
    assert all(torch.equal(v, b.state_dict()[k]) for k,v in a.state_dict().items())
    assert not torch.equal(a.net.conv1[0].weight, other.net.conv1[0].weight)
    assert not any(p.isnan().any() for p in a.parameters())
    cfg = get_preset('improved', **{k: v for k,v in SMALL.items() if k != 'progress'})
    assert fingerprint(as_contender(None, like=cfg)) == fingerprint(c)


def test_every_kind_of_probe(run):
    data = LabelledSet('shapes', PHOTOS[:30], np.arange(30) % 3, PHOTOS[30:], np.arange(18) % 3, ('a','b','c'))
    for how in (dict(mode='knn'), dict(mode='linear'), dict(recipe=Recipe(steps=2, bs=8, epochs=1, layer_decay=.5))):
        row, = probe(run, data, labels_per_class=4, seeds=1, progress=False, **how).records()
        assert row['source']['encoder'] == 'timm/test_resnet' and 0 <= row['test_accuracy'] <= 1


def test_layers_of_a_wrapped_network_have_rates_of_their_own(run):
    model = torch.nn.Module()
    model.enc, model.head = make_encoder('timm/test_vit', size=64), torch.nn.Linear(2, 2)
    groups = param_groups(model, Recipe(layer_decay=.5))
    assert len(stages_of(model.enc)) > 1 and len({g['scale'] for g in groups}) > 2
    assert sum(p.numel() for g in groups for p in g['params']) == sum(p.numel() for p in model.parameters())


def test_out_and_in_again(home, run):
    x, own = load_pretrained(run).preprocess(PHOTOS[:4]), load_pretrained(run).encoder
    folder = home/'given'
    assert export([str(run.dir), '--timm', '-o', str(folder)]) == 0
    net = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=0).eval()
    file = export_encoder(run, home/'encoder.safetensors')
    with torch.no_grad():
        want = own(x)
        assert (net.forward_features(x)-want).abs().max() < 1e-6
        for source in (folder, file, run.dir): assert torch.equal(load_pretrained(source).encoder(x), want)
    config = json.loads((folder/'config.json').read_text())
    assert config['pretrained_cfg']['mean'] == [.5]*3 and config['pretrained_cfg']['input_size'] == [3,64,64]
    assert str(home) not in (folder/'config.json').read_text()+(folder/'README.md').read_text()
    assert type(load_pretrained(run).backbone) is type(net)


def test_a_network_of_one_size_is_made_for_it_again(home):
    run = train_gan(PHOTOS, 'improved', run_dir=home/'vit', **{**SMALL, 'encoder': 'timm/test_vit'})
    export_timm(run, home/'vit-timm')
    net = timm.create_model(f"local-dir:{home/'vit-timm'}", pretrained=True, num_classes=0).eval()
    x = load_pretrained(run).preprocess(PHOTOS[:2])
    with torch.no_grad():
        maps = net.forward_intermediates(x, norm=True, intermediates_only=True)
        assert (maps[-1]-run.encoder(x)).abs().max() < 1e-6
    vit = make_encoder('timm/vit_tiny_patch16_224', size=64)
    with pytest.raises(InputError, match='Is this the size it was made for'): as_contender(vit, size=96)


def test_begin_with_weights_of_any_kind(home, run):
    start = run.encoder.state_dict()
    begin = dict(SMALL, lr_g=0., seed=5)
    export_timm(run, home/'init')
    plain = timm.create_model('test_resnet', num_classes=7)
    plain.load_state_dict(load_pretrained(run).backbone.state_dict(), strict=False)
    torch.save(plain.state_dict(), home/'theirs.pth')
    file = export_encoder(run, home/'init.safetensors')
    for i,init in enumerate([run.dir, home/'init', file, home/'theirs.pth']):
        got = train_gan(PHOTOS, 'improved', run_dir=home/f'begun{i}', init=init, **begin)
        assert got.cfg.init_name == init.name and got.task.target.teacher is None
        assert all(torch.equal(v, start[k]) for k,v in got.encoder.state_dict().items() if v.dim() > 1), init
    init.unlink()
    assert train_gan(PHOTOS, run_dir=got.dir, resume=True, epochs=2, progress=False).finished # needs it no more
    assert load_pretrained(got).config['training']['init'] == 'theirs.pth'


def test_weights_of_another_network_are_refused(home, run):
    torch.save(timm.create_model('resnet18', num_classes=0).state_dict(), home/'resnet18.pth')
    torch.save(dict(state_dict='nothing'), home/'bad.pth')
    resnet = dict(SMALL, encoder='timm/resnet18', size=32, run_dir=home/'x')
    for says,how in [
        ("stem='own'", dict(resnet, init=home/'resnet18.pth')), ("encoder='timm/test_resnet'", dict(resnet, init=run.dir)),
        ('is missing there', dict(SMALL, init=home/'resnet18.pth')), ('holds no weights', dict(SMALL, init=home/'nowhere')),
        ("can't be read", dict(SMALL, init=home/'bad.pth'))]:
        with pytest.raises(InputError, match=re.escape(says)): train_gan(PHOTOS, 'improved', **{'run_dir': home/'x', **how})
    assert not (home/'x').exists()
    # without the stem in the way, they fit
    begun = train_gan(PHOTOS[:10], 'improved', **{**resnet, 'init': home/'resnet18.pth', 'stem': 'no-pool', 'bs': 8, 'run_dir': home/'fits'})
    assert begun.encoder.reductions == (2,2,4,8,16)


def test_a_changed_stem_is_said_and_its_lines_work(home, resnet):
    run = resnet[0]
    with pytest.warns(UserWarning, match="not timm's own"): folder = export_timm(run, home/'cifar-timm')
    lines, = re.findall(r'```python\n(.*?)```', (folder/'README.md').read_text(), re.S)
    made = {}
    exec(lines.replace('FOLDER', str(folder)), made)
    x = load_pretrained(folder).preprocess(PHOTOS[:2])
    with torch.no_grad(): assert (made['net'].eval().forward_features(x)-run.encoder(x)).abs().max() < 1e-6
    ours = set_stem(timm.create_model('resnet18', num_classes=0), 'cifar')
    ours.load_state_dict(load_pretrained(run).backbone.state_dict())


def test_the_drawing_shows_the_parts_that_run(run):
    from recon_nb.figures import draw_architecture
    drawn = draw_architecture(run).alt
    assert 'enc.net.layer4 96×2×2' in drawn and 'dec' in drawn


@pytest.mark.slow
def test_card(run):
    from recon_nb.card import model_card
    assert '# improved, timm/test_resnet, 64 px' in model_card(run)


@pytest.mark.slow
def test_onnx(home, run):
    ort = pytest.importorskip('onnxruntime')
    session = ort.InferenceSession(export_encoder(run, home/'e.onnx'))
    x = torch.randn(3, 3, 96, 64)
    with torch.no_grad(): want = load_pretrained(run).encoder.features(x)
    got = session.run(None, {'images': x.numpy()})
    assert max(np.abs(a-b.numpy()).max() for a,b in zip(got, want, strict=True)) < 1e-4
