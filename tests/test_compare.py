"Runs asked about given photos: scores with their question and the trivial predictors, one figure that labels what it shows, the shell."
import numpy as np
import pytest
from PIL import Image

from recon_nb import compare_runs, train_gan
from recon_nb.cli import compare, reconstruct
from recon_nb.core import InputError
from recon_nb.figures import draw_reconstructions
from recon_nb.metrics import hidden_psnr
from recon_nb.metrics import score as score_picture
from recon_nb.pixels import to_model
from recon_nb.plugins import REGISTRIES, load_plugins
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes

PHOTOS, MINE = draw_shapes(60, size=48)[0], draw_shapes(7, size=60, seed=9)[0]
TINY = dict(width=4, bs=16, epochs=1, size=32, progress=False)

OWN = """
from torch.nn.functional import avg_pool2d
from recon_nb.generator import Output
from recon_nb.targets import TARGETS, Target

class Blurred(Target):
    "The photo, out of focus."
    def make(self, i_r): return avg_pool2d(i_r, 5, 1, 2, count_include_pad=False)

class Grey(Target):
    "The photo without its colours."
    outputs = Output(1, picture=True),
    def make(self, i_r): return i_r.mean(1, keepdim=True)

TARGETS.update(blurred=Blurred, grey=Grey)
"""


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d, before = tmp_path_factory.mktemp('runs'), {k: dict(v) for k, v in REGISTRIES.items()}
    (d/'own.py').write_text(OWN)
    load_plugins(d/'own.py')
    made = {n: train_gan(PHOTOS, p, run_dir=d/n, **{**TINY, **more}) for n, p, more in (
        ('one', 'quick', dict(width_d=4)), ('two', 'quick', dict(width_d=4, seed=1)), ('large', 'quick', dict(width_d=4, size=48)), ('canvas', 'quick', dict(width_d=4, view='canvas')),
        ('edges', 'improved', dict(width_dec=4)), ('blurred', 'quick', dict(width_d=4, target='blurred')), ('grey', 'quick', dict(width_d=4, target='grey')))}
    yield made
    for k, v in before.items(): REGISTRIES[k].clear(); REGISTRIES[k].update(v)


def columns(fig): return [t.get_text() for t in fig.axes[0].texts]


# --- scores

def test_a_score_is_that_of_the_hidden_part_and_says_what_was_asked(runs):
    run, s = runs['one'], runs['one'].score(MINE)
    r = run.reconstruct(MINE)
    hidden = run.task.mask(range(7), epoch=0, seed=0)
    by_hand = hidden_psnr(to_model(r.painted), to_model(r.i_r), hidden).mean().item()
    assert abs(s.scores['psnr'] - by_hand) < .05 and s.n == 7 and s.question == 'pixels at 32 px, centre mask, visible=0.333'
    assert set(s.trivial) == {'resized centre', 'mean colour', 'edge replication'} and {*s.unfitted} == {'mean image', 'ridge'}
    full = run.score(MINE, fit=PHOTOS)
    assert len(full.trivial) == 5 and full.unfitted == () and full.scores == s.scores and all(full.trivial[k] == v for k, v in s.trivial.items())
    assert '7 photos: PSNR' in repr(s) and 'best trivial predictor: ' in repr(s) and 'fit=photos' in repr(s) and 'fit=' not in repr(full)


def test_it_is_what_training_wrote_down(runs):
    "The same photos, the same predictors: the held-out ones, by their place."
    from recon_nb.data import load_photos, split_photos
    run = runs['one']
    train, valid = split_photos(load_photos(PHOTOS, size=32, cuts=run.task.cuts, progress=False), valid=run.cfg.valid, seed=run.cfg.seed)
    s = run.score(PHOTOS[valid], fit=PHOTOS[train])
    assert run.metrics[-1]['n'] == len(valid) == s.n
    for k, v in s.scores.items(): assert abs(v - run.metrics[-1][k]) < 1e-4, k
    for n, row in run.info['trivial'].items(): assert abs(row['psnr'] - s.trivial[n]['psnr']) < 1e-2, n


def test_predictors_are_scored_on_what_the_target_asks(runs):
    s = runs['blurred'].score(MINE)
    task, cut = runs['blurred'].task, lambda share: to_model(np.stack([np.asarray(Image.fromarray(p).resize((32,32), Image.Resampling.BICUBIC, box=(30*(1-share), 30*(1-share), 30*(1+share), 30*(1+share)))) for p in MINE]))
    photos, sees = cut(1), cut(1/3)
    goal, hidden = task.target.make(photos), task.mask(range(7), epoch=0, seed=0)
    assert abs(s.trivial['resized centre']['psnr'] - score_picture(task.target.make(sees), goal, hidden)['psnr']) < 1e-3        # not on the sharp photo
    assert s.trivial['resized centre']['psnr'] > runs['one'].score(MINE).trivial['resized centre']['psnr']                     # blur is easier
    grey = runs['grey'].score(MINE)
    assert grey.headline.key == 'psnr' and len(grey.trivial) == 3 and grey.question.startswith('grey at 32')


def test_what_is_no_picture_has_its_own_score(runs):
    s = runs['edges'].score(MINE)
    assert s.headline.key == 'explained' and s.trivial == {} and s.best is None and 'explained' in repr(s) and 'trivial' not in repr(s)


def test_a_second_round_is_scored_with_its_teacher(runs, tmp_path):
    run = train_gan(draw_shapes(200, size=32)[0], 'second-round', teacher=runs['edges'].dir, run_dir=tmp_path/'second', **TINY)
    s = GANRun.load(run.dir).score(MINE)
    assert s.headline.key == 'named' and 0 <= s.scores['named'] <= 1 and 'codes of edges at 32 px' in s.question
    (run.dir/'teacher.safetensors').unlink()
    with pytest.raises(InputError, match="teacher.safetensors is not there"): GANRun.load(run.dir).score(MINE)


def test_wrong_photos_are_refused(runs):
    with pytest.raises(InputError, match='no photos'): runs['one'].score([])
    with pytest.raises(InputError, match=r'photos\[::2\]'): runs['one'].score([MINE[0]]*20000)


# --- side by side

def test_one_question_one_row(runs):
    both = compare_runs(runs['one'], runs['two'], photos=MINE)
    row = {r[0]: r[1:] for r in both.rows()}
    assert row['PSNR on 7 photos'] == [s.headline.text(s.scores['psnr']) for s in both.scores] and both.alike
    assert [w.split(' (')[1] for w in row['best trivial predictor']] == [f'{s.best[0]})' for s in both.scores]
    assert 'held out different photos' in compare_runs(runs['one'], runs['two']).notes[0]               # another seed, another split
    assert len(both.notes) == 1 and 'mean image and ridge' in both.notes[0] and both.notes[0] in repr(both).replace('\n', ' ')
    assert compare_runs(runs['one'], runs['two'], photos=MINE, fit=PHOTOS).notes == []


@pytest.mark.parametrize('other', ['large', 'edges', 'blurred', 'grey'])
def test_other_questions_never_share_a_row(other, runs):
    both = compare_runs(runs['one'], runs[other], photos=MINE)
    rows = [r for r in both.rows() if ' on 7 photos' in r[0] or 'best trivial' in r[0]]
    assert rows and all('-' in r[1:] for r in rows) and 'different questions' in both.notes[0] and not both.alike
    assert runs[other].score(MINE).question in both.notes[0]
    assert 'may be compared' in both.figure().subfigs[1]._suptitle.get_text()


@pytest.mark.parametrize('n', [1, 7, 16, 20])
def test_the_figure_draws_what_is_given_and_says_so(n, runs):
    photos = draw_shapes(n, size=40, seed=3)[0]
    three = compare_runs(runs['one'], runs['canvas'], runs['edges'], photos=photos)
    part = three.figure().subfigs[2]
    drawn, said = min(n, 16), part._suptitle.get_text()
    assert said == (f'{n} given photos' if n <= 16 else 'the first 16 of 20 given photos, scores of all 20')
    for ax, run, name in zip(part.axes, three.runs, three.names, strict=True):
        assert ax.get_title(loc='left').startswith(f'{name}: ')
        if run.task.has_picture:
            assert ax.images[0].get_array().shape[1] == drawn*34-2
            assert [t.get_text() for t in ax.get_yticklabels()] == ['sees', 'paints', 'with the\nreal centre', 'photo']
        else: assert 'no picture' in ax.texts[0].get_text()


def test_columns_say_whose_they_are(runs):
    same = columns(draw_reconstructions(dict(one=runs['one'], two=runs['two']), MINE))
    assert same == ['$I_{in}$', 'one\n(composed)', 'two\n(composed)', '$I_r$']
    assert columns(draw_reconstructions(dict(one=runs['one'], large=runs['large']), MINE))[::3] == ['$I_{in}$', '$I_r$']
    views = columns(draw_reconstructions(dict(one=runs['one'], canvas=runs['canvas']), MINE))
    assert [v.replace('\n', ' ') for v in views] == ['$I_{in}$ of one', '$I_{in}$ of canvas', 'one (composed)', 'canvas (composed)', '$I_r$']
    asked = columns(draw_reconstructions(dict(one=runs['one'], blurred=runs['blurred']), MINE))
    assert [a.replace('\n', ' ') for a in asked[-2:]] == ['$I_r$ of one', '$I_r$ of blurred']


# --- the shell

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'photos').mkdir()
    for i, p in enumerate(MINE): Image.fromarray(p).save(tmp_path/'photos'/f'{i}.png')
    return tmp_path/'photos'


def test_recon_compare(runs, folder, tmp_path, capsys):
    (folder/'broken.jpg').write_text('no photo')
    a, b = str(runs['one'].dir), str(runs['edges'].dir)
    assert compare([a, b, *map(str, sorted(folder.iterdir())), '-o', str(tmp_path/'both.png')]) == 0
    out, err = capsys.readouterr()
    assert 'PSNR on 7 photos (A)' in out and 'share explained on 7 photos (B)' in out and 'different questions' in out and out.splitlines()[-1] == str(tmp_path/'both.png')
    assert err.count('\n') == 1 and 'left out' in err and 'broken.jpg' in err
    assert Image.open(tmp_path/'both.png').width == 1350
    assert compare([a, b, str(folder), '-o', str(tmp_path/'both.png')]) == 0                             # the folder itself: its one broken file does not cost the others
    out, err = capsys.readouterr()
    assert 'PSNR on 7 photos (A)' in out and 'broken.jpg' in err
    assert compare([a, a, '-o', str(tmp_path/'same.png')]) == 0 and (tmp_path/'same.png').exists()        # without photos: what they kept


@pytest.mark.parametrize('argv, says', [(['RUN'], 'found one: '), (['RUN', 'none/here'], 'none/here holds no weights.safetensors'), (['RUN', 'RUN', 'none.jpg'], 'no such file'),
                                        (['RUN', 'RUN', '-o', 'x.pdf'], 'should end in .png'), (['none'], 'found none')])
def test_recon_compare_refuses_in_one_line(argv, says, runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compare([str(runs['one'].dir) if a == 'RUN' else a for a in argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and not [*tmp_path.iterdir()]


@pytest.mark.parametrize('scale', [None, 1, 3])
def test_recon_reconstruct_labels_its_rows_and_enlarges_by_whole_numbers(scale, runs, folder, tmp_path):
    out = tmp_path/'out.png'
    assert reconstruct([str(runs['one'].dir), *map(str, sorted(folder.glob('*.png'))[:3]), '-o', str(out), *(['--scale', str(scale)] if scale else [])]) == 0
    picture, k = np.asarray(Image.open(out)), scale or 5                  # 160 px a photo, if nothing is said
    w, h = 3*34-2, 4*34-2
    assert picture.shape[0] == h*k and picture.shape[1] > w*k+40
    grid = picture[:, -w*k:][::k, ::k]
    assert np.array_equal(grid.repeat(k, 0).repeat(k, 1), picture[:, -w*k:])
    r = runs['one'].reconstruct(MINE[:3])
    for i, row in enumerate(r.rows): assert all(np.array_equal(grid[i*34:i*34+32, j*34:j*34+32], p) for j, p in enumerate(row))
    labels = picture[:, :-w*k].min((1,2)) < 100                           # dark letters beside every row
    assert all(labels[i*34*k:(i*34+32)*k].any() for i in range(4))


def test_numbers_are_short_unless_that_hides_a_difference_and_other_losses_are_said(runs):
    from recon_nb.compare import _told
    assert _told((1/3, 1.)) == ['0.333', '1'] and _told((2e-4, 1e-4)) == ['0.0002', '0.0001'] and _told(('a', 3)) == ['a', '3']
    assert _told((.33333, .33334)) == ['0.33333', '0.33334']
    said = lambda *names: [t.get_text() for part in compare_runs(*(runs[n] for n in names)).figure().subfigs for t in [part._suptitle] if t]
    assert any('different losses' in t for t in said('one', 'edges')) and not any('different losses' in t for t in said('one', 'two'))
