"""What reading the code found, and no other test had asked: silent drops, choices without effect, side effects, tracebacks."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recon_nb import load_pretrained, train_gan
from recon_nb import protocols
from recon_nb.advice import _pretrain
from recon_nb.boxed import load_detection
from recon_nb.card import write_release
from recon_nb.checkpoint import load_tensors
from recon_nb.cli import reconstruct, table as shell_table
from recon_nb.columns import _name_labels
from recon_nb.config import get_preset
from recon_nb.core import InputError, append_jsonl, read_jsonl, write_atomic
from recon_nb.data import SETS, load_photos, split_photos
from recon_nb.encoder import Encoder
from recon_nb.evaluation import _KEPT, _last_grid, _write_snapshot
from recon_nb.labelled import load_labelled
from recon_nb.protocols import PROTOCOLS, estimate_hours
from recon_nb.records import read_rows
from recon_nb.run import GANRun, _finished_run, load_encoder
from recon_nb.segmented import load_segmentation
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
from recon_nb.state import toy_state
from recon_nb.tables import table
from recon_nb.widgets import NeighbourExplorer

TINY = dict(size=32, width=4, bs=4, progress=False, device='cpu')


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    "Ten updates in five epochs, weights kept after each."
    return train_gan(draw_shapes(9, size=40)[0], run_dir=tmp_path_factory.mktemp('kept')/'run', epochs=5, keep_every=1, **TINY)


@pytest.fixture
def photos(tmp_path):
    (tmp_path/'photos').mkdir()
    for i, x in enumerate(draw_shapes(24, size=32)[0]): Image.fromarray(x).save(tmp_path/'photos'/f'{i:02}.png')
    return [str(p) for p in sorted((tmp_path/'photos').iterdir())]


def test_a_release_of_an_epoch_holds_the_weights_of_that_epoch(kept, tmp_path):
    for epoch in (1, None):
        run = GANRun.load(kept.dir, epoch=epoch)
        folder = write_release(run, tmp_path/f'of-{epoch}')
        tensors, state = load_tensors(folder/'generator.safetensors')
        assert state['step'] == run.step and f'{run.step:,} updates' in (folder/'README.md').read_text()
        own = run.generator.state_dict()
        assert all(torch.equal(v, own[k]) for k, v in tensors.items())
        assert all(torch.equal(v, run.encoder.state_dict()[k]) for k, v in load_pretrained(folder).encoder.state_dict().items())


def test_a_table_that_calls_all_photos_training_photos_has_no_official_part(photos, tmp_path):
    listing = pd.DataFrame(dict(photo=photos, split='train'))
    found = load_photos(listing, size=16, cuts=dict(i_r=1.), progress=False)
    assert found.held_out is None and [len(p) for p in split_photos(found)] == [22, 2]
    assert [len(p) for p in split_photos(replace(found, held_out=np.arange(0)))] == [22, 2]
    listing.loc[:2, 'split'] = 'test'
    assert [len(p) for p in split_photos(load_photos(listing, size=16, cuts=dict(i_r=1.), progress=False))] == [21, 3]
    run = train_gan(pd.DataFrame(dict(photo=photos, split='train')), 'improved', run_dir=tmp_path/'run', max_steps=2, **TINY)
    assert run.metrics[-1]['n'] == 2 and np.isfinite(run.metrics[-1]['explained'])


def test_loggers_are_given_the_grid_of_the_look_just_taken(tmp_path):
    met = []
    def hook(st):
        if st.event == 'evaluate': met.append((st.metrics['step'], _last_grid(st)))
    train_gan(draw_shapes(9, size=40)[0], run_dir=tmp_path/'run', max_steps=5, epochs=9, hooks=hook, **TINY)
    assert met[-1][0] == 5 and all(g.name == f'epoch-{-(-step//2):04d}.png' for step, g in met)
    met.clear()
    train_gan(draw_shapes(9, size=40)[0], 'improved', run_dir=tmp_path/'another', max_steps=5, hooks=hook, **TINY)
    assert met[-1] == (5, None), 'a target that is no picture has no grid'


def test_photos_of_any_size_fit_into_the_picture_that_is_kept(tmp_path):
    size, n = 1024, min(_KEPT, 16383//1024)
    x = np.zeros((n, size, size, 3), np.uint8)
    _write_snapshot(tmp_path, 1, x, (x,))
    with Image.open(tmp_path/'held-out.webp') as im: assert im.size == (n*size, size)
    st = toy_state('quick', n=40, size=1024, width=1, bs=1, run_dir=tmp_path)
    from recon_nb.evaluation import evaluate
    evaluate(st, n=1)
    assert (tmp_path/'samples'/'held-out.webp').exists()


def test_the_device_is_that_of_pretraining_and_of_its_estimate_too(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(protocols, 'train_gan', lambda *args, device=None, **how: asked.append(('train', device)) or SimpleNamespace(stopped=False))
    monkeypatch.setattr(protocols, '_seconds_per_photo', lambda cfg, device=None: asked.append(('time', device)) or .001)
    monkeypatch.setattr(protocols, '_measure_speed', lambda net, device=None: asked.append(('speed', device)) or 1e9)
    monkeypatch.setattr(protocols, 'find_labelled', lambda name, **how: None)
    monkeypatch.setattr(protocols, 'photos_of', lambda p, data, root=None: 'shapes')
    monkeypatch.setattr(protocols, 'run_protocol', lambda *args, device=None, **how: asked.append(('probe', device)) or [])
    monkeypatch.setattr('recon_nb.cli._show_tables', lambda records: None)
    words = ['--scale', 'improved', '--runs', str(tmp_path), '--device', 'meta']
    monkeypatch.setattr('recon_nb.cli._device', lambda name: name)
    assert not shell_table([*words, '--yes']) and {k for k, _ in asked} == {'train', 'probe'} and {d for _, d in asked} == {'meta'}
    asked.clear()
    assert not shell_table(words) and {k for k, _ in asked} == {'time', 'speed'} and {d for _, d in asked} == {'meta'}


@pytest.mark.parametrize('name', PROTOCOLS)
def test_every_table_can_be_estimated(name, monkeypatch):
    monkeypatch.setattr(protocols, '_seconds_per_photo', lambda cfg, device=None: .001)
    monkeypatch.setattr(protocols, '_measure_speed', lambda net, device=None: 1e9)
    hours = estimate_hours(PROTOCOLS[name])
    assert len(hours) >= 2 and all(h > 0 for h in hours.values())
    with pytest.raises(InputError, match='how many images moon has'): estimate_hours(replace(PROTOCOLS[name], sizes=dict(moon=32)))


def test_two_encoders_of_one_name_are_both_shown():
    explorer = NeighbourExplorer([Encoder(4), Encoder(4), 'pixels'], draw_shapes(8, size=32)[0], k=2)
    assert [*explorer.near] == ['Encoder', 'Encoder (2)', 'pixels'] and not explorer.faults


def test_one_name_is_one_column_and_an_unknown_one_is_said():
    rows = [dict(job=dict(arm=arm, weights=arm), arm=arm, data='toy', mode='knn', labels_per_class=5, seed=s, test_accuracy=.5+.1*s, chance=.1, classes=2, size=32, seconds=1., n_train=10, n_test=10)
            for arm in ('scratch', 'mine') for s in (0, 1)]
    t = table(rows, 'knn', sets='toy', arms='mine', labels=5)
    assert [*t.columns] == [('toy', 5)] and 'mine' in t.index and 'm' not in t.index
    assert not t.notes or 'no record' not in t.notes[-1]
    for wrong, says in ((dict(sets='toi'), 'toi'), (dict(arms=['minne']), 'minne')):
        assert table(rows, 'knn', **wrong).notes[-1] == f'{says}: no record has this name.'
    with pytest.raises(InputError, match="labels='many'"): table(rows, 'knn', labels='many')


def test_a_run_that_is_cut_short_still_reaches_its_last_share():
    st = toy_state('improved', n=9, size=32, width=4, bs=4, visible_from=.8, visible=.4, epochs=100, max_steps=6)
    last = st.total_epochs-1
    assert 0 < last < 10 and st.task.varying.shares([0], epoch=last, seed=0) == pytest.approx([.4])
    assert st.task.varying.shares([0], epoch=0, seed=0) == pytest.approx([.8])


@pytest.mark.parametrize('fields,says', [(dict(name='x'), "unknown override 'name'"), ({1: 2}, 'names of fields are text'),
                                         (dict(mask_ratio=.75), 'here 0.25'), (dict(cfg=1), "unknown override 'cfg'")])
def test_fields_that_are_none_are_refused_in_a_sentence(fields, says):
    with pytest.raises(InputError, match=says): _choose_config({}, preset=None, config=fields, like=None, run_dir=None, resume=False, seed=None)
    if 1 not in fields:
        with pytest.raises(InputError, match=says): get_preset('improved', **fields)


def test_labels_as_text(photos, tmp_path):
    assert _name_labels(['cat', ' -1', '', '1']) == ['cat', None, None, '1']
    with pytest.raises(InputError, match="'bird', and the classes are cat, dog"): _name_labels(['cat', 'bird'], ('cat', 'dog'))
    labels = ['0', '1']*10 + ['-1']*4
    listing = pd.DataFrame(dict(photo=photos, label=labels))
    listing.to_csv(tmp_path/'l.csv', index=False)
    both = [load_labelled(t, size=16, progress=False) for t in (tmp_path/'l.csv', listing.assign(label=[*map(int, labels)]))]
    assert both[0].classes == both[1].classes == ('0', '1') and [len(s.train_y)+len(s.test_y) for s in both] == [20, 20]


@pytest.mark.parametrize('load,data', [(load_segmentation, 'collages'), (load_detection, 'objects')])
def test_a_range_has_the_same_forms_everywhere(load, data):
    for window in ((0, 4095), '0 4095'):
        with pytest.raises(InputError, match='has no effect: none of the 2500 photos has more than 8 bits'): load(data, size=32, window=window, progress=False)
    assert load(data, size=32, window={'TIFF uint16': (0, 4095)}, progress=False).size == 32


def test_a_range_for_all_reaches_deep_photos_with_masks(tmp_path):
    for part in ('train', 'test'):
        for kind in ('images', 'masks'): (tmp_path/part/kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((32, 32), 2048, np.uint16)).save(tmp_path/part/'images'/f'{i}.png')
            Image.fromarray((np.arange(32*32).reshape(32, 32) % 2).astype(np.uint8)).save(tmp_path/part/'masks'/f'{i}.png')
    for window in ((0, 4095), '0 4095'):
        assert np.unique(load_segmentation(tmp_path, size=32, window=window, progress=False).train_x).tolist() == [128]


def test_a_damaged_line_has_the_same_number_whenever_it_is_read(tmp_path):
    file = tmp_path/'history.jsonl'
    append_jsonl(file, *(dict(step=i) for i in range(10)))
    assert len(read_rows(file)) == 10
    with open(file, 'a') as f: f.write('{"step": 10}\nrubbish\n')
    for _ in range(2):
        with pytest.raises(InputError, match='line 12 is not JSON'): read_rows(file)


def test_a_run_without_weights_yet_is_not_finished_and_advice_goes_on_with_it(kept, tmp_path, monkeypatch):
    assert _finished_run(tmp_path/'none') is None and _finished_run(kept.dir).step == 10
    folder = tmp_path/'runs'/'pixels'
    folder.mkdir(parents=True)
    (folder/'config.json').write_text((kept.dir/'config.json').read_text())
    assert _finished_run(folder) is None
    asked = []
    monkeypatch.setattr('recon_nb.advice.train_gan', lambda photos, **how: asked.append(how) or SimpleNamespace(stopped=False))
    work = SimpleNamespace(cfgs=dict(pixels=kept.cfg), out=tmp_path, n=8, device='cpu', progress=False, photos=None, how={})
    assert _pretrain(work, 'pixels', 5) and asked[0]['resume'] and asked[0]['run_dir'] == folder


def test_opening_an_encoder_touches_neither_random_numbers_nor_what_is_given(kept, tmp_path):
    from recon_nb.export import export_encoder
    path = export_encoder(kept, tmp_path/'encoder.safetensors')
    for source in (kept.dir, path, kept):
        torch.manual_seed(0)
        load_pretrained(source, device='cpu')
        after = torch.rand(1)
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(1))
    mine = load_pretrained(path, device='cpu')
    elsewhere = load_pretrained(mine, device='meta')
    device = lambda p: next(p.encoder.parameters()).device.type
    assert device(mine) == 'cpu' == mine.preprocess.device and device(elsewhere) == 'meta'
    assert load_pretrained(mine) is mine and load_pretrained(mine, device='cpu') is mine


def test_the_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    append_jsonl('~/r.jsonl', dict(a=1))
    write_atomic('~/page.html', 'x')
    assert read_jsonl('~/r.jsonl') == [dict(a=1)] and json.loads((tmp_path/'home'/'r.jsonl').read_text()) == dict(a=1)
    assert (tmp_path/'home'/'page.html').exists() and not (tmp_path/'~').exists()


def test_an_old_run_of_a_set_of_jpegs_is_read_as_it_was(monkeypatch):
    asked = []
    load = lambda *, root, size, cuts, workers, progress, **more: asked.append(more) or load_photos(draw_shapes(4, size=32)[0], size=size, cuts=cuts, progress=False)
    for name in ('stanford_dogs', 'voc2012-all', 'cifar10'): monkeypatch.setitem(SETS, name, load)
    for name in ('stanford_dogs', 'voc2012-all', 'cifar10'): load_photos(name, size=16, cuts=dict(i_r=1.), progress=False, whole=True)
    assert asked == [dict(whole=True), dict(whole=True), {}]


def test_an_exported_encoder_is_no_run(kept, tmp_path):
    from recon_nb.export import export_encoder
    path = export_encoder(kept, tmp_path/'encoder.safetensors')
    for open_it in (GANRun.load, load_encoder, lambda p: write_release(p, tmp_path/'release')):
        with pytest.raises(InputError, match='is an exported encoder, not a run.*load_pretrained'): open_it(path)
    assert not (tmp_path/'release').exists()


def test_recon_reconstruct_says_first_that_a_run_paints_nothing(tmp_path, capsys):
    run = train_gan('shapes', 'improved', size=32, width=8, max_steps=1, run_dir=tmp_path/'run', progress=False)
    assert reconstruct([str(run.dir), str(tmp_path/'none.jpg')]) == 2
    assert 'not pictures' in capsys.readouterr().err
