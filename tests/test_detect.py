"Boxed sets, average precision and the detection probe under checked types: boxes stay with their pixels, bad annotations are named, the measure is COCO's, eight pictures are learned by heart."
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recon_nb import cli
from recon_nb.average_precision import average_precisions, found_shares
from recon_nb.boxed import _OBJECTS, DetectionSet, _draw_objects, load_detection
from recon_nb.core import InputError, read_jsonl
from recon_nb.detection import Detection, detect, detect_recipe, fit_detector, probe_detect
from recon_nb.encoder import Encoder
from recon_nb.probing import search_recipe, unpack_shares
from recon_nb.segmentation import dense_recipe, fit_segmenter, mean_iou, count_places, segment
from recon_nb.segmented import _draw_collages

QUICK = detect_recipe(steps=4, epochs=1, bs=8)
COLOURS = dict(cat=(220, 40, 40), dog=(40, 200, 40))


def obj(name, box, difficult=0):
    "An object as VOC writes it: pixels from 1, the last one belongs to the box."
    left, top, right, bottom = box
    part = '<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>'
    sides = ''.join(f'<{k}>{v}</{k}>' for k,v in (('xmin', left+1), ('ymin', top+1), ('xmax', right), ('ymax', bottom)))
    return f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{part}</object>'


def note(at, name, *objects, wh=(60, 40)):
    (at/f'Annotations/{name}.xml').write_text(f'<annotation><size><width>{wh[0]}</width><height>{wh[1]}</height><depth>3</depth></size>{"".join(objects)}</annotation>')


BOXES = dict(cat=(14, 8, 40, 30), dog=(20, 3, 35, 39))
KINDS = dict(train=['cat', 'dog', 'cat', 'dog', 'cat'], val=['dog', 'cat', 'dog'])


def voc(root):
    "A small copy in VOC's layout, a flat thing on a blue ground in each photo; returns the folder VOC2012."
    at = root/'VOCdevkit/VOC2012'
    for d in ('ImageSets/Main', 'JPEGImages', 'Annotations'): (at/d).mkdir(parents=True)
    for part,kinds in KINDS.items():
        names = [f'2009_{part}{i}' for i in range(len(kinds))]
        for name,kind in zip(names, kinds):
            photo = np.full((40, 60, 3), (30, 30, 200), np.uint8)
            left, top, right, bottom = BOXES[kind]
            photo[top:bottom, left:right] = COLOURS[kind]
            Image.fromarray(photo).save(at/f'JPEGImages/{name}.jpg', quality=97, subsampling=0)
            note(at, name, obj(kind, BOXES[kind]))
        (at/f'ImageSets/Main/{part}.txt').write_text('\n'.join(names) + '\n')
    return at


def load(root, **kwargs): return load_detection('voc2012', root=root, **{**dict(size=20, classes=('cat', 'dog'), progress=False), **kwargs})
def untimed(result): return [{k: v for k,v in r.items() if k != 'seconds'} for r in result.records()]


@pytest.fixture(scope='module')
def data():
    return DetectionSet('toy', *_draw_objects(40, size=32), *_draw_objects(30, size=32, seed=1), tuple(_OBJECTS))


def ask(encoder, data, mode='frozen', **kwargs):
    return probe_detect(encoder, data, **{**dict(mode=mode, seeds=2, recipe=QUICK, search=False, progress=False), **kwargs})


# ---- sets

def test_voc_is_read_and_boxes_lie_on_their_things(tmp_path):
    at = voc(tmp_path)
    for s in (load(tmp_path), load_detection(at, size=20, progress=False), load_detection(at, size=40, progress=False)):
        assert (s.classes, len(s.train_x), len(s.test_x), dict(s.left_out)) == (('cat', 'dog'), 5, 3, {})
        for x,y in ((s.train_x, s.train_y), (s.test_x, s.test_y)):
            for photo,b in zip(x, y):
                red, green, blue = photo.astype(int).transpose(2, 0, 1)
                rows, cols = np.nonzero((blue < 115) & (np.maximum(red, green) > 115))
                seen = [cols.min(), rows.min(), cols.max()+1, rows.max()+1]
                assert b.shape == (1, 6) and abs(b[0,:4]-seen).max() <= 1 and b[0,5] == 1
                assert photo[rows[len(rows)//2], cols[len(cols)//2]].argmax() == b[0,4]


def test_deep_photos_have_one_range_in_both_parts(tmp_path):
    at = voc(tmp_path)
    for p in [*(at/'JPEGImages').iterdir()]:
        with Image.open(p) as im: deep = np.asarray(im.convert('L')).astype(np.uint16)*16          # 12 bits
        Image.fromarray(deep).save(p.with_suffix('.png'))
        p.unlink()
    with pytest.warns(UserWarning, match='12 bit'): s = load(tmp_path)
    cat = [int(x[10, 10]) for x in (s.train_x[0,...,0], s.test_x[1,...,0])]
    assert cat[0] == cat[1] > 60 and load(tmp_path, window={'PNG uint16': (0, 65535)}).train_x.max() < 20


def test_photos_of_any_format_and_any_list(tmp_path):
    at = voc(tmp_path)
    p = at/'JPEGImages/2009_val1.jpg'
    with Image.open(p) as im: im.save(p.with_suffix('.png'))
    p.unlink()
    (at/'ImageSets/Main/some.txt').write_text('2009_train0\n2009_train1\n')
    assert [len(x) for s in [load_detection(at, size=20, lists=('some', 'val'), progress=False)] for x in (s.train_x, s.test_x)] == [2, 3]


@pytest.mark.parametrize('why,name,n,harm', [
    ('photos without an annotation', '2009_train1', 4, lambda at: (at/'Annotations/2009_train1.xml').unlink()),
    ("annotations that can't be read", '2009_train1', 4, lambda at: (at/'Annotations/2009_train1.xml').write_text('<annotation><object>')),
    ("annotations that can't be read", '2009_train1', 4, lambda at: (at/'Annotations/2009_train1.xml').write_text('<annotation><object><name>cat</name></object></annotation>')),
    ("photos that can't be read", '2009_train1', 4, lambda at: (at/'JPEGImages/2009_train1.jpg').unlink()),
    ("photos that can't be read", '2009_train1', 4, lambda at: (at/'JPEGImages/2009_train1.jpg').write_bytes(b'')),
    ('photos that show no object that counts', '2009_train1', 4, lambda at: note(at, '2009_train1')),
    ('photos that show no object that counts', '2009_train1', 4, lambda at: note(at, '2009_train1', obj('dog', BOXES['dog'], difficult=1))),
    ('photos that show no object that counts', '2009_train1', 4, lambda at: note(at, '2009_train1', obj('dog', (0, 0, 11, 40)))),       # the square cuts all but one pixel of it away
    ('boxes without area', '2009_train1.jpg (cat 9, 9, 9, 20)', 5, lambda at: note(at, '2009_train1', obj('dog', BOXES['dog']), obj('cat', (9, 9, 9, 20)))),
    ('boxes without area', '2009_train1.jpg (cat 30, 9, 9, 20)', 5, lambda at: note(at, '2009_train1', obj('dog', BOXES['dog']), obj('cat', (30, 9, 9, 20)))),
    ('boxes outside their photo', '2009_train1.jpg (cat 60, 9, 70, 20)', 5, lambda at: note(at, '2009_train1', obj('dog', BOXES['dog']), obj('cat', (60, 9, 70, 20)))),
    ('boxes cut at the edge of their photo', '2009_train1.jpg (dog 20, -4, 35, 44)', 5, lambda at: note(at, '2009_train1', obj('dog', (20, -4, 35, 44)))),
], ids=lambda v: v.replace(' ', '-') if isinstance(v, str) and v.startswith(('photo', 'box', 'anno')) else '')
def test_what_is_wrong_is_left_out_counted_and_named(tmp_path, why, name, n, harm):
    at = voc(tmp_path)
    harm(at)
    with pytest.warns(UserWarning, match=why): s = load(tmp_path)
    assert len(s.train_x) == n == len(s.train_y) and name in s.left_out[why][0] and all(len(b) for b in s.train_y)
    if 'edge' in why: assert s.train_y[1][0,[1,3]].tolist() == [0, 20]
    if n == 5: assert len(s.train_y[1]) == 1


@pytest.mark.parametrize('says,harm', {
    'no such class': ("2009_val1.xml: unknown class 'kat'. .*classes.txt", lambda at: note(at, '2009_val1', obj('kat', BOXES['cat']))),
    'another size': ('of a photo of 40x60 pixels, its photo has 60x40', lambda at: note(at, '2009_val1', obj('cat', BOXES['cat']), wh=(40, 60))),
    'more than half': ('of 3 photos only 1 have a photo and an annotation', lambda at: [(at/f'Annotations/2009_val{i}.xml').unlink() for i in (0, 1)]),
    'in both lists': ('1 photos are in train.txt and in val.txt, such as 2009_val0', lambda at: (at/'ImageSets/Main/train.txt').write_text('2009_val0\n2009_train1\n')),
    'an empty list': ('names no photo', lambda at: (at/'ImageSets/Main/val.txt').write_text('\n')),
    'no list': ('lacks ImageSets/Main/val.txt', lambda at: (at/'ImageSets/Main/val.txt').unlink()),
}.values(), ids=lambda v: v.replace(' ', '-') if isinstance(v, str) else '')
def test_a_set_that_is_another_one_is_refused(tmp_path, says, harm):
    harm(voc(tmp_path))
    with pytest.raises(InputError, match=says): load(tmp_path)


def test_classes_of_ones_own(tmp_path):
    at = voc(tmp_path)
    (at/'classes.txt').write_text('dog\ncat\n')
    assert load_detection(at, size=20, progress=False).classes == ('dog', 'cat')
    (at/'classes.txt').unlink()
    note(at, '2009_val1', obj('cat', BOXES['cat']), obj('cow', BOXES['dog']))
    with pytest.raises(InputError, match="unknown class 'cow'. Accepted: cat, dog"): load_detection(at, size=20, progress=False)
    with pytest.raises(InputError, match='no photo of the train part shows .*cow'): load(tmp_path, classes=('cat', 'dog', 'cow'))
    with pytest.raises(InputError, match="Did you mean 'cat'"): load(tmp_path, classes='catt')
    one = load(tmp_path, classes='cat')
    assert one.classes == ('cat',) and (len(one.train_x), len(one.test_x)) == (3, 1) and len(one.test_y[0]) == 1          # the cow beside it is not asked for


# ---- the measure

def some_answers(truth, seed=0):
    "Boxes beside the true ones, some twice, some not at all, some under a wrong name."
    rng, out = np.random.default_rng(seed), []
    for b in truth:
        a = np.repeat(b, rng.integers(0, 3, len(b)), 0).astype(float)
        a[:,:4] += rng.normal(0, 1.5, (len(a), 4))
        a[:,2:4] = np.maximum(a[:,2:4], a[:,:2]+1)
        a[:,5], wrong = rng.random(len(a)), rng.random(len(a)) < .2
        a[wrong,4] = rng.integers(0, 6, wrong.sum())
        out.append(a.round(2))
    return out


def test_the_measure_is_cocos():
    pytest.importorskip('pycocotools')
    from torchmetrics.detection import MeanAveragePrecision
    truth = _draw_objects(60, size=64)[1]
    answers = some_answers(truth)
    theirs = MeanAveragePrecision(class_metrics=True, rec_thresholds=np.linspace(0, 1, 101).tolist())       # its own recalls are in single precision, and 0.1 lies above a tenth
    def said(b, **more): return dict(boxes=torch.tensor(b[:,:4]), labels=torch.tensor(b[:,4]).long(), **more)
    theirs.update([said(a, scores=torch.tensor(a[:,5])) for a in answers], [said(b) for b in truth])
    theirs, ours = theirs.compute(), average_precisions(answers, truth, 6)
    found = [ours.mean(), ours[0].mean(), ours[5].mean(), *ours.mean(0)]
    assert np.allclose(found, [theirs['map'], theirs['map_50'], theirs['map_75'], *theirs['map_per_class']], atol=1e-5) and .1 < found[0] < .6


def test_void_objects_cost_nothing_and_give_nothing():
    truth = _draw_objects(30, size=64)[1]
    answers = some_answers(truth)
    less = [np.concatenate([b, [[*b[0,:4], 5-b[0,4], 0]]]).astype(np.float32) for b in truth]      # beside each first object a void one of another class, in its place
    more = [np.concatenate([a, [[*b[0,:4], 5-b[0,4], .99]]]) for a,b in zip(answers, truth)]     # and an answer that finds it
    assert np.allclose(average_precisions(answers, truth, 6), average_precisions(more, less, 6))
    assert np.allclose(found_shares(answers, truth), found_shares(more, less))


def test_a_hand_made_case():
    truth = [np.array([[0, 0, 10, 10, 0, 1], [20, 0, 30, 10, 1, 1]], float), np.array([[0, 0, 10, 10, 0, 1]], float)]
    answers = [np.array([[0, 0, 10, 10, 0, .9], [20, 0, 30, 10, 0, .8]], float), np.array([[0, 0, 10, 10, 0, .7], [3, 3, 5, 5, 1, .6]], float)]
    ap = average_precisions(answers, truth, 2)
    assert np.allclose(ap[:,0], (51 + 50*2/3)/101) and np.allclose(ap[:,1], 0)           # class 0: right, wrong, right of two; class 1: one invention
    assert found_shares(answers, truth).tolist() == [.5, 1.]


# ---- the detector

def test_eight_pictures_are_learned_by_heart():
    x, y = _draw_objects(8, size=48)
    model = fit_detector(Encoder(8), x, list(y), detect_recipe(steps=120, epochs=1, lr=3e-3, shift=0.), mode='finetune', classes=6, seed=0)
    assert np.nanmean(average_precisions(detect(model, x), list(y), 6)[0]) > .9


def test_eight_masks_are_learned_by_heart():
    x, y = _draw_collages(8, size=32)
    model = fit_segmenter(Encoder(16), x, y, dense_recipe(steps=150, epochs=1, lr=3e-3, flip=False, shift=0.), mode='finetune', classes=10, seed=0)
    assert mean_iou(count_places(y, segment(model, x), 10)) > .8


class Stages(nn.Module):
    "A backbone with strides of its own."
    def __init__(self, *strides):
        super().__init__()
        self.channels = tuple(4+i for i in range(len(strides)))
        steps = [b//a for a,b in zip((1, *strides), strides)]
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, s, s), nn.BatchNorm2d(b)) for a,b,s in zip((3, *self.channels), self.channels, steps))
    def features(self, x):
        out = []
        for conv in self.convs: out.append(x := conv(x))
        return out


@pytest.mark.parametrize('strides,grid', [((4, 8), 8), ((8, 16), 4), ((2,), 8), ((1, 2, 8), 8), ((16,), 2)])
def test_any_encoder(strides, grid, data):
    net = Stages(*strides)
    before = {k: v.clone() for k,v in net.state_dict().items()}
    for mode in ('frozen', 'finetune'): assert 0 <= ask(net, data, mode, seeds=1, size=32).mean <= 1
    model = fit_detector(net, data.train_x, data.train_y, QUICK, mode='frozen', classes=6, seed=0)
    assert model.head.grid == grid and all(torch.equal(v, before[k]) for k,v in net.state_dict().items())       # batch norm, too
    assert all(b.dtype == np.float32 and b.shape[1] == 6 and (b[:,:2] < b[:,2:4]).all() and b[:,:4].min(initial=0) >= 0 and b[:,:4].max(initial=0) <= 32 for b in detect(model, data.test_x))


# ---- the probe

def test_records_are_json_and_equal_calls_give_equal_numbers(data, tmp_path):
    found = {mode: ask(Encoder(4), data, mode, photos=20, size=32, out=tmp_path/'r.jsonl') for mode in ('frozen', 'finetune')}
    rows = read_jsonl(tmp_path/'r.jsonl')
    assert rows == json.loads(json.dumps([r for f in found.values() for r in f.records()])) and {r['task'] for r in rows} == {'detection'}
    assert all(len(unpack_shares(r['test_photo_found'])) == r['n_test'] == 30 and len(r['per_class']) == 6 and r['photos'] == r['n_train'] == 20 for r in rows)
    net = Encoder(4)
    for mode in found: assert untimed(ask(net, data, mode, size=32, seeds=[1]))[0] == untimed(ask(net, data, mode, size=32))[1]
    assert found['frozen'].show() is not None and 'mAP@0.5' in repr(found['frozen'])


def test_a_search_tries_rates_on_photos_that_are_not_tested(data):
    r = search_recipe(Detection(['disc', 'ring']), None, data, mode='frozen', amount=8, recipe=QUICK, width=4, size=32, progress=False)
    assert r.selected['on'] == 'development photos' and r.selected['photos'] == 8 and len(r.selected['scores']) >= 3 and r.lr in (float(k) for k in r.selected['scores'])


def test_photos_without_an_object_are_allowed_in_a_set_of_ones_own(data):
    empty = DetectionSet('some empty', data.train_x, (np.zeros((0, 6)), *data.train_y[1:]), data.test_x, (np.zeros((0, 6)), *data.test_y[1:]), data.classes)
    r = ask(None, empty, width=4, size=32, seeds=1).rows[0]
    assert np.isnan(unpack_shares(r['test_photo_found'])[0]) and np.isfinite(r['test_map50'])


# ---- the shell

@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr('recon_nb.detection.detect_recipe', lambda: QUICK)
    monkeypatch.setattr('recon_nb.segmentation.dense_recipe', lambda: dense_recipe(steps=4, epochs=1, bs=8))


def test_detect_and_segment_by_command(quick, tmp_path, capsys):
    at = voc(tmp_path)
    (at/'ImageSets/Segmentation').mkdir()
    (at/'SegmentationClass').mkdir()
    for part,kinds in KINDS.items():
        (at/f'ImageSets/Segmentation/{part}.txt').write_text((at/f'ImageSets/Main/{part}.txt').read_text())
        for i,kind in enumerate(kinds):
            mask = np.zeros((40, 60), np.uint8)
            left, top, right, bottom = BOXES[kind]
            mask[top:bottom, left:right] = 8 if kind == 'cat' else 12
            Image.fromarray(mask, 'L').save(at/f'SegmentationClass/2009_{part}{i}.png')
    out, words = tmp_path/'r.jsonl', ['voc2012', '--root', tmp_path, '--classes', 'cat', 'dog', '--size', 32, '--seeds', 1, '--photos', 4, '--device', 'cpu', '--out', tmp_path/'r.jsonl']
    assert cli.detect(['pixels', *words, '--no-search', '--picture', tmp_path/'found.png']) == 0
    assert cli.segment(['scratch', '--width', 4, *words, '--picture', tmp_path/'masks.png']) == 0
    said = capsys.readouterr().out
    rows = read_jsonl(out)
    assert [(r['task'], r['arm'], r['mode'], r['n_train']) for r in rows] == [('detection', 'pixels', 'frozen', 4), ('segmentation', 'scratch', 'linear', 4)]
    assert 'mAP@0.5' in said and 'mIoU' in said and not rows[0]['selected'] and rows[1]['selected']
    assert all(Image.open(tmp_path/p).size[0] > 100 for p in ('found.png', 'masks.png'))


def test_drawn_sets_by_command(quick, capsys, monkeypatch):
    monkeypatch.setattr('recon_nb.boxed._draw_objects', lambda n, size, seed, draw=_draw_objects: draw(n//20, size=size, seed=seed))
    assert cli.detect(['scratch', 'objects', '--width', '4', '--size', '32', '--seeds', '1', '--no-search', '--mode', 'finetune']) == 0
    assert 'scratch, finetune on objects, 100 photos' in capsys.readouterr().out
