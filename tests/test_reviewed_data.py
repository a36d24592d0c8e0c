"""What a second reading found in the ways from a picture to an array: races, ranges of deep pictures, labels in their order, numbers of NumPy."""
import io
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recon_nb import train_gan
from recon_nb.boxed import load_detection
from recon_nb.core import InputError, _permitted
from recon_nb.data import load_photos
from recon_nb.decoding import Ranges
from recon_nb.labelled import load_labelled
from recon_nb.masks import MASKS
from recon_nb.photos import cut_photos
from recon_nb.plugins import load_plugins
from recon_nb.records import read_rows
from recon_nb.segmented import load_segmentation
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
from recon_nb.sources import _walk

CUTS, TINY = dict(i_r=1.), dict(size=32, width=4, bs=4, max_steps=2, progress=False, device='cpu')


def deep(path, top, side=40):
    "A picture of 16 bits: grey at half of its range, one pixel at the top of it."
    a = np.full((side, side), top//2, np.uint16)
    a[0, 0] = top
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(a).save(path, 'PNG')
    return path


@pytest.fixture
def twelve(tmp_path): return [deep(tmp_path/'deep'/f'{i}.png', 4095) for i in range(4)]


@pytest.fixture
def flat(tmp_path):
    (tmp_path/'flat').mkdir()
    for i, x in enumerate(draw_shapes(6, size=32)[0]): Image.fromarray(x).save(tmp_path/'flat'/f'{i}.png')
    return sorted((tmp_path/'flat').iterdir())


class Pictures:
    "A Dataset that opens files."
    def __init__(self, files, bad=None): self.files, self.bad = files, bad
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return Image.open(__file__ if i == self.bad else self.files[i]), i % 2


def test_no_photo_is_read_by_two_at_once(twelve):
    "To find the range of a deep picture all are asked, while threads decode the others."
    buf = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)).save(buf, 'JPEG')
    whole, = load_photos([buf.getvalue()], size=32, cuts=CUTS, progress=False).cuts['i_r']
    for _ in range(3):
        got = load_photos([twelve[0].read_bytes()] + [buf.getvalue()]*15, size=32, cuts=CUTS, workers=4, progress=False)
        assert not got.skipped and (got.cuts['i_r'][1:] == whole).all()


@pytest.mark.parametrize('give', [
    lambda fs: fs[0].parent, lambda fs: fs, Pictures, lambda fs: [f.read_bytes() for f in fs], lambda fs: [open(f, 'rb') for f in fs],
    lambda fs: pd.DataFrame(dict(image=[f.read_bytes() for f in fs])), lambda fs: [np.zeros((40, 40, 3), np.uint8), *map(Image.open, fs)]])
def test_a_range_is_found_however_photos_are_given(give, twelve):
    found = load_photos(give(twelve), size=32, cuts=CUTS, progress=False)
    assert found.window == {'PNG uint16': (0, 4095)} and not found.skipped and 120 < np.median(found.cuts['i_r'][-1]) < 130


def test_images_that_are_not_decoded_yet_are_not_decoded_by_two(twelve):
    "One thread looks for their range while others ask what kind they are."
    for _ in range(25):
        for files in (twelve*3, [io.BytesIO(f.read_bytes()) for f in twelve*3]):
            found = load_photos([Image.open(f) for f in files], size=32, cuts=CUTS, workers=4, progress=False)
            assert not found.skipped and found.window == {'PNG uint16': (0, 4095)} and 120 < np.median(found.cuts['i_r']) < 130


def test_without_a_picture_to_look_at_a_range_is_asked_for():
    with pytest.raises(InputError, match=r'Give window=\(low, high\)'): Ranges().of('PNG uint16')


def test_a_deep_picture_may_have_any_name_and_another_range_gives_other_pixels(twelve, tmp_path):
    for f in twelve: (tmp_path/f'named-{f.stem}.jpg').write_bytes(f.read_bytes())
    files = sorted(tmp_path.glob('named-*.jpg'))
    see = lambda what, **how: load_photos(what, size=32, cuts=CUTS, progress=False, **how).window['PNG uint16']
    assert [see(files, window=w) for w in (None, (0, 40000), (0, 5000))] == [(0, 4095), (0, 40000), (0, 5000)]
    assert [see(twelve[0].parent, whole=True, window=w) for w in ((0, 5000), (0, 20000), None)] == [(0, 5000), (0, 20000), (0, 4095)]
    assert see(twelve[0].parent, window=np.array([0., 4000.])) == (0, 4000)


@pytest.mark.parametrize('pair', [lambda a, b: (a, b), lambda a, b: dict(train=a, test=b), lambda a, b: (tuple(parts(a)), tuple(parts(b)))])
def test_two_parts_have_one_range(pair, tmp_path):
    for part, top in (('one', 5000), ('two', 4000)):
        for c in 'ab':
            for i in range(3): deep(tmp_path/part/c/f'{i}{c}.png', top)
    s = load_labelled(pair(tmp_path/'one', tmp_path/'two'), size=32, progress=False)
    assert [np.median(x) for x in (s.train_x, s.test_x)] == [39, 31]


def parts(folder):
    files = sorted(folder.rglob('*.png'))
    return files, [f.parent.name for f in files]


def test_labels_go_with_their_photos_in_the_order_that_was_given(flat):
    back, y = flat[::-1], [0, 0, 0, 1, 1, 1]
    of = {f.name: label for f, label in zip(back, y)}
    for photos in (back, map(type(back[0]), back), iter(back), (f for f in back)):
        s = load_labelled((photos, y), size=16, split=.4, progress=False)
        assert {n: int(s.classes[label]) for part, ys in (('train', s.train_y), ('test', s.test_y)) for n, label in zip(s.paths[part], ys)} == of
    with pytest.raises(InputError, match='a set has no order'): load_labelled((set(back), y), size=16)
    some = load_labelled(([*map(str, back)], [None, 'a', 'b', 'a', 'b', 'a']), size=16, progress=False)
    assert len(some.train_y) + len(some.test_y) == 5


def test_missing_values_of_pandas_and_odd_cells(flat, tmp_path):
    listing = pd.DataFrame(dict(path=[*map(str, flat)], label=['a', 'b', None, 'a', 'b', 'a'])).convert_dtypes()
    assert len(load_labelled(listing, size=16, progress=False).train_y) == 3
    for cell in ('~tmp.png', 'A'*3000):
        (tmp_path/'l.csv').write_text(f'image,label\n{cell},a\n{cell},b\n')
        with pytest.raises(InputError, match='2 of 2 photos of the table l are not there'): load_labelled(tmp_path/'l.csv', size=16)
    flat[0].rename(flat[0].with_name('~0.png'))
    (flat[0].parent/'l.csv').write_text('image,label\n~0.png,a\n1.png,b\n2.png,a\n3.png,b\n')
    assert len(load_photos(flat[0].parent/'l.csv', size=16, cuts=CUTS, progress=False)) == 4


def test_a_damaged_item_of_a_dataset_is_skipped_as_a_damaged_file_is(flat):
    with pytest.warns(UserWarning, match='skipped 1 of 6 photos: 2'): found = load_photos(Pictures(flat, bad=2), size=16, cuts=CUTS, progress=False)
    assert found.names == ['0', '1', '3', '4', '5'] and found.labels.tolist() == [0, 1, 1, 0, 1]


PLAIN = """
import sys, numpy as np
from recon_nb.core import InputError, sample_uniform
from recon_nb.data import load_photos
from recon_nb.labelled import load_labelled
from recon_nb.masks import MASKS
from recon_nb.settings import _choose_config
from recon_nb.shapes import draw_shapes
folder = sys.argv[1]
a, b = (load_photos(folder, size=s, cuts=dict(i_r=c), progress=False) for s, c in ((16, .5), (np.int64(16), np.float32(.5))))
assert np.array_equal(a.cuts['i_r'], b.cuts['i_r'])
assert np.array_equal(draw_shapes(3, seed=np.int64(3))[0], draw_shapes(3, seed=3)[0])
assert np.array_equal(sample_uniform(np.int64(7), 0, 1, stream='x'), sample_uniform(7, 0, 1, stream='x'))
cfg, _ = _choose_config(dict(window=np.array([0, 4095])), preset=None, config=None, like=None, run_dir=None, resume=False, seed=None)
assert cfg.window == '0 4095'
for how, says in ((dict(size='32'), "size='32'"), (dict(size=32.), 'size=32.0'), (dict(size=0), 'size=0'), (dict(share=0), "'share': 0"),
                  (dict(share='1'), "'share': '1'"), (dict(share=2), "'share': 2"), (dict(split='0.2'), "split='0.2'")):
    try: load_labelled(folder, **(dict(size=32, progress=False) | how))
    except InputError as e: assert says in str(e), e
    else: assert False, how
print('fine')
"""


def test_numbers_of_numpy_are_numbers_and_others_are_refused(flat):
    "Without the type checks that tests have, and people not."
    env = {**os.environ, 'RECON_NB_TYPES': '0'}
    found = subprocess.run([sys.executable, '-c', PLAIN, str(flat[0].parent)], env=env, capture_output=True, text=True)
    assert found.stdout == 'fine\n', found.stderr


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('ending', ['tif', 'jpg'])
def test_boxes_and_masks_are_those_of_the_upright_photo(ending, orientation, tmp_path):
    "An annotation without a size, a mask as large as people see the photo."
    wh = (60, 40)
    stored = wh[::-1] if orientation > 4 else wh
    exif = Image.Exif()
    exif[274] = orientation
    for part in ('train', 'test'):
        for kind in ('images', 'masks', 'boxes'): (tmp_path/part/kind).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', stored, 'green').save(tmp_path/part/'images'/f'{i}.{ending}', exif=exif)
            Image.new('L', wh, i).save(tmp_path/part/'masks'/f'{i}.png')
            (tmp_path/part/'boxes'/f'{i}.xml').write_text('<annotation><object><name>cat</name><bndbox><xmin>21</xmin><ymin>6</ymin><xmax>45</xmax><ymax>30</ymax></bndbox></object></annotation>')
    boxes = load_detection(tmp_path, size=32, progress=False)
    scale = 32/40
    assert boxes.train_y[0][0][:4] == pytest.approx(np.array([20-10, 5, 45-10, 30])*scale, abs=.01)
    assert len(load_segmentation(tmp_path, size=32, progress=False).train_x) == 2


def test_names_that_are_no_text_have_their_masks(tmp_path):
    name = os.fsdecode(b'\xf0.png')
    for part in ('train', 'test'):
        for kind in ('images', 'masks'):
            (tmp_path/part/kind).mkdir(parents=True)
            try: Image.new('RGB' if kind == 'images' else 'L', (32, 32)).save(tmp_path/part/kind/name)
            except OSError: pytest.skip('no such names on this system')
            Image.new('RGB' if kind == 'images' else 'L', (32, 32), 1 if kind == 'masks' else 'red').save(tmp_path/part/kind/'1.png')
    assert len(load_segmentation(tmp_path, size=32, progress=False).train_x) == 2


@pytest.mark.parametrize('load', [load_segmentation, load_detection])
def test_two_lists_are_needed(load, tmp_path):
    for d in ('JPEGImages', 'SegmentationClass', 'Annotations', 'ImageSets/Main', 'ImageSets/Segmentation'): (tmp_path/d).mkdir(parents=True)
    with pytest.raises(InputError, match='it names two lists of VOC'): load('voc2012', root=tmp_path, size=32, lists=('train',), progress=False)


def test_a_class_without_photos_is_named(tmp_path):
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i, x in enumerate(draw_shapes(5, size=32)[0]): Image.fromarray(x).save(tmp_path/c/f'{c}{i}.png')
    (tmp_path/'empty').mkdir()
    with pytest.warns(UserWarning, match='no photo could be read in .*empty: it is no class here'): s = load_labelled(tmp_path, size=16, progress=False)
    assert s.classes == ('a', 'b')


def test_a_run_may_be_called_weights(tmp_path):
    run = train_gan(draw_shapes(9, size=32)[0], run_dir=tmp_path/'weights', keep_every=1, **TINY)
    assert run.dir.name == 'weights' and run.finished and len(run.metrics)


def test_like_takes_choices_and_a_root_for_the_same_photos_only(flat, tmp_path):
    (tmp_path/'l.csv').write_text('path\n' + '\n'.join(f.name for f in flat))
    first = train_gan(tmp_path/'l.csv', root=flat[0].parent, run_dir=tmp_path/'r1', **TINY)
    for i, data in enumerate((flat[0].parent, tmp_path/'l.csv')):
        assert train_gan(data, like=first, run_dir=tmp_path/f'again-{i}', progress=False, device='cpu').step == 2


def test_a_pattern_that_would_take_the_runs_pictures_is_refused(flat, monkeypatch):
    monkeypatch.chdir(flat[0].parent)
    with pytest.raises(InputError, match='would lie among the photos of .*Choose a run_dir elsewhere'): train_gan('**/*.png', **TINY)
    assert train_gan('*.png', **TINY).step == 2


def test_what_may_not_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="/secret can't be read: Permission denied"), _permitted(): raise PermissionError(13, 'Permission denied', '/secret')
    (tmp_path/'open').mkdir(); (tmp_path/'shut').mkdir()
    (tmp_path/'open'/'a.png').write_bytes(b'')
    stat = os.stat
    def refuse(path, *args, **how):
        if os.fspath(path).endswith('shut'): raise PermissionError(13, 'Permission denied', path)
        return stat(path, *args, **how)
    monkeypatch.setattr(os, 'stat', refuse)
    assert {name: entry is None for name, entry in _walk(tmp_path)} == {'open/a.png': False, 'shut/': True}


def test_a_plugin_with_a_dataclass(tmp_path):
    (tmp_path/'with_options.py').write_text('from __future__ import annotations\nfrom dataclasses import dataclass\nfrom recon_nb.masks import MASKS, CentreMask\n'
                                            '@dataclass\nclass Options: share: float = .5\nclass Mine(CentreMask): pass\nMASKS["with-options"] = Mine\n')
    try: assert load_plugins(tmp_path/'with_options.py')[0]['gives'] == {'mask': ['with-options']}
    finally: MASKS.pop('with-options', None)
    (tmp_path/'broken.py').write_text('1/0')
    with pytest.raises(InputError, match='ZeroDivisionError'): load_plugins(tmp_path/'broken.py')
    assert 'recon_nb_plugin_broken' not in sys.modules


def test_a_damaged_line_of_a_long_history_is_named(tmp_path):
    file, line = tmp_path/'history.jsonl', '{"step": %d, "epoch": 1, "seconds": 0.5, "L_G": 0.25, "L_D": 0.125}\n'
    for damage in ('{"step": 9, "epoch": 1, "seconds": , "L_G": 0.25, "L_D": 0.125}\n', '{"step": 9, "epoch": 1, "seconds": 1-2, "L_G": 0.25, "L_D": 0.125}\n'):
        file.unlink(missing_ok=True)
        file.write_text(''.join(line % i for i in range(70_000)) + damage)
        with pytest.raises(InputError, match='line 70001 is not JSON'): read_rows(file)


def test_a_config_saved_by_an_editor_of_windows(tmp_path):
    (tmp_path/'c.json').write_text('\ufeff{"bs": 8}', encoding='utf-8')
    cfg, _ = _choose_config({}, preset='quick', config=tmp_path/'c.json', like=None, run_dir=None, resume=False, seed=None)
    assert cfg.bs == 8 and torch.get_num_threads() > 0


def test_open_files_are_read_from_their_start(twelve):
    files = [open(f, 'rb') for f in twelve]
    for f in files: f.read(10)
    assert np.array_equal(cut_photos(files, size=8), cut_photos(twelve, size=8))
