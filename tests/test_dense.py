"Segmented sets and the dense probe under checked types: masks stay with their photos, wrong sets and calls end early, equal calls give equal numbers."
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recon_nb.core import InputError, TrainingDiverged, read_jsonl
from recon_nb.identity import _fingerprint_photos
from recon_nb.probing import search_recipe, unpack_shares
from recon_nb.segmentation import Segmentation, count_places, dense_recipe, encode_places, fit_segmenter, mean_iou, photo_accuracy, place_loss, probe_dense, segment
from recon_nb.contenders import as_contender
from recon_nb.finetune import augment
from recon_nb.encoder import Encoder
from recon_nb.training import train_gan
from recon_nb.segmented import _VOC_CLASSES, VOID, SegmentationSet, _draw_collages, load_segmentation, paint_masks
from recon_nb.shapes import SHAPES, draw_shapes

QUICK = dense_recipe(steps=4, epochs=1, bs=8)
CAT, DOG = _VOC_CLASSES.index('cat'), _VOC_CLASSES.index('dog')
COLOURS = {0: (30, 30, 200), CAT: (220, 40, 40), DOG: (40, 200, 40)}


def thing(kind, w=60, h=40):
    "A photo of a rectangle, and its mask with a void line around it."
    mask = np.zeros((h, w), np.uint8)
    mask[8:30, 14:40] = VOID
    mask[10:28, 16:38] = kind
    photo = np.full((h, w, 3), COLOURS[0], np.uint8)
    photo[9:29, 15:39] = COLOURS[kind]
    return photo, mask


def save_mask(mask, path):
    im = Image.fromarray(mask, 'P') if mask.ndim == 2 else Image.fromarray(mask)
    if mask.ndim == 2: im.putpalette([v for c in range(256) for v in (c, 255-c, c*7 % 256)])
    im.save(path)


KINDS = dict(train=[CAT, DOG, CAT, DOG, CAT], val=[DOG, CAT, DOG])


def voc(root):
    "A small copy in VOC's layout; returns the folder VOC2012."
    at = root/'VOCdevkit/VOC2012'
    for d in ('ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass'): (at/d).mkdir(parents=True)
    for part,ks in KINDS.items():
        names = [f'2009_{part}{i}' for i in range(len(ks))]
        for n,k in zip(names, ks):
            photo, mask = thing(k)
            Image.fromarray(photo).save(at/f'JPEGImages/{n}.jpg', quality=95); save_mask(mask, at/f'SegmentationClass/{n}.png')
        (at/f'ImageSets/Segmentation/{part}.txt').write_text('\n'.join(names) + '\n')
    return at


def folder(root, n=(6, 4), test='test'):
    "A set of one's own."
    x, y = _draw_collages(sum(n), size=24)
    for part,i in (('train', range(n[0])), (test, range(n[0], sum(n)))):
        for d in ('images', 'masks'): (root/part/d).mkdir(parents=True)
        for j in i: Image.fromarray(x[j]).save(root/part/f'images/{j}.png'); Image.fromarray(y[j] % 2).save(root/part/f'masks/{j}.png')
    return root


def load(root, **kwargs): return load_segmentation('voc2012', root=root, **{**dict(size=20, classes=('cat', 'dog'), progress=False), **kwargs})
def own(root, **kwargs): return load_segmentation(root, size=24, progress=False, **kwargs)
def untimed(result): return [{k: v for k,v in r.items() if k != 'seconds'} for r in result.records()]


@pytest.fixture(scope='module')
def data():
    (x, y), (test_x, test_y) = _draw_collages(40, size=32), _draw_collages(20, size=32, seed=1)
    return SegmentationSet('toy', x, y, test_x, test_y, SHAPES)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return train_gan(draw_shapes(40, size=32)[0], 'quick', run_dir=tmp_path_factory.mktemp('run')/'a', width=4, width_d=4, bs=16, epochs=1)


def ask(encoder, data, mode='linear', **kwargs):
    return probe_dense(encoder, data, **{**dict(mode=mode, seeds=2, recipe=QUICK, search=False, progress=False), **kwargs})


# ---- sets

@pytest.mark.parametrize('inside', ['.', 'VOCdevkit', 'VOCdevkit/VOC2012'])
def test_voc_is_read_and_masks_lie_on_their_photos(tmp_path, inside):
    voc(tmp_path)
    s = load(tmp_path/inside)
    assert (s.name, s.classes, s.size, len(s.train_x), len(s.test_x)) == ('voc2012', ('background', 'cat', 'dog'), 20, 5, 3)
    assert {*np.unique(s.train_y).tolist()} == {0, 1, 2, VOID}
    for x,y in ((s.train_x, s.train_y), (s.test_x, s.test_y)):
        for c,k in enumerate((0, CAT, DOG)): assert abs(x[y == c].astype(int) - COLOURS[k]).max() < 60


def test_a_class_that_a_part_does_not_show_is_named_and_those_that_are_there_too(tmp_path):
    voc(tmp_path)
    with pytest.raises(InputError, match='shows aeroplane, .* these are: background, cat, dog. .*classes='): load(tmp_path, classes=None)
    with pytest.raises(InputError, match='shows cow'): load(tmp_path, classes=('cat', 'cow'))
    with pytest.raises(InputError, match="Did you mean 'cat'"): load(tmp_path, classes=('catt',))


def test_what_is_not_asked_about_is_void_and_photos_without_anything_are_left_out(tmp_path):
    voc(tmp_path)
    s = load(tmp_path, classes='cat')
    assert s.classes == ('background', 'cat') and (len(s.train_x), len(s.test_x)) == (3, 1)
    whole = load(tmp_path)
    again = load_segmentation(whole, size=20, classes=['dog'])
    assert (len(again.train_x), len(again.test_x)) == (2, 2) and (again.train_y == 1).sum() == (whole.train_y == 2).sum() and (again.train_y == VOID).any()


@pytest.mark.parametrize('says,harm', {
    'a photo without a mask': ('photos without a mask: 1 of 5; .*train1.png', lambda at: (at/'SegmentationClass/2009_train1.png').unlink()),
    'another size': ('40x60 pixels, its photo 60x40', lambda at: save_mask(thing(CAT)[1].T.copy(), at/'SegmentationClass/2009_train1.png')),
    'no such class': ('holds 21; the classes run from 0 to 20', lambda at: save_mask(np.where(thing(CAT)[1] == CAT, 21, 0).astype(np.uint8), at/'SegmentationClass/2009_val1.png')),
    'colours': ('has mode RGB', lambda at: save_mask(thing(CAT)[0], at/'SegmentationClass/2009_val1.png')),
    'deep': ('has mode I', lambda at: Image.fromarray(thing(CAT)[1].astype(np.uint16)).save(at/'SegmentationClass/2009_val1.png')),
    'no picture': ("can't be read", lambda at: (at/'SegmentationClass/2009_val1.png').write_bytes(b'no png')),
    'a picture cut off': ("can't be read", lambda at: (p := at/'SegmentationClass/2009_val1.png').write_bytes(p.read_bytes()[:150])),
    'in both lists': ('1 photos are in train.txt and in val.txt, such as 2009_val0', lambda at: (at/'ImageSets/Segmentation/train.txt').write_text('2009_val0\n2009_train1\n')),
    'an empty list': ('names no photo', lambda at: (at/'ImageSets/Segmentation/val.txt').write_text('\n')),
    'no list': ('lacks ImageSets/Segmentation/val.txt', lambda at: (at/'ImageSets/Segmentation/val.txt').unlink()),
}.values(), ids=lambda v: v.replace(' ', '-') if isinstance(v, str) else '')
def test_a_damaged_copy_is_named(tmp_path, says, harm):
    harm(voc(tmp_path))
    with pytest.raises(InputError, match=says): load(tmp_path)


def test_a_photo_that_is_skipped_takes_its_mask_along(tmp_path):
    at = voc(tmp_path)
    (at/'JPEGImages/2009_train1.jpg').write_bytes(b'no jpg')
    with pytest.warns(UserWarning, match='skipped 1 of 5 photos: JPEGImages/2009_train1.jpg'): s = load(tmp_path)
    assert len(s.train_x) == len(s.train_y) == 4
    for c,k in enumerate((0, CAT, DOG)): assert abs(s.train_x[s.train_y == c].astype(int) - COLOURS[k]).max() < 60


def test_a_mask_lies_on_the_upright_photo(tmp_path):
    at = voc(tmp_path)
    photo, mask = thing(DOG)
    exif = Image.Exif(); exif[0x0112] = 6
    Image.fromarray(np.rot90(photo)).save(at/'JPEGImages/2009_train1.jpg', exif=exif, quality=95)      # stored lying, shown upright
    s = load(tmp_path)
    for c,k in enumerate((0, CAT, DOG)): assert abs(s.train_x[s.train_y == c].astype(int) - COLOURS[k]).max() < 60


def test_another_list_to_train_on(tmp_path):
    at = voc(tmp_path)
    (at/'ImageSets/Segmentation/few.txt').write_text('2009_train0\n2009_train1\n')
    assert len(load(tmp_path, lists=('few', 'val')).train_x) == 2
    with pytest.raises(InputError, match='lacks ImageSets/Segmentation/trainaug.txt'): load(tmp_path, lists=('trainaug', 'val'))


def test_a_folder_of_ones_own(tmp_path):
    s = own(folder(tmp_path/'mine', test='val'))
    assert (s.name, s.classes, len(s.train_x), len(s.test_x)) == ('mine', ('0', '1'), 6, 4)
    (tmp_path/'mine/classes.txt').write_text('ground\n\nfigure\n')
    assert own(tmp_path/'mine', name='x').classes == ('ground', 'figure')


@pytest.mark.parametrize('says,harm', {
    'no masks': ('masks is no folder; a segmented set has', lambda d: [*(d/'train/masks').iterdir()] and (d/'train/masks').rename(d/'train/labels')),
    'no test part': ('test/images is no folder', lambda d: (d/'test').rename(d/'tests')),
    'no photos': ('holds no photo', lambda d: [p.unlink() for p in (d/'test/images').iterdir()]),
    'one mask short': ('photos without a mask: 1 of 6', lambda d: (d/'train/masks/3.png').unlink()),
    'two of one name': ('have one name', lambda d: Image.new('RGB', (24, 24)).save(d/'train/images/3.jpg')),
    'more classes than names': ('holds 1; the classes run from 0 to 0', lambda d: (d/'classes.txt').write_text('ground\n')),
    'more names than classes': ('shows sky', lambda d: (d/'classes.txt').write_text('ground\nfigure\nsky\n')),
}.values(), ids=lambda v: v.replace(' ', '-') if isinstance(v, str) else '')
def test_a_faulty_folder_is_named(tmp_path, says, harm):
    harm(folder(tmp_path/'mine'))
    with pytest.raises(InputError, match=says): own(tmp_path/'mine')


def test_wrong_sets(tmp_path, data):
    for says,call in {'unknown segmented set': lambda: own('voc2007'), 'root= goes with': lambda: load_segmentation('collages', size=24, root=tmp_path), 'is a ndarray': lambda: own(data.train_x),
                      'whole number of pixels': lambda: load_segmentation('collages', size=0), 'asked for at 24 px': lambda: own(data)}.items():
        with pytest.raises(InputError, match=says): call()


@pytest.mark.parametrize('size', [1, 7, 32])
def test_a_collage_depends_on_the_seed_and_its_number_alone(size):
    (x, y), (few, few_y) = _draw_collages(13, size=size, seed=5), _draw_collages(4, size=size, seed=5)
    assert np.array_equal(x[:4], few) and np.array_equal(y[:4], few_y) and x.shape == (13, size, size, 3)
    assert not np.array_equal(x, _draw_collages(13, size=size, seed=6)[0])


@pytest.mark.parametrize('shift', [0., 1/8, .3])
@pytest.mark.parametrize('flip', [True, False])
def test_mirrored_and_shifted_masks_stay_aligned(data, flip, shift):
    u = np.random.default_rng(0).random((40, 3))
    how = dict(flip=flip, shift=shift)
    assert np.array_equal(augment(paint_masks(data.train_y, 10), u, **how), paint_masks(augment(data.train_y, u, **how), 10))


# ---- the probe

@pytest.mark.parametrize('mode', ['linear', 'finetune'])
def test_equal_calls_give_equal_numbers(data, mode):
    before = torch.get_rng_state()
    a, b = (ask(None, data, mode, width=4, size=32, photos=12, search=True) for _ in range(2))
    assert untimed(a) == untimed(b) and json.loads(json.dumps(a.records())) and torch.equal(before, torch.get_rng_state())
    alone = ask(None, data, mode, width=4, size=32, photos=12, search=True, seeds=[1])
    assert untimed(alone) == untimed(a)[1:]
    for r in a.rows:
        assert r['n_train'] == 12 and np.sum(r['confusion']) == 20*32*32 and len(r['per_class']) == 10
        assert r['test_miou'] == mean_iou(np.array(r['confusion'])) and r['test_pixel_accuracy'] == pytest.approx(np.trace(r['confusion'])/(20*32*32))


@pytest.mark.parametrize('mode', ['linear', 'finetune'])
@pytest.mark.parametrize('part', ['encoder', 'disc'])
def test_both_players_can_be_asked_and_stay_as_they_are(run, data, mode, part):
    before = {k: v.clone() for net in (run.generator, run.disc) for k,v in net.state_dict().items()}
    r = ask(run, data, mode, part=part).rows[0]
    after = {k: v for net in (run.generator, run.disc) for k,v in net.state_dict().items()}
    assert r['arm'] == part and r['source']['run'] == 'a' and all(torch.equal(before[k], after[k]) for k in before)


def test_every_arm_of_a_seed_gets_the_same_photos_and_none_to_develop_on(run, data):
    a, b, c = (ask(e, data, photos=12, **how) for e,how in ((run, {}), (None, dict(like=run)), ('pixels', dict(size=32))))
    assert [r['subset'] for r in a.rows] == [r['subset'] for r in b.rows] == [r['subset'] for r in c.rows] and a.rows[0]['subset'] != a.rows[1]['subset']
    assert a.rows[0]['floor'] == pytest.approx(a.rows[0]['chance']/10)


def test_a_search_never_sees_a_test_photo(data):
    blind = SegmentationSet('toy', data.train_x, data.train_y, data.test_x*0, data.test_y, SHAPES)
    arm = as_contender(None, width=4, size=32)
    a, b = (search_recipe(Segmentation(), arm, d, mode='finetune', amount=8, recipe=QUICK, progress=False) for d in (data, blind))
    assert a == b and a.selected['n'] == 8 and 3 <= len(a.selected['scores']) <= 5 and a.selected['photos'] == 8


def test_rates_that_diverge_are_not_chosen(data, monkeypatch):
    fit = Segmentation.fit
    def fragile(self, setup, *rest):
        if setup.recipe.lr > 2e-3: raise TrainingDiverged('too high')
        return fit(self, setup, *rest)
    monkeypatch.setattr(Segmentation, 'fit', fragile)
    assert search_recipe(Segmentation(), 'pixels', data, mode='linear', recipe=QUICK, size=32, progress=False).lr < 2e-3


@pytest.mark.parametrize('mode', ['linear', 'finetune'])
def test_a_training_that_diverges_says_so(data, mode):
    with pytest.raises(TrainingDiverged, match='lower lr'): ask(None, data, mode, width=4, size=32, recipe=dense_recipe(steps=8, epochs=1, bs=8, lr=1e38))


def test_records_are_written_as_they_are_made(data, tmp_path, monkeypatch):
    fit = Segmentation.fit
    def tired(self, setup, seed, *rest):
        if seed == 1: raise KeyboardInterrupt
        return fit(self, setup, seed, *rest)
    monkeypatch.setattr(Segmentation, 'fit', tired)
    with pytest.raises(KeyboardInterrupt): ask(None, data, width=4, size=32, out=tmp_path/'r.jsonl')
    assert [r['seed'] for r in read_jsonl(tmp_path/'r.jsonl')] == [0]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(data, tmp_path, monkeypatch):
    for name in ('fit', 'choose'): monkeypatch.setattr(Segmentation, name, lambda *a, **k: pytest.fail('it was computed'))
    with pytest.raises(InputError, match='records go into a file'): ask(None, data, width=4, size=32, out=tmp_path)


@pytest.mark.parametrize('says,call', {
    'no such mode': ('Accepted: linear, finetune', lambda d, tmp: ask(None, d, 'knn', width=4, size=32)),
    'no photos': ('1 or more', lambda d, tmp: ask(None, d, width=4, size=32, photos=0)),
    'too many photos': ('from 1 to 40', lambda d, tmp: ask(None, d, width=4, size=32, photos=41)),
    'no seeds': ('seeds', lambda d, tmp: ask(None, d, width=4, size=32, seeds=[])),
    'scratch of what': ('like=', lambda d, tmp: ask(None, d)),
    'another size': ('48 px', lambda d, tmp: ask(Encoder(4), d, size=48)),
    'pixels trained': ('no weights to train', lambda d, tmp: ask('pixels', d, 'finetune', size=32)),
    'no device': ('is not there', lambda d, tmp: ask(None, d, width=4, size=32, device='cuda:9')),
    'an empty folder': ('is no folder', lambda d, tmp: ask(None, tmp, width=4, size=32)),
}.values(), ids=lambda v: v.replace(' ', '-') if isinstance(v, str) else '')
def test_wrong_calls_end_before_any_training(data, tmp_path, says, call, monkeypatch):
    for name in ('fit', 'choose'): monkeypatch.setattr(Segmentation, name, lambda *a, **k: pytest.fail('it was computed'))
    with pytest.raises(InputError) as e: call(data, tmp_path)
    assert says in str(e.value)


def test_features_that_are_too_many_are_refused(data, monkeypatch):
    import recon_nb.segmentation as page
    monkeypatch.setattr(page, '_MOST', 1e5)
    with pytest.raises(InputError, match='photos='): encode_places(Encoder(4), data.train_x)


def test_a_module_of_one_stage(data):
    class One(nn.Module):
        channels = 5,
        def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 5, 4, stride=4)
        def features(self, x): return [self.conv(x)]
    for mode in ('linear', 'finetune'):
        r = ask(One(), data, mode, size=32)
        assert r.n == 2 and r.rows[0]['arm'] == 'module' and r.show() is not None


def test_void_counts_for_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    place_loss(logits, torch.full((2, 4, 4), VOID)).backward()
    assert logits.grad.abs().max() == 0
    y = torch.randint(3, (2, 4, 4)); y[0] = VOID
    assert place_loss(logits, y).item() == pytest.approx(nn.functional.cross_entropy(logits[1:], y[1:]).item(), rel=1e-5)
    truth, answer = np.full((1, 4, 4), VOID, np.uint8), np.zeros((1, 4, 4), np.uint8)
    truth[0, 0, 0] = 1
    assert count_places(truth, answer, 2).tolist() == [[0, 0], [1, 0]]


def test_what_is_segmented_does_not_depend_on_the_batch(data):
    model = fit_segmenter(as_contender(None, width=4, size=32).build(0), data.train_x, data.train_y, QUICK, mode='linear', classes=10, seed=0)
    assert np.array_equal(segment(model, data.test_x, bs=7), segment(model, data.test_x, bs=20)) and segment(model, data.test_x).dtype == np.uint8


def test_records_say_what_became_of_each_photo(data):
    r = ask(None, data, width=4, size=32, seeds=1).rows[0]
    shares = unpack_shares(r['test_photo_accuracy'])
    assert r['schema'] == 2 and r['task'] == 'segmentation' and len(shares) == r['n_test'] == 20 and r['test_pixels'] == _fingerprint_photos(data.test_x)
    model = fit_segmenter(as_contender(None, width=4, size=32).build(0), data.train_x, data.train_y, QUICK, mode='linear', classes=10, seed=0)
    said = segment(model, data.test_x)
    by_hand = [np.mean([said[n, i, j] == data.test_y[n, i, j] for i in range(32) for j in range(32)]) for n in range(20)]
    assert np.allclose(shares, np.round(by_hand, 2), atol=1e-9) and np.mean(by_hand) == pytest.approx(r['test_pixel_accuracy'])


def test_void_is_no_part_of_a_photos_accuracy():
    truth = np.full((2, 2, 2), VOID, np.uint8); truth[0, 0] = 1
    answer = np.zeros((2, 2, 2), np.uint8); answer[0, 0, 0] = 1
    a = photo_accuracy(truth, answer)
    assert a[0] == .5 and np.isnan(a[1])


@pytest.mark.parametrize('mode', ['linear', 'finetune'])
def test_training_leaves_the_callers_random_numbers(data, mode):
    enc, before = as_contender(None, width=4, size=32).build(0), torch.get_rng_state()
    fit_segmenter(enc, data.train_x, data.train_y, QUICK, mode=mode, classes=10, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_stages_of_many_photos_are_held_once(data):
    "The guard of 8 GB is of what is held: the stages of all photos are views of one array."
    maps = encode_places(Encoder(4), data.train_x, remember=False)
    assert len({m.untyped_storage().data_ptr() for m in maps}) == 1 and [m.shape[1:] for m in maps] == [(4, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)]


def test_all_is_none(data):
    a, b = (ask(None, data, width=4, size=32, photos=k, seeds=1) for k in ('all', None))
    assert untimed(a) == untimed(b) and a.rows[0]['photos'] is None and a.rows[0]['n_train'] == 40
