"""What a second reading found in probes, tables and commands: what counts as a pretraining, what has seen the test photos, and promises of the shell."""
import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import recon_nb
from recon_nb import probe, train_gan
from recon_nb.advice import Advice, _command, advise
from recon_nb.answer import _name_run, does_it_help
from recon_nb.card import _own_rows, model_card
from recon_nb.cli import compare as shell_compare, probe as shell_probe, table as shell_table, train as shell_train
from recon_nb.contenders import as_contender
from recon_nb.core import InputError, read_jsonl
from recon_nb.encoder import Encoder
from recon_nb.experiments import compare_encoders, plan
from recon_nb.export import export_encoder
from recon_nb.features import encode
from recon_nb.figures import draw_neighbours, _features_of
from recon_nb.guards import check_data
from recon_nb.labelled import LabelledSet, development_images
from recon_nb.protocols import Block, Protocol, pretrain
from recon_nb.run import GANRun
from recon_nb.shapes import draw_shapes
from recon_nb.tables import Table, table, tidy
from recon_nb.widgets import NeighbourExplorer

TINY = dict(size=32, width=4, bs=8, progress=False, device='cpu')


def write(folder, x, y):
    for i, (p, c) in enumerate(zip(x, y)):
        (folder/f'c{c}').mkdir(parents=True, exist_ok=True)
        Image.fromarray(p).save(folder/f'c{c}'/f'{i}.png')


@pytest.fixture(scope='module')
def two():
    "Two classes."
    (x, y), (tx, ty) = draw_shapes(120, size=32, seed=5), draw_shapes(120, size=32, seed=6)
    a, b = y < 2, ty < 2
    return LabelledSet('two', x[a], y[a], tx[b], ty[b], ('a', 'b'))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Seed 0 and seed 1 of one kind, and seed 1 of another; weights of a run on its way."
    home, x = tmp_path_factory.mktemp('runs'), draw_shapes(20, size=40)[0]
    made = {n: train_gan(x, run_dir=home/n, seed=s, max_steps=3, **TINY, **more) for n, s, more in (('a', 0, {}), ('b', 1, {}), ('other', 1, dict(visible=.5)))}
    made['kept'] = train_gan(x, run_dir=home/'kept', epochs=3, keep_every=1, **TINY)
    return made


def test_a_run_that_goes_on_is_no_second_pretraining(runs, two, tmp_path):
    kept = [GANRun.load(runs['kept'].dir, epoch=e) for e in (1, 2, 3)]
    for run in kept: compare_encoders({'mine': run}, two, 'knn', 5, 2, out=tmp_path/'r.jsonl', progress=False)
    with pytest.raises(InputError, match='mine / knn / two / 5 has records of kept, seed 0, with different weights'): table(read_jsonl(tmp_path/'r.jsonl'), 'knn')
    with pytest.raises(InputError, match='two of the runs have seed 0'): does_it_help(kept, two, labels=5, seeds=1, out=tmp_path/'a.jsonl', progress=False)
    compare_encoders({'mine': [runs['a'], runs['b']]}, two, 'knn', 5, 2, out=tmp_path/'two.jsonl', progress=False)
    assert table(read_jsonl(tmp_path/'two.jsonl'), 'knn')['two', 5]['mine'].endswith('(2x2)')


def test_unlike_runs_are_no_pretrainings_of_one_kind(runs, two, tmp_path):
    with pytest.raises(InputError, match='preset, photos or choices differ'): does_it_help([runs['a'], runs['other']], two, labels=5, seeds=1, out=tmp_path/'a.jsonl', progress=False)
    assert as_contender(runs['other']).source['changed']['visible'] == .5 and 'visible' not in as_contender(runs['a']).source['changed']
    rows = [r for n in ('a', 'other') for r in probe(runs[n], two, mode='knn', labels_per_class=5, seeds=2, progress=False).records()]
    assert tidy(rows).arm.nunique() == 2
    rows = [r for n in ('a', 'b') for r in probe(runs[n], two, mode='knn', labels_per_class=5, seeds=2, progress=False).records()]
    assert tidy(rows).arm.nunique() == 1


def test_whoever_saw_the_test_photos_is_named_by_experiments_and_tables_too(two, tmp_path):
    run = train_gan(np.concatenate([two.train_x, two.test_x]), run_dir=tmp_path/'leak', max_steps=2, valid=.02, **TINY)
    with pytest.warns(UserWarning, match='test photos were trained on'): records = compare_encoders({'mine': run.dir}, two, 'knn', 5, 1, out=tmp_path/'r.jsonl', progress=False)
    seen = next(r['test_seen'] for r in records if r['job']['arm'] == 'mine')
    assert seen > .8*len(two.test_y)
    assert f'two: the pretraining of mine saw {seen} of the {len(two.test_y)} test photos, without their labels.' in table(records, 'knn').notes


def test_features_that_somebody_changed_are_computed_anew(two):
    net = Encoder(4)
    f = encode(net, two.test_x)
    before = f.clone()
    assert encode(net, two.test_x) is f
    f /= f.norm(dim=1, keepdim=True)
    assert torch.equal(encode(net, two.test_x), before)


def test_code_of_ones_own_is_not_remembered(two):
    class Mine(nn.Module):
        channels, scale = (3,), 1.
        def features(self, x): return [x*self.scale]
    net = Mine()
    one = _features_of(net, two.test_x)
    Mine.scale = 2.
    assert torch.allclose(_features_of(net, two.test_x), 2*one)


def test_a_class_with_one_photo_stops_no_probe(two):
    y = np.concatenate([two.train_y, [2]])
    s = LabelledSet('few', np.concatenate([two.train_x, two.train_x[:1]]), y, np.concatenate([two.test_x, two.test_x[:1]]), np.concatenate([two.test_y, [2]]), ('a', 'b', 'c'))
    dev = development_images(y)
    assert {*y[dev]} == {0, 1} and np.array_equal(development_images(two.train_y), dev)
    assert len(probe('pixels', s, mode='knn', size=32, seeds=1, progress=False).scores) == 1


@pytest.mark.parametrize('change', [dict(source=dict(preset=3)), dict(source=dict(preset='p', seed=[1])), dict(job=dict(arm=['x']))])
def test_records_with_odd_names_are_refused(change):
    row = dict(arm='encoder', data='two', mode='knn', labels_per_class=5, seed=0, test_accuracy=.5, chance=.5, classes=2, size=32, seconds=1., n_train=10, n_test=10)
    with pytest.raises(InputError, match='record'): tidy([row | change])


def test_no_name_is_given_twice_in_a_module():
    "The second would replace the first without a word, and a linter does not see it."
    for path in Path(recon_nb.__file__).parent.glob('*.py'):
        names = [t.id for s in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(s, ast.Assign) for t in s.targets if isinstance(t, ast.Name)]
        names += [s.name for s in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(s, (ast.FunctionDef, ast.ClassDef)) and not s.decorator_list]
        assert {n for n in names if names.count(n) > 1} <= {'__all__'}, path.name


class Edges(nn.Module):
    "Nothing to train."
    channels = 2,
    def features(self, x): return [torch.stack([x.diff(dim=2)[..., :-1].abs().mean(1), x.diff(dim=3)[:, :, :-1].abs().mean(1)], 1)]


def test_an_encoder_without_weights_is_asked_all_that_it_can_answer(two, tmp_path):
    torch.manual_seed(0)
    answer = does_it_help(Edges(), two, size=32, labels=5, seeds=2, minutes=5, out=tmp_path/'a.jsonl', progress=False)
    assert {r['mode'] for r in answer.records if r['kind'] == 'probe'} >= {'knn', 'linear'}
    assert len(plan({'mine': Edges()}, two, 'knn', 5, 1, size=32, out=tmp_path/'none.jsonl'))
    plan({'scratch': None}, two, 'knn', 5, 1, size=32, width=4, out=tmp_path/'none.jsonl')
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_advice_judges_the_pixels_that_it_trains_on_and_its_command_runs(tmp_path, monkeypatch, capsys):
    (tmp_path/'deep photos').mkdir()
    for i, x in enumerate(draw_shapes(260, size=32)[0]): Image.fromarray(x[..., 0].astype(np.uint16)*8).save(tmp_path/'deep photos'/f'{i}.png')
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr('recon_nb.advice._look', lambda c, x, views, device: shown.append(x) or dict(n=len(x), right={'itself': ['']*3}, spread=[1.]*5))
    met = []
    monkeypatch.setattr('recon_nb.advice._conclude', lambda work, stopped: met.append(work) or Advice('', '', None, '', '', Table(), 1, work.out, ''))
    advise(str(tmp_path/'deep photos'), targets=['pixels'], updates=1, width=4, window='0 2040', out='advice', progress=False, device='cpu')
    assert shown[0].max() > 250, 'twice as dark without the range'
    words = shlex.split(_command(met[0], 'pixels'))
    assert '0 2040' in words and str(tmp_path/'deep photos') in words
    assert shell_train([*words[1:], '--epochs', '1', '--max-steps', '1', '--run-dir', 'r', '--device', 'cpu', '--quiet']) == 0


def test_updates_are_as_many_as_are_asked_for(runs, two, tmp_path, capsys):
    for part, x, y in (('train', two.train_x, two.train_y), ('test', two.test_x, two.test_y)): write(tmp_path/'set'/part, x, y)
    words = [str(runs['a'].dir), str(tmp_path/'set'), '--labels', 'all', '--seeds', '1', '--minutes', 'inf', '--device', 'cpu', '--out', str(tmp_path/'p.jsonl')]
    monkey = [*words, '--updates', '2']
    assert shell_probe(monkey) == 0
    tuned = [r for r in read_jsonl(tmp_path/'p.jsonl') if r['kind'] == 'probe' and r['mode'] == 'finetune']
    assert tuned and {r['images_seen'] for r in tuned} == {2*min(r['config']['bs'], r['n_train']) for r in tuned}
    assert shell_probe([*words, '--updates', '0']) == 2 and 'a recipe needs an update' in capsys.readouterr().err


def test_a_part_of_a_table_is_that_part(two, tmp_path, capsys):
    compare_encoders({'scratch': None, 'mine': as_contender(Encoder(4), size=32)}, two, ['knn', 'linear'], 5, 1, size=32, width=4, out=tmp_path/'r.jsonl', progress=False)
    capsys.readouterr()
    assert shell_table(['--records', str(tmp_path/'r.jsonl'), '--modes', 'knn', '--arms', 'nobody']) == 0
    said = capsys.readouterr().out
    assert '## knn' in said and '## linear' not in said and 'nobody: no record has this name.' in said
    assert shell_table(['--records', str(tmp_path/'r.jsonl'), '--modes', 'finetune']) == 2


PLAIN = """
import json, sys, numpy as np
from recon_nb.contenders import as_contender
from recon_nb.core import InputError, read_jsonl
from recon_nb.finetune import Recipe
from recon_nb.encoder import Encoder, stage_index
from recon_nb.probing import _parse_count
from recon_nb.experiments import compare_encoders
r = Recipe(steps=np.int64(2), epochs=np.int32(0), bs=4, lr=np.float64(.001))
assert json.dumps([r.steps, r.epochs, r.lr]) == '[2, 0, 0.001]'
compare_encoders({'mine': as_contender(Encoder(4), size=32)}, 'shapes', 'finetune', 5, 1, recipes={'*': dict(steps=np.int64(2), epochs=0, bs=4)}, search=False,
                 out=sys.argv[1], progress=False)
assert [r['config']['steps'] for r in read_jsonl(sys.argv[1])] == [2]
assert _parse_count(np.int64(5)) == 5 and stage_index(Encoder(4), np.int64(-1)) == 3
try: stage_index(Encoder(4), True)
except InputError as e: assert 'stage=True' in str(e)
else: assert False
print('fine')
"""


def test_numbers_of_numpy_are_kept_in_records(tmp_path):
    "Without the type checks that tests have, and people not."
    found = subprocess.run([sys.executable, '-c', PLAIN, str(tmp_path/'r.jsonl')], env={**os.environ, 'RECON_NB_TYPES': '0'}, capture_output=True, text=True)
    assert found.stdout.endswith('fine\n'), found.stderr


def test_a_finished_pretraining_on_deep_photos_is_found_again(tmp_path, monkeypatch):
    (tmp_path/'deep').mkdir()
    for i, x in enumerate(draw_shapes(12, size=32)[0]): Image.fromarray(x[..., 0].astype(np.uint16)*16).save(tmp_path/'deep'/f'{i}.png')
    p = Protocol('mine', width=4, sizes=dict(two=32), blocks=(Block(('knn',), (5,), 1),), photos=str(tmp_path/'deep'), bs=4, fields=dict(max_steps=2, valid=.1), arms={'x': 'improved'})
    first = pretrain(p, tmp_path/'runs', progress=False, device='cpu')
    monkeypatch.setattr('recon_nb.protocols.train_gan', lambda *args, **how: pytest.fail('trained once more'))
    assert pretrain(p, tmp_path/'runs', progress=False, device='cpu') == first


def test_pretraining_can_be_silent(tmp_path, capsys):
    "And on a set with a held-out part of its own, where `valid` would be refused."
    p = Protocol('mine', width=4, sizes=dict(two=32), blocks=(Block(('knn',), (5,), 1),), photos='shapes', bs=4, fields=dict(max_steps=1), arms={'x': 'improved'})
    for wanted in (False, True):
        pretrain(p, tmp_path/str(wanted), progress=wanted, device='cpu')
        assert bool(capsys.readouterr().out) == wanted


def test_a_rare_class_is_no_traceback(two):
    y = np.zeros(60, np.int64)
    y[0] = 1
    report = check_data(SimpleNamespace(train_x=draw_shapes(60, size=32)[0], train_y=y, test_x=draw_shapes(60, size=32, seed=1)[0], test_y=y, classes=('ok', 'bad')))
    assert 'fewer than 3 images' in report['pairs in train'].expected


def test_labels_are_counted_by_their_places(two):
    order = np.random.default_rng(0).permutation(len(two.test_y))
    series = pd.Series(two.test_y).iloc[order]
    seen = NeighbourExplorer('pixels', two.test_x[order], labels=series)
    assert [seen._word(i) for i in range(5)] == [str(v) for v in two.test_y[order][:5]]
    draw_neighbours('pixels', two.test_x, 0, labels=pd.Series(two.test_y, index=range(100, 100+len(two.test_y))))
    with pytest.raises(InputError, match='give uint8'): NeighbourExplorer('pixels', two.test_x/255)


def test_a_card_takes_the_controls_beside_its_own_rows(runs, two, tmp_path):
    here = compare_encoders({'mine': runs['a'], 'scratch': None}, two, 'knn', 5, 1, out=tmp_path/'r.jsonl', progress=False)
    there = [json.loads(json.dumps(r)) | dict(size=64) for r in here if r['arm'] == 'scratch']
    assert len(there) == 1 and {r['size'] for r in _own_rows(runs['a'], [*here, *there])} == {32}


def test_a_file_of_a_runs_weights_is_the_run(runs, two, tmp_path):
    "It knows its photos, its seed and its epoch; an export of it knows less, and is called by its weights."
    kept = runs['kept'].dir
    c = as_contender(kept/'weights'/'epoch-0002.safetensors')
    assert c.run == kept and (c.source['run'], c.source['seed'], c.source['epoch']) == ('kept', 0, 2) and _name_run([c]) == 'kept, epoch 2'
    assert as_contender(kept/'weights.safetensors').source == as_contender(kept).source and 'epoch' not in as_contender(kept).source
    for where in (kept, kept/'weights'/'epoch-0002.safetensors', kept/'weights.safetensors'): # each knows its photos: none is among these
        assert probe(where, two, mode='knn', labels_per_class=5, seeds=1, progress=False).records()[0]['test_seen'] == 0
    exports = [as_contender(export_encoder(kept/'weights'/f'epoch-000{e}.safetensors', tmp_path/f'{e}.safetensors')) for e in (1, 2)]
    assert len({_name_run([c]) for c in exports}) == 2 and all(_name_run([c]).startswith('quick (') for c in exports)
    with pytest.raises(InputError, match='exports do not say which pretraining'): _name_run(exports)


@pytest.mark.parametrize('name', ['scratch', 'random weights', 'raw pixels'])
def test_a_run_may_be_called_as_a_control_is(name, runs, two, tmp_path):
    shutil.copytree(runs['a'].dir, tmp_path/name)
    answer = does_it_help(tmp_path/name, two, labels=5, seeds=1, minutes=.01, out=tmp_path/'a.jsonl', progress=False)
    assert {r['job']['arm'] for r in answer.records} == {f'{name} (run)', 'scratch', 'raw pixels'}


def test_a_run_without_weights_is_no_folder_of_photos(runs, tmp_path, capsys):
    for n in ('a', 'b', 'c'): shutil.copytree(runs['a'].dir, tmp_path/n)
    (tmp_path/'c'/'weights.safetensors').unlink()
    out = ['-o', str(tmp_path/'o.png'), '--device', 'cpu']
    assert shell_compare([*(str(tmp_path/n) for n in 'abc'), *out]) == 2 and 'is a run without weights.safetensors' in capsys.readouterr().err
    assert shell_compare([str(tmp_path/'a'), str(runs['kept'].dir/'weights'/'epoch-0001.safetensors'), *out]) == 0


def test_frozen_records_stand_in_one_table_whoever_made_them(runs, two, tmp_path):
    one = compare_encoders({'scratch': None}, two, 'knn', 5, 2, size=32, like=runs['a'], out=tmp_path/'r.jsonl', progress=False)
    other = probe(None, two, mode='knn', labels_per_class=5, seeds=2, like=runs['a'], progress=False).records()
    assert len(tidy([*one, *other])) == 2


def test_a_card_says_what_must_be_known_and_leaves_out_earlier_states(runs, two, tmp_path):
    run = train_gan(np.concatenate([two.train_x, two.test_x]), run_dir=tmp_path/'leak', epochs=2, keep_every=1, valid=.02, **TINY)
    records = [r for e in (1, None) for r in probe(GanAt(run, e), two, mode='knn', labels_per_class=5, seeds=2, progress=False).records()]
    assert {r['source']['step'] for r in _own_rows(run, records)} == {run.step}
    seen = records[-1]['test_seen']
    records += probe(None, two, mode='knn', labels_per_class=5, seeds=2, like=run, progress=False).records()
    text = model_card(run, records=records)
    assert f'saw {seen} of the {len(two.test_y)} test photos' in text and 'One pretraining: how others would vary is not included.' in text


def GanAt(run, epoch): return GANRun.load(run.dir, epoch=epoch)


def test_what_is_advised_against_few_updates_makes_more(tmp_path, capsys):
    x = draw_shapes(40, size=32)[0]
    train_gan(x, run_dir=tmp_path/'a', **(TINY | dict(progress=True)), max_steps=20, epochs=2)
    said = capsys.readouterr().out
    assert 'epochs=' in said and 'max_steps up' not in said, 'the epochs end before max_steps does'


@pytest.mark.parametrize('name', ['history.jsonl', 'run.json'])
def test_records_never_go_into_a_runs_own_files(name, runs, two, tmp_path):
    shutil.copytree(runs['a'].dir, tmp_path/'run')
    before = (tmp_path/'run'/name).read_bytes()
    for ask in (lambda out: does_it_help(tmp_path/'run', two, labels=5, seeds=1, out=out, progress=False),
                lambda out: compare_encoders({'scratch': None}, two, 'knn', 5, 1, size=32, width=4, out=out, progress=False)):
        with pytest.raises(InputError, match='is a file of the run in'): ask(tmp_path/'run'/name)
        with pytest.raises(InputError, match='is a folder'): ask(tmp_path)
    assert (tmp_path/'run'/name).read_bytes() == before


def test_a_table_among_photos_is_refused(tmp_path, capsys):
    (tmp_path/'l.csv').write_text('path\nx.png\n')
    assert shell_train([str(tmp_path/'l.csv'), str(tmp_path), '--max-steps', '1', '--quiet']) == 2
    assert 'l.csv is a table: give it alone' in capsys.readouterr().err
