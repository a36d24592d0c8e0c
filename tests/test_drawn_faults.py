"""What survived among the faults that nobody chose (`tests/mutants/drawn.py`), and a test against each kind of it.

The drawn sets are held to small copies, so that no constant of a scene can change unnoticed; so are the presets, with every value. Made anew, after a change on purpose:

    python tests/test_drawn_faults.py"""
import argparse, ast, inspect, json, math, os, zipfile
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from recon_nb import advice, answer, card, cli, decoding, download as dl, experiments, flipbook, guards, heads, overlap, photos as ph, protocols, records, selftest, shell, sources
from recon_nb.augmentation import cut_boxes
from recon_nb.choices import check_choices
from recon_nb.boxed import _draw_objects
from recon_nb.classification import MODES
from recon_nb.columns import _read_hub
from recon_nb.config import PRESETS, get_preset
from recon_nb.core import InputError
from recon_nb.data import load_photos
from recon_nb.detector import _ask
from recon_nb.experiments import Job, _count_work
from recon_nb.guards import _check_order
from recon_nb.health import Seen, Trail, _more_updates, _striped
from recon_nb.identity import _hash_bytes, _hash_file, _hash_pixels
from recon_nb.labelled import LabelledSet, development_images
from recon_nb.shell import _as_switch
from recon_nb.protocols import PROTOCOLS, Block, Protocol, _config
from recon_nb.segmentation import VOID, place_loss
from recon_nb.segmented import _draw_collages
from recon_nb.shapes import draw_shapes
from recon_nb.task import _check_range
from recon_nb.trainer import _call_hooks
from recon_nb.training import train_gan

FIXTURES = Path(__file__).parent/'fixtures'
FILE, VALUES = FIXTURES/'drawn_sets.npz', FIXTURES/'presets.json'
N = 100                      # ten of each class


def small(x): # 32 px -> 8 px, means
    return x.reshape(len(x), 8, 4, 8, 4, 3).mean((2, 4))


def drawn():
    "All three drawn sets, small; of the boxes their sizes, places and classes."
    x, y = draw_shapes(N, size=32, seed=11)
    part, _ = draw_shapes(20, size=32, seed=11, share=1/3)
    pictures, boxes = _draw_objects(N, size=32, seed=11)
    collages, masks = _draw_collages(40, size=32, seed=11)
    return dict(shapes=small(x), labels=y, parts=small(part), objects=small(pictures), counts=np.array([len(b) for b in boxes]), boxes=np.concatenate(boxes),
                collages=small(collages), masks=np.array([np.bincount(m.ravel(), minlength=10) for m in masks]))


@pytest.fixture(scope='module')
def now(): return drawn()


@pytest.fixture(scope='module')
def kept(): return dict(np.load(FILE))


@pytest.mark.parametrize('part', ['shapes', 'parts', 'objects', 'collages'])
def test_the_drawn_pictures_are_those_of_before(part, now, kept):
    "Means over four pixels, in levels of 255: other versions of NumPy round differently, and less than that."
    away = abs(now[part]-kept[part].astype(float)).mean((1, 2, 3))
    assert away.max() < 1, f'picture {away.argmax()} is another'


@pytest.mark.parametrize('part', ['labels', 'counts'])
def test_so_are_their_labels(part, now, kept): assert np.array_equal(now[part], kept[part])


def test_so_are_boxes_and_masks(now, kept):
    np.testing.assert_allclose(now['boxes'], kept['boxes'], atol=.51)
    assert abs(now['masks'].astype(int)-kept['masks']).max() < 12              # pixels of 1024 at the edge of a blob


@pytest.mark.parametrize('draw', [_draw_objects, _draw_collages])
def test_another_seed_draws_other_scenes(draw):
    "Scenes, and not only what lies on them: the corner of no picture is that of the same picture by another seed."
    a, b = (draw(12, size=32, seed=s)[0][:,:4,:4].astype(int) for s in (3, 4))
    assert all(abs(x-y).mean() > 2 for x,y in zip(a, b))


def test_hashes_fit_into_64_bits(tmp_path):
    for k in range(64):
        data = bytes([k])*99
        (tmp_path/'f').write_bytes(data)
        assert 0 < _hash_bytes(data) == _hash_file(tmp_path/'f') < 2**64
        assert 0 < _hash_pixels(np.full((3, 3, 3), k, np.uint8)) < 2**64


def test_eight_histories_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(records, '_known', {})
    for k in range(20):
        (tmp_path/f'{k}.jsonl').write_text('{"step": 1}\n')
        assert records.read_rows(tmp_path/f'{k}.jsonl') == [{'step': 1}]
    assert len(records._known) == 8 and str(tmp_path/'19.jsonl') in {str(k) for k in records._known}


def test_old_bytes_go_before_the_note_says_of_which_file_they_are(tmp_path, monkeypatch):
    "Killed in between, a download would go on behind another file's bytes."
    part = tmp_path/'.f.part'
    part.write_bytes(b'of another file')
    class Answer:
        headers = {}
        def __enter__(self): return self
        def __exit__(self, *_): pass
    monkeypatch.setattr(dl, '_ask', lambda *a: (Answer(), 0, 10))
    monkeypatch.setattr(dl, '_tag', lambda headers: 'v2')
    monkeypatch.setattr(dl, '_kept', lambda part: (0, dict(total=None)))
    class Killed(BaseException): pass
    def killed(*a): raise Killed
    monkeypatch.setattr(dl, 'write_atomic', killed)
    with pytest.raises(Killed): dl._request('http://x', part, size=10, timeout=1, bar=None)
    assert not part.exists()


@pytest.mark.parametrize('low, high', [(-1.01, 1.), (-1., 1.01), (-1.9, .5), (-.5, 1.9)])
def test_a_picture_beyond_black_or_white_is_refused(low, high):
    with pytest.raises(InputError, match=r'a picture lies in \[-1, 1\]'): _check_range('target x', torch.tensor([low, 0., high]))
    _check_range('target x', torch.tensor([-1., 1.]))


def test_a_job_says_what_it_is_and_prints_no_images():
    job = Job('probe', 'arm', 'weights', 'data', 32, 'frozen', 1, 0, net='NET', images='IMAGES', search='SEARCH')
    assert 'arm' in repr(job) and not {'NET', 'IMAGES', 'SEARCH'} & {*repr(job).replace("'", ' ').split()}


@pytest.mark.parametrize('billions, fits', [(19, True), (21, False)])
def test_an_archive_may_take_twenty_gigabytes(billions, fits, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('x', 'x')
    monkeypatch.setattr(dl, '_zip_entries', lambda f: [('x', 'file', billions*10**9, None, None)])
    monkeypatch.setattr(dl, '_check_room', lambda *a: None)
    monkeypatch.setattr(dl, '_unpack_entry', lambda *a, **k: None)
    if fits: assert dl._unpack(tmp_path/'a.zip', tmp_path/'out', progress=False).is_dir()
    else:
        with pytest.raises(InputError, match='holds more than'): dl._unpack(tmp_path/'a.zip', tmp_path/'out', progress=False)


def values(): return json.loads(json.dumps({name: asdict(get_preset(name)) for name in PRESETS}))


def test_the_presets_are_those_of_before():
    "Every value, also those that a preset takes from the defaults."
    before = json.loads(VALUES.read_text(encoding='utf-8'))
    assert {(n, k): v for n,d in values().items() for k,v in d.items()} == {(n, k): v for n,d in before.items() for k,v in d.items()}


def seen(step=400, total=400, **last): return Seen(get_preset('quick'), Trail(), [dict(step=step, psnr=20., **last)], {}, None, step, total, 240)


def test_stripes_are_judged_from_the_200th_update_on():
    assert _striped(seen(199, checkerboard=5.)) is None
    assert _striped(seen(200, checkerboard=5.)).numbers == dict(checkerboard=5.) and _striped(seen(200, checkerboard=3.)) is None


@pytest.mark.parametrize('bs, smaller', [(31, False), (32, True)])
def test_a_smaller_batch_is_advised_from_32_on(bs, smaller):
    assert ('smaller' in _more_updates(get_preset('quick', bs=bs), 2000)) == smaller


def test_the_heat_of_a_box_is_the_same_in_both_directions():
    "A box of eight places in the middle of sixteen: one place beside its centre exp(-1/2s^2), whichever way."
    heat = _ask([np.array([[4., 4., 12., 12., 0., 1.]])], 1, grid=16, size=16).heat[0,0]
    slack = (16 - math.sqrt(256 - 4*(1 - 1.4/1.7)*64))/2                      # a box so far off agrees by seven tenths
    near = math.exp(-1/(2*((2*slack+1)/6)**2))
    assert heat[8,8] == 1 and torch.equal(heat, heat.T)
    torch.testing.assert_close(torch.stack([heat[7,8], heat[9,8], heat[8,7], heat[8,9], heat[9,9]]), torch.tensor([near]*4 + [near**2]))


def test_in_mixed_order_there_is_nothing_to_gain_from_mixing():
    y = np.arange(60) % 6
    check = _check_order(SimpleNamespace(y=y))
    assert check.reading == 0. and check.shown == '0% of neighbours of one class' and check.ok


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train_gan(draw_shapes(30, size=32)[0], run_dir=tmp_path_factory.mktemp('run')/'r', size=32, width=4, bs=8, epochs=1, progress=False, valid=.2)


def test_what_a_run_learned_from_and_what_it_held_out(run):
    "The two lists of photos.npz, by the photos' own hashes."
    kept, ids = np.load(run.dir/'photos.npz'), load_photos(draw_shapes(30, size=32)[0], size=32, cuts=run.task.cuts, progress=False).content_ids()
    assert (len(kept['train']), len(kept['held_out'])) == (24, 6)
    assert {*map(tuple, np.r_[kept['train'], kept['held_out']].reshape(30, -1))} == {*map(tuple, ids.reshape(30, -1))}


def test_a_card_says_what_differs_from_the_preset(run):
    said = card._training(run, 'scenes')
    assert 'changed: valid 0.2, width 4, bs 8, epochs 1. Seed 0.' in said


def test_a_step_of_training_costs_three_passes():
    "The work of a job: forward once and backward twice for each image of each update; then all images once."
    x, y = draw_shapes(50, size=32, seed=3)
    s = LabelledSet(name='toy', train_x=x[:30], train_y=y[:30], test_x=x[30:], test_y=y[30:], classes=tuple(map(str, range(10))))
    job, = experiments.list_jobs({'scratch': None}, s, 'finetune', 2, 1, size=32, width=4, search=False, recipes={'*': dict(steps=7, bs=5, epochs=1)})
    macs = _count_work(job)/(3*7*5 + 20 + 20)
    assert macs == experiments.count_macs(job.net.net, 32) > 1000


@pytest.mark.parametrize('short', [0, 1])
def test_the_cache_needs_a_byte_for_each_number(short, tmp_path, monkeypatch):
    free = 7*2*16*16*3 - short
    monkeypatch.setattr(ph.shutil, 'disk_usage', lambda path: namedtuple('usage', 'free')(free))
    monkeypatch.setattr(ph, '_write_rows', lambda *a, **how: {})
    monkeypatch.setattr(ph, '_write_meta', lambda *a: None)
    build = lambda: ph._build_entry(tmp_path/'entry', [], n=7, size=16, cuts=dict(whole=1., centre=1/3), notes=dict)
    if short:
        with pytest.raises(InputError, match="can't be written: .*needed"): build()
    else: build(); assert (tmp_path/'entry').is_dir()


@pytest.mark.parametrize('side, small', [(99, True), (100, False)])
def test_pictures_below_100_px_are_drawn_with_hard_pixels(side, small):
    panel = flipbook.Panel('p', (flipbook.Layer(np.zeros((1, side, side, 3), np.uint8)),))
    assert ('rnb-small' in flipbook._panel(panel, [(0, 0)], [(1, 1)], '', '')) == small


def test_sliders_of_a_window_go_in_small_steps():
    from recon_nb.widgets import MaskExplorer
    w = MaskExplorer()
    assert [(s.min, s.max, s.step, s.value) for s in (w.visible, w.across, w.down)] == [(.05, .95, .01, 1/3), (-1., 1., .05, 0.), (-1., 1., .05, 0.)]


def test_a_switch_goes_by_its_first_name():
    "On, off, and a switch that has both."
    p = argparse.ArgumentParser()
    quiet, loud = p.add_argument('-q', '--quiet', action='store_true'), p.add_argument('--loud', action=argparse.BooleanOptionalAction)
    assert [_as_switch(quiet, True), _as_switch(quiet, False)] == ['-q', 'no -q'] and [_as_switch(loud, True), _as_switch(loud, False)] == ['--loud', '--no-loud']


def test_of_a_run_that_ends_after_a_number_of_updates_that_number_is_advised():
    "And more epochs, where these would end it before."
    assert _more_updates(get_preset('quick', max_steps=7), 20_000) == 'max_steps=300'
    assert _more_updates(get_preset('quick', max_steps=7), 2000) == 'max_steps=300 and epochs=10'


def test_an_object_of_no_width_at_the_edge_has_the_last_place():
    asked = _ask([np.array([[16., 16., 16., 16., 0., 1.]])], 1, grid=16, size=16)
    assert asked.at.tolist() == [[0, 15, 15]] and asked.heat[0,0,15,15] == 1


def test_scenes_are_those_of_seed_0_unless_another_is_given():
    assert np.array_equal(draw_shapes(2, size=16)[0], draw_shapes(2, size=16, seed=0)[0])


@pytest.mark.parametrize('seconds, old', [(86400, False), (86400.5, True)])
def test_what_nobody_wrote_in_for_a_day_is_old(seconds, old, tmp_path, monkeypatch):
    (tmp_path/'f.tmp').write_text('x')
    for f in (tmp_path/'f.tmp', tmp_path): os.utime(f, (1e9, 1e9))
    monkeypatch.setattr(ph.time, 'time', lambda: 1e9+seconds)
    assert ph._is_old(tmp_path) == old


def test_an_entry_of_the_cache_is_written_again_only_if_it_was_touched(tmp_path):
    rows = [(str(k), ph._cut_one(x, size=8, cuts=dict(whole=1.), ranges=ph.Ranges())) for k,x in enumerate(draw_shapes(3, size=32)[0])]
    ph._build_entry(tmp_path/'e', rows, n=3, size=8, cuts=dict(whole=1.), notes=dict)
    stamp = lambda: json.loads((tmp_path/'e/meta.json').read_text())['stamp']
    os.utime(tmp_path/'e/meta.json', (1e9, 1e9))
    ph._open_entry(tmp_path/'e', size=8, cuts=dict(whole=1.))
    assert (tmp_path/'e/meta.json').stat().st_mtime == 1e9
    before = stamp()
    os.utime(tmp_path/'e/whole.npy', (1e9, 1e9))
    ph._open_entry(tmp_path/'e', size=8, cuts=dict(whole=1.))
    assert stamp() != before and (tmp_path/'e/meta.json').stat().st_mtime != 1e9


def test_a_mask_of_one_place_that_counts_has_its_loss():
    logits, y = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.full((1, 2, 2), VOID)
    assert place_loss(logits, y) == 0
    y[0,1,0] = 2
    torch.testing.assert_close(place_loss(logits, y), -logits[0,:,1,0].log_softmax(0)[2])


@pytest.mark.parametrize('name', [n for n in dir(cli) if n.endswith('_parser')])
def test_every_option_of_a_command_says_what_it_is(name):
    options = getattr(cli, name)(*(['x', 'x', 'x', ['x']] if name == '_places_parser' else []))._actions
    assert len(options) > 1 and [a.dest for a in options if not a.help] == []


def test_after_a_command_python_is_spoken_again():
    seen = []
    def call(a): seen.append(bool(shell._shell_command.get()))
    assert shell._run(cli._health_parser(), call, ['r']) in (0, None) and seen == [True] and not shell._shell_command.get()


def test_a_photo_that_fills_its_picture_has_no_place_in_it():
    im = Image.new('RGB', (6, 4))
    for extent, kept in (((0, 0, 6, 4), False), ((1, 0, 5, 4), True)):
        im.info['extent'] = extent
        assert ('extent' in ph._plain(im, im, ph.Ranges()).info) == kept


@pytest.mark.parametrize('weight', [.1, 1., 10.])
def test_a_penalty_of_any_weight_is_for_a_critic_without_a_bound(weight):
    with pytest.raises(InputError, match=f'lambda_gp={weight:g} is for a critic without a bound'): check_choices(get_preset('quick', lambda_gp=weight, norm_d='none'))


def test_a_fifth_of_each_class_is_put_aside():
    y = np.repeat(np.arange(4), (10, 20, 50, 6000))
    assert np.bincount(y[development_images(y)]).tolist() == [2, 4, 10, 500]


def test_a_class_of_one_image_is_there_and_one_of_none_is_not():
    x = draw_shapes(4, size=16)[0]
    def load(*y): return LabelledSet(name='s', train_x=x, train_y=np.array(y), test_x=x, test_y=np.array([0, 1, 2, 2]), classes=('a', 'b', 'c'))
    assert load(0, 1, 2, 2)
    with pytest.raises(InputError, match='the train part has no image of b'): load(0, 2, 2, 2)


@pytest.mark.parametrize('name, said', [('photos', '1 of 9 photos '), ('test', '1 of 9 test photos ')])
def test_photos_that_are_no_part_of_a_set_are_called_photos(name, said):
    side = lambda n: SimpleNamespace(name=n, ids=range(9), names=None, called=str)
    assert overlap._sentence(side(name), side('train'), [(0, 3)], 0) == f'{said}are among those to learn from, such as 0'


def test_a_hub_tables_classes_have_the_names_of_its_label():
    class Image: pass
    class ClassLabel: names = ['even', 'odd']
    class Table(SimpleNamespace):
        def __len__(self): return 2
        def __getitem__(self, i): return [0, 1] if i == 'label' else dict(picture=i, label=i)
    table = _read_hub(Table(column_names=['picture', 'label'], features=dict(picture=Image(), label=ClassLabel()), info=None, split=None))
    assert table.classes == ('even', 'odd') and [*table.labels] == [0, 1]


@pytest.mark.parametrize('train, said', [(.45, 'it learns 32 images but not the set'), (.55, 'it learned by heart')])
def test_more_than_half_of_train_is_known_by_heart(train, said, monkeypatch):
    "With ten classes; with two, nine tenths would be no more than chance."
    monkeypatch.setattr(guards, '_accuracy', lambda *a: 0.)
    monkeypatch.setattr(guards, '_renaming', lambda *a: '')
    c = SimpleNamespace(y=np.arange(100) % 10, ty=np.arange(100) % 10, tx=np.zeros((100, 2, 2, 3)), n=10, model=None, alpha=.01)
    assert said in guards._why_chance(c, train, c.ty)
    assert 'it learns 32' in guards._why_chance(SimpleNamespace(**{**vars(c), 'y': np.arange(100) % 2}), .9, c.ty)


@pytest.mark.parametrize('name', PROTOCOLS)
def test_every_row_of_a_protocol_can_be_pretrained_and_probed(name):
    "What a row changes must have an effect, by today's rules: two rows of the ablations had none."
    p = PROTOCOLS[name]
    for row in p.arms:
        for data in p.sizes: check_choices(_config(p, row, data, 0))
    for b in p.blocks: assert {*b.modes} <= {*MODES} and all(k is None or type(k) is int for k in b.labels) and {*(b.sets or ())} <= {*p.sizes}, b


@pytest.mark.parametrize('processes, sums, status', [(2, [[3.], [3.]], 0), (2, [[3.], [4.]], 1), (1, [[3.]], 1)])
def test_two_processes_with_equal_weights_pass_the_selftest(processes, sums, status, monkeypatch):
    acc = SimpleNamespace(num_processes=processes, gather=lambda s: torch.tensor(sums), print=print, wait_for_everyone=lambda: None)
    monkeypatch.setattr(selftest, '_accelerator', lambda device: acc)
    monkeypatch.setattr(selftest, 'toy_state', lambda *a, **how: None)
    monkeypatch.setattr(selftest, 'fit', lambda st: SimpleNamespace(nets=[torch.nn.Linear(1, 1, bias=False)], step=1, bs=2))
    assert selftest._child('cpu') == status


def test_the_selftest_trains_on_the_device_it_is_asked_about(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(selftest, '_accelerator', lambda device, precision: (device, precision))
    monkeypatch.setattr(selftest, 'train_gan', lambda *a, **how: given.update(how) or SimpleNamespace(history=[]))
    selftest._tiny('mps', tmp_path, 'r', precision='bf16', epochs=1)
    assert given['accelerator'] == ('mps', 'bf16') and given['precision'] == 'bf16' and (given['epochs'], given['bs']) == (1, 16)


def test_what_nobody_knows_the_cost_of_takes_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(answer, 'estimate', lambda *a: [2., float('nan'), 3.])
    assert answer._Work([], tmp_path, 'cpu', None, None, False).cost([], {}) == 5.


@pytest.mark.parametrize('f', [experiments.list_jobs, experiments.compare_encoders])
def test_numbers_of_labels_are_those_of_the_tables(f): assert inspect.signature(f).parameters['labels'].default == (25, 100, 500, None)


@pytest.mark.parametrize('half, fine', [(2.03, True), (1.97, True), (2.05, False), (1.95, False), (float('nan'), False)])
def test_half_precision_begins_where_full_precision_does(half, fine, tmp_path, monkeypatch):
    "Equal weights and photos: two per cent is more than rounding does."
    run = SimpleNamespace(history=[dict(seconds=1.)])
    monkeypatch.setattr(selftest, '_tiny', lambda device, folder, name, precision='no': (run, [half if precision == 'bf16' else 2.]))
    if fine: assert 'in 32 bits' in selftest._check_bf16('cpu', tmp_path)
    else:
        with pytest.raises(AssertionError, match='the first loss is'): selftest._check_bf16('cpu', tmp_path)


@pytest.mark.parametrize('compiled, fine', [([2.001, 3.], True), ([2., 3.02], False), ([1.98, 3.], False)])
def test_what_is_compiled_computes_the_same(compiled, fine, tmp_path, monkeypatch):
    monkeypatch.setattr(selftest, '_tiny', lambda device, folder, name, **how: (SimpleNamespace(step=2), compiled if how.get('compile') else [2., 3.]))
    if fine: assert 'largest difference of a loss 0.001' in selftest._check_compile('cuda', tmp_path)
    else:
        with pytest.raises(AssertionError, match='losses differ by 0.02'): selftest._check_compile('cuda', tmp_path)


@pytest.mark.parametrize('photometry, bands', [(0, 1), (1, 1), (2, 3), (3, 1), (5, 4), (6, 3), (8, 3)])
def test_bands_beyond_the_colours_of_a_tiff_are_counted(photometry, bands):
    "Grey, RGB, a palette, CMYK, YCbCr and CIELab; two bands of something else."
    im = SimpleNamespace(tag_v2={262: photometry, 277: bands+2, 338: (0, 0)}, n_frames=1)
    with pytest.raises(OSError, match=f'{bands+2} bands, of which {bands} are color'): decoding._check_tiff(im, 'x.tif')


@pytest.mark.parametrize('main, calls', [(True, 1), (False, 0)])
def test_hooks_are_called_in_the_first_process_only(main, calls):
    seen, st = [], SimpleNamespace(acc=SimpleNamespace(is_main_process=main), nets=[torch.nn.Linear(1, 1)], event='', stop=False, why='')
    _call_hooks([seen.append], st, 'epoch')
    assert len(seen) == calls and st.event == 'epoch'*calls
    _call_hooks([], st, 'end')
    assert st.event == 'epoch'*calls                                           # without hooks nothing is begun


def test_pictures_without_numbers_have_the_range_of_one_number(monkeypatch):
    "From 0 to 1; of one picture that can be read its own; where none can be asked, it is asked for."
    monkeypatch.setattr(decoding, '_check_pair', lambda kind, pair: pair)
    monkeypatch.setattr(decoding, '_range_of', lambda kind, low, high: (low, high))
    monkeypatch.setattr(decoding, '_span', lambda src, kind: src)
    for pictures, found in (([()], (0, 1)), ([None, ()], (0, 1)), ([(3, 9), None, (2, 5)], (2, 9))):
        ranges = ph.Ranges()
        ranges.sources = pictures
        assert ranges._find('uint8') == found
    for pictures in ([], [None, None]):
        ranges.sources = pictures
        with pytest.raises(InputError, match='nothing tells which range'): ranges._find('uint8')


def text_opened_without_encoding(path):
    "Calls that read or write text in whatever encoding a system has, by their lines."
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(n, ast.Call) or any(k.arg == 'encoding' for k in n.keywords): continue
        bare, method = isinstance(n.func, ast.Name) and n.func.id, isinstance(n.func, ast.Attribute) and n.func.attr
        as_bytes = any("b'" in ast.unparse(a) or "'b" in ast.unparse(a) or "b+'" in ast.unparse(a) for a in n.args[1:])
        if bare == 'open' and not as_bytes or method in ('read_text', 'write_text'): yield f'{path.name}:{n.lineno}'


def test_texts_are_utf_8_everywhere(tmp_path):
    "Windows would read and write its own code page."
    (tmp_path/'f.py').write_text("open('x')\nopen('x', 'w')\nopen('x', 'rb')\nopen('x', encoding='utf-8')\nPath('x').read_text()\n", encoding='utf-8')
    assert [*text_opened_without_encoding(tmp_path/'f.py')] == ['f.py:1', 'f.py:2', 'f.py:5']
    assert [x for f in Path(sources.__file__).parent.glob('*.py') for x in text_opened_without_encoding(f)] == []


@pytest.mark.parametrize('block, probes', [(dict(), 2*(1 + 2*3)), (dict(matched=True), 2*(1 + 2)), (dict(arms='best'), 2*(1 + 1)), (dict(arms='best', matched=True), 2*(1 + 1))])
def test_the_cost_of_a_block_counts_every_pretraining_unless_one_has_one_probe(block, probes, monkeypatch):
    "Two seeds; two arms of three pretrainings each, or the best alone; and the baseline."
    monkeypatch.setattr(protocols, '_count_work', lambda job: 1.)
    p = Protocol('p', width=4, sizes=dict(s=32), photos='own', pretrainings=3, arms=dict(a='quick', b='improved'), blocks=())
    assert protocols._seconds_of_block(p, Block(('knn',), (5,), 2, **block), SimpleNamespace(size=32), 's', 1., dict(s=(30, 20))) == probes


def test_a_sharp_edge_stays_between_black_and_white():
    "A cubic filter goes beyond both, across and down, and on both sides of an edge."
    for turn in (False, True):
        x = torch.ones(1, 3, 16, 16)
        x[...,8:] = -1
        out = cut_boxes(x.mT if turn else x, torch.tensor([[0., 0., 1., 1.]]), size=48)
        assert (out.min(), out.max()) == (-1, 1)


@pytest.mark.parametrize('wanted, tried', [(2e-2, {1000., 100., 10., 1., .1, .01, .0316, .00316, .001}), (3e4, {1., 10., 100., 1e3, 1e4, 1e5, 3.16e4, 3.16e3, 1e6})])
def test_a_penalty_at_the_edge_of_the_grid_is_searched_on_in_tens(wanted, tried, monkeypatch):
    "The score falls off around the penalty that is wanted; at the end half a ten to both sides is tried."
    monkeypatch.setattr(heads, '_score', lambda f, y, folds, l2, n, starts: (-abs(math.log10(l2/wanted)),))
    best, scores = heads.choose_l2(torch.zeros(40, 2), torch.arange(40) % 2, n_classes=2)
    assert {float(f'{k:.3g}') for k in scores} <= tried and abs(math.log10(best/wanted)) < .25 and len(scores) >= 7


def test_advice_has_one_bar_for_a_target_and_no_words_of_its_runs(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(advice, 'train_gan', lambda photos, **how: given.update(how) or SimpleNamespace(stopped=''))
    work = SimpleNamespace(photos=None, cfgs=dict(pixels=SimpleNamespace(bs=8)), out=tmp_path, n=80, how=dict(size=32), device='cpu', progress=False)
    assert advice._pretrain(work, 'pixels', 25) is not None
    assert given['progress'] is False and (given['target'], given['max_steps'], given['epochs'], given['size']) == ('pixels', 25, 3, 32)


if __name__ == '__main__':
    made = drawn()
    np.savez_compressed(FILE, **{k: np.round(v).astype(np.uint8) if k in ('shapes', 'parts', 'objects', 'collages') else v.astype(np.float16 if k == 'boxes' else np.int16) for k,v in made.items()})
    VALUES.write_text(json.dumps(values(), indent=1)+'\n', encoding='utf-8')
