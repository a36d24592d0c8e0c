"The commands as a person uses them: real processes, real files, Ctrl-C, mistakes."
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

TINY = '--size 32 --width 4 --epochs 2 --bs 8'.split()
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def command(name, *argv, **kwargs):
    code = f'import sys; from recon_nb.cli import {name}; sys.exit({name}())'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, argv)], env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def run(name, *argv, **kwargs):
    p = command(name, *argv, **kwargs)
    out, err = p.communicate(timeout=300)
    return p.returncode, out, err


def photo(i, w=70, h=50):
    y, x = np.mgrid[:h, :w]
    return np.stack([(x*3+i*20) % 256, (y*4+i*30) % 256, (x+y+i*40) % 256], -1).astype(np.uint8)


@pytest.fixture
def mixed(tmp_path):
    "Twenty files in every format that is promised; three of them are broken."
    d = tmp_path/'mixed'
    d.mkdir()
    for i, ext in enumerate(['jpg', 'png', 'webp', 'bmp', 'tiff']*3):
        Image.fromarray(photo(i)).save(d/f'{i:02d}.{ext}')
    Image.fromarray(photo(1)[..., 0]).save(d/'grey.jpg')
    Image.fromarray(photo(2)).convert('CMYK').save(d/'cmyk.jpg')
    whole = (d/'00.jpg').read_bytes()
    (d/'truncated.jpg').write_bytes(whole[:len(whole)//2])
    (d/'foreign.png').write_text('this is no picture')
    (d/'empty.webp').write_bytes(b'')
    assert len(list(d.iterdir())) == 20
    return d


def test_mixed_folder_trains_and_lists_the_broken_files(mixed, tmp_path):
    rc, out, err = run('train', mixed, '--run-dir', tmp_path/'run', *TINY)
    assert rc == 0, err
    skipped = [json.loads(line)['name'] for line in (tmp_path/'run'/'skipped.jsonl').read_text().splitlines()]
    assert sorted(skipped) == ['empty.webp', 'foreign.png', 'truncated.jpg']
    assert err.count('warning') == 1 and '3' in err
    assert str(tmp_path/'run'/'samples') in out and (tmp_path/'run'/'weights.safetensors').exists()


def test_quiet_prints_the_run_folder_and_nothing_else(mixed, tmp_path):
    rc, out, err = run('train', mixed, '--run-dir', tmp_path/'run', *TINY, '--quiet')
    assert (rc, out.strip()) == (0, str(tmp_path/'run'))
    assert err.count('\n') == 1 and 'warning' in err and '3' in err          # the broken files are still told


def test_seventeen_photos_train(tmp_path):
    d = tmp_path/'few'
    d.mkdir()
    for i in range(17): Image.fromarray(photo(i)).save(d/f'{i}.png')
    rc, out, err = run('train', d, '--run-dir', tmp_path/'run', '--size', 32, '--width', 4, '--epochs', 2, '--bs', 64)
    assert rc == 0, err
    assert 'smaller than a batch of 64' in out


@pytest.mark.parametrize('fill', ['texts', 'nothing', 'mostly broken'])
def test_a_folder_without_photos_is_refused_in_one_line(fill, tmp_path):
    d = tmp_path/'folder'
    d.mkdir()
    if fill == 'texts':
        for i in range(5): (d/f'{i}.txt').write_text('words')
    if fill == 'mostly broken':
        for i in range(5): (d/f'{i}.jpg').write_text('words')
        Image.fromarray(photo(0)).save(d/'good.png')
    rc, out, err = run('train', d, '--run-dir', tmp_path/'run', *TINY)
    assert rc == 2 and 'Traceback' not in err
    assert [line for line in err.splitlines() if line.startswith('recon-train: ') and 'warning' not in line] == err.splitlines()[-1:]
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('sig', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_ends_where_a_straight_run_ends(sig, tmp_path):
    d = tmp_path/'photos'
    d.mkdir()
    for i in range(20): Image.fromarray(photo(i)).save(d/f'{i}.png')
    options = ['--size', 32, '--width', 4, '--bs', 4, '--schedule', 'constant']     # a cosine over another length has other rates
    p = command('train', d, '--run-dir', tmp_path/'a', *options, '--epochs', 5000)
    history = tmp_path/'a'/'history.jsonl'
    for _ in range(600):
        if history.exists(): break
        assert p.poll() is None, p.communicate()
        time.sleep(0.1)
    time.sleep(0.5)
    p.send_signal(sig)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 130 and 'Traceback' not in err, err
    assert 'stopping after this update' in err and f"recon-train --run-dir {tmp_path/'a'} --resume goes on" in out
    steps = int(re.search(r'stopped at step (\d+)', out)[1])
    rows = [json.loads(line)['step'] for line in history.read_text().splitlines()]
    assert rows == list(range(1, steps+1))
    epochs = steps//4 + 2
    rc, out, err = run('train', '--resume', '--run-dir', tmp_path/'a', '--epochs', epochs)
    assert rc == 0, err
    rc, out, err = run('train', d, '--run-dir', tmp_path/'b', *options, '--epochs', epochs)
    assert rc == 0, err
    from recon_nb.checkpoint import load_checkpoint
    a, b = (load_checkpoint(tmp_path/n)[0] for n in 'ab')
    assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def test_mistakes_end_in_one_line_and_status_2(tmp_path):
    for name, argv in [('train', ['--preset', 'papersb']), ('train', ['--resume']), ('train', ['no/such/folder']), ('train', ['--visible', '1.5']),
                       ('train', ['voc2012', '--root', tmp_path, *TINY]), ('reconstruct', [tmp_path, 'x.jpg']), ('embed', [tmp_path, tmp_path]),
                       ('table', ['--device', 'cuad', '--yes']), ('table', ['--records', __file__]), ('table', ['--precision', 'fp16'])]:
        rc, out, err = run(name, *argv, cwd=tmp_path)
        assert rc == 2 and 'Traceback' not in err and len(err.strip().splitlines()) == 1, (argv, err)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_mistake(tmp_path):
    "As in `recon-table ... | head`."
    row = dict(arm='scratch', mode='knn', data='toy', size=32, classes=10, labels_per_class=5, n_train=50, n_test=100, seed=0, test_accuracy=.1, chance=.1)
    (tmp_path/'some.jsonl').write_text(''.join(json.dumps({**row, 'data': f'set {i}'})+'\n' for i in range(3)))
    p = command('table', '--records', tmp_path/'some.jsonl')
    p.stdout.close()      # before a word is written: a short table would fit into the pipe
    assert (p.wait(), p.stderr.read()) == (141, '')


def test_a_table_in_domain_pretrains_on_the_sets_it_probes(monkeypatch):
    "`--root` says where the labelled sets are; where pretraining is on their own images, it says so there, too."
    from recon_nb import cli, protocols
    roots = {}
    monkeypatch.setattr(protocols, 'find_labelled', lambda name, **how: name)
    monkeypatch.setattr(protocols, 'pretrain', lambda p, runs, *, root, device: roots.update({p.name: root}))
    monkeypatch.setattr(protocols, 'run_protocol', lambda *args, **how: [])
    monkeypatch.setattr(cli, '_show_tables', lambda records: None)
    for scale in ('improved', 'ablations', 'small'):
        assert cli.table(['--scale', scale, '--root', 'labelled', '--photos-root', 'photos', '--yes']) == 0
    assert roots == {'improved': 'labelled', 'ablations': 'labelled', 'small': 'photos'}


def test_a_second_round(tmp_path):
    d = tmp_path/'photos'
    d.mkdir()
    for i in range(160): Image.fromarray(photo(i, 40, 32)).save(d/f'{i:03d}.png')
    one, two, tiny = tmp_path/'one', tmp_path/'two', [*TINY[:4], '--epochs', '1', '--bs', '32']
    assert run('train', d, '--preset', 'improved', '--run-dir', one, *tiny)[0] == 0
    rc, out, err = run('train', d, '--preset', 'second-round', '--teacher', one, '--run-dir', two, *tiny)
    assert rc == 0 and 'of the codes named' in out, err
    one.rename(tmp_path/'gone')                                       # the teacher lies in the run folder
    assert run('train', '--run-dir', two, '--resume', '--epochs', '2')[0] == 0
    rc, out, err = run('export', two, '-o', tmp_path/'e.safetensors')
    assert rc == 0 and str(tmp_path).encode() not in (tmp_path/'e.safetensors').read_bytes(), err
    for teacher in ([], ['--teacher', one], ['--teacher', d]):        # none; one that has gone; a folder that is no run
        rc, out, err = run('train', d, '--preset', 'second-round', *teacher, '--run-dir', tmp_path/'x', *tiny)
        assert rc == 2 and 'Traceback' not in err and len(err.strip().splitlines()) == 1, err
        assert 'teacher' in err or str(teacher[-1]) in err


def test_pictures_that_are_not_read_are_told(mixed, tmp_path):
    for name in ('a.DNG', 'b.dng', 'c.psd'): (mixed/name).write_bytes(b'?')
    rc, out, err = run('train', mixed, '--run-dir', tmp_path/'run', *TINY)
    assert rc == 0 and '2 .dng (convert' in err and '1 .psd (convert' in err


def test_embed_opens_runs_files_and_releases_and_names_each_photo_once(tmp_path):
    photos = tmp_path/'photos'
    photos.mkdir()
    for i, name in enumerate(('a', 'b\nc', 'd')): Image.fromarray(photo(i)).save(photos/f'{name}.png')
    assert run('train', photos, '--run-dir', tmp_path/'run', *TINY)[0] == 0
    assert run('export', tmp_path/'run', '-o', tmp_path/'e.safetensors')[0] == 0
    assert run('release', tmp_path/'run', '-o', tmp_path/'given')[0] == 0
    found = []
    for source in (tmp_path/'run', tmp_path/'e.safetensors', tmp_path/'given', tmp_path/'run'/'weights.safetensors'):
        rc, out, err = run('embed', source, photos, '-o', tmp_path/'f.npy')
        assert rc == 0, err
        assert (tmp_path/'f.npy.txt').read_text().splitlines() == ['a.png', 'b c.png', 'd.png']
        found.append(np.load(tmp_path/'f.npy'))
        assert found[-1].shape == (3, 32) and np.array_equal(found[-1], found[0])
    rc, out, err = run('embed', tmp_path/'run', photos, '-o', tmp_path/'nowhere'/'f.npy')
    assert rc == 2 and 'nowhere' in err


def test_an_export_does_not_replace_a_run_s_own_weights(tmp_path):
    assert run('train', '--run-dir', tmp_path/'run', *TINY, '--max-minutes', '0.01')[0] in (0, 130)
    before = (tmp_path/'run'/'weights.safetensors').read_bytes()
    rc, out, err = run('export', tmp_path/'run', '-o', tmp_path/'run'/'weights.safetensors')
    assert rc == 2 and 'a run keeps a file of this name' in err and (tmp_path/'run'/'weights.safetensors').read_bytes() == before
    (tmp_path/'run'/'weights.safetensors').write_bytes((tmp_path/'run'/'checkpoint.safetensors').read_bytes())
    rc, out, err = run('reconstruct', tmp_path/'run', 'x.png')
    assert rc == 2 and 'Resume the run' in err and 'Traceback' not in err


def test_messages_speak_the_shells_language(tmp_path):
    for argv, says in ((['--resume'], '--resume needs --run-dir, the folder'), ([''], 'an empty text'), (['--preset', 'second-round'], 'give --teacher, the folder')):
        rc, out, err = run('train', *argv)
        assert rc == 2 and says in err and err.count('\n') == 1, err
    rc, out, err = run('train', '--epochs', 'many')
    assert rc == 2 and err.count('\n') == 1 and '--help' in err
    rc, out, err = run('probe', 'scratch', 'x', '--labels', 'few')
    assert rc == 2 and "'few' is no number of labels" in err
    rc, out, err = run('probe', 'pixels', 'x', '--width', '8')
    assert rc == 2 and '--width are for scratch' in err


@pytest.mark.parametrize('quiet', [True, False])
def test_folders_named_like_options_are_printed_as_they_are(quiet, mixed, tmp_path):
    at = tmp_path/'run_dir'/'root=lr_g'/'resume=True'
    rc, out, err = run('train', mixed, '--run-dir', at, *TINY, *['--quiet']*quiet)
    assert rc == 0, err
    assert (out.strip() == str(at)) if quiet else (f'run folder: {at}' in out.splitlines())
    rc, out, err = run('train', mixed, '--run-dir', at, *TINY)
    assert rc == 2 and err == f'recon-train: {at} already holds a run. Choose another --run-dir, or add --resume to go on with it.\n'
    rc, out, err = run('embed', at, mixed, '-o', tmp_path/'run_dir'/'F.NPY')
    assert rc == 0 and f"{tmp_path/'run_dir'/'F.NPY'}: 17 photos" in out and (tmp_path/'run_dir'/'F.NPY').exists(), err


def test_warnings_speak_the_shells_language(monkeypatch, capsys, tmp_path):
    import warnings
    from recon_nb import cli
    monkeypatch.setattr(cli, '_train', lambda args: warnings.warn(f"{tmp_path/'lr_g.png'} is left out; lower lr_g, or give bs=4, beta1=0.5"))
    assert cli.train([]) == 0
    assert capsys.readouterr().err == f"recon-train: warning: {tmp_path/'lr_g.png'} is left out; lower --lr-g, or give --bs 4, --beta1 0.5\n"


@pytest.mark.parametrize('argv', [['--adv', 'wgan-gp'], ['--mask', 'improved'], ['paper-sb'], ['--preset', 'paper-sb', '--adv', 'wgan-gp', '--run-dir', 'wgan-gp']])
def test_a_presets_name_given_for_something_else_is_told(argv, capsys, tmp_path, monkeypatch):
    from recon_nb.cli import train
    monkeypatch.chdir(tmp_path)
    assert train(argv) == 2
    name = next(a for a in ('wgan-gp', 'improved', 'paper-sb') if a in argv)
    said = capsys.readouterr().err
    assert 'a preset' in said and said.count(f'--preset {name}.') == 1 and said.count('\n') == 1 and not [*tmp_path.iterdir()]


def test_no_preset_is_suggested_where_none_was_meant(capsys):
    from recon_nb.cli import train
    for argv in (['--preset', 'wgann'], ['--adv', 'wgann'], ['--preset', 'wgan', '--size', '7']):
        assert train(argv) == 2
        assert 'is a preset' not in capsys.readouterr().err


COMMANDS = dict(train=['--resume', '--run-dir', 'none'], reconstruct=['none', 'x.png'], compare=['none', 'x.png'], embed=['none', '.'], export=['none'], release=['none'],
                probe=['none', 'shapes'], table=['--records', 'none'])


@pytest.mark.parametrize('name', COMMANDS)
def test_files_of_ones_own_are_read_first(name, monkeypatch, capsys, tmp_path):
    import recon_nb.export, recon_nb.training                 # noqa: F401 (they take `load_plugins` as it is)
    from recon_nb import cli, plugins
    monkeypatch.chdir(tmp_path)
    read = []
    monkeypatch.setattr(plugins, 'load_plugins', read.append)
    assert getattr(cli, name)(COMMANDS[name]) == 2 and not read
    assert getattr(cli, name)([*COMMANDS[name], '--plugin', 'a.py', '--plugin', 'b.py']) == 2 and read == [['a.py', 'b.py']]
    assert capsys.readouterr().err.count('\n') == 2
    def refuse(paths): raise cli.InputError(f'{paths[0]} does not exist.')
    monkeypatch.setattr(plugins, 'load_plugins', refuse)
    assert getattr(cli, name)([*COMMANDS[name], '--plugin', 'a.py']) == 2
    assert capsys.readouterr().err == f'recon-{name}: a.py does not exist.\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_fails_in_its_own_way(name, monkeypatch, capsys):
    "A fault of the call, of the disk, of the training, of the program: status, one line, or a traceback."
    from recon_nb import cli
    from recon_nb.core import TrainingDiverged
    def fails(e):
        def call(args): raise e
        monkeypatch.setattr(cli, f'_{name}', call)
        return getattr(cli, name)(COMMANDS[name]), capsys.readouterr().err
    assert fails(cli.InputError('not so')) == (2, f'recon-{name}: not so\n')
    assert fails(OSError(28, 'No space left on device', 'run_dir/x')) == (1, f"recon-{name}: run_dir/x can't be read or written: No space left on device\n")
    assert fails(TrainingDiverged('no number')) == (1, f'recon-{name}: no number\n')
    assert fails(KeyboardInterrupt()) == (130, f'recon-{name}: interrupted\n')
    with pytest.raises(ZeroDivisionError): fails(ZeroDivisionError())


def test_stages_are_counted_from_1_and_from_the_end(tmp_path):
    photos = tmp_path/'photos'
    photos.mkdir()
    for i in range(3): Image.fromarray(photo(i)).save(photos/f'{i}.png')
    from recon_nb.cli import embed, train
    assert train([photos, '--run-dir', tmp_path/'run', *TINY, '--quiet']) == 0
    from recon_nb.run import GANRun
    enc = GANRun.load(tmp_path/'run').encoder
    found = {}
    for stage in (1, 2, 3, 4, -4, -1):
        assert embed([tmp_path/'run', photos, '-o', tmp_path/'f.npy', '--stage', stage]) == 0
        found[stage] = np.load(tmp_path/'f.npy')
    assert [found[k].shape[1] for k in (1, 2, 3, 4)] == list(enc.channels)
    assert np.array_equal(found[1], found[-4]) and np.array_equal(found[4], found[-1])
    for stage in (0, 5, -5):
        assert embed([tmp_path/'run', photos, '-o', tmp_path/'f.npy', '--stage', stage]) == 2


@pytest.mark.parametrize('argv', [['--device', 'tpu'], ['runn'], ['run', 'runn']])
def test_selftest_refuses_in_one_line(argv, capsys):
    from recon_nb.selftest import main
    assert main(argv) == 2
    assert capsys.readouterr().err.count('\n') == 1


def one(*argv, **kwargs):
    r = subprocess.run([sys.executable, '-m', 'recon_nb', *map(str, argv)], env=ENV, text=True, capture_output=True, timeout=300, **kwargs)
    return r.returncode, r.stdout, r.stderr


def test_one_command_lists_all_and_imports_nothing_heavy(tmp_path):
    import configparser
    from pathlib import Path
    from recon_nb.command import COMMANDS
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
    names = dict(s.split('=') for s in ini['DEFAULT']['console_scripts'].split())
    assert names.pop('recon') == 'recon_nb.command:main'
    assert names == {f'recon-{word}': f'recon_nb.{where}' for word, (where, _) in COMMANDS.items()}, 'a line in COMMANDS for each name in settings.ini'
    rc, out, err = one(cwd=tmp_path)
    assert (rc, err) == (0, '') and all(f'  {word} ' in out for word in COMMANDS)
    assert one('--version')[:2] == (0, f"recon_nb {ini['DEFAULT']['version']}\n")


def test_one_command_ends_as_the_others_do(tmp_path):
    from recon_nb.command import main
    rc, out, err = one('train', '--run-dir', tmp_path/'run', *TINY, '--max-minutes', '0.0001', '--quiet')
    assert (rc, out.strip()) == (0, str(tmp_path/'run')), err
    assert main(['export', tmp_path/'run', '-o', tmp_path/'e.safetensors']) == 0
    for argv, says in ((['export', tmp_path], 'recon export: '), (['tran'], 'Did you mean train?'), (['recon-train'], 'Did you mean train?'),
                       (['train', '--epoch', '3'], '(did you mean --epochs?)'), (['--verison'], '(did you mean --version?)'), (['zzz'], 'There are train, ')):
        rc, out, err = one(*argv, cwd=tmp_path)
        assert (rc, out) == (2, '') and says in err and err.count('\n') == 1, (argv, err)


def test_what_is_said_arrives_when_it_is_said_also_through_a_pipe():
    "A command that announces and then works until its standard input ends: the line is there before."
    call = 'import sys\nfrom recon_nb.shell import _Parser,_run\ndef work(args):\n    print("about 3 h")\n    sys.stdin.read()\n    print("done")\nsys.exit(_run(_Parser("recon-toy"), work, []))'
    p = subprocess.Popen([sys.executable, '-c', call], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.append(p.stdout.readline()), daemon=True)
    reader.start(); reader.join(60)
    assert said == ['about 3 h\n'] and p.poll() is None
    p.stdin.close()
    assert p.stdout.read() == 'done\n' and p.wait(60) == 0


def test_every_command_says_things_at_once():
    "All go through the one function that sees to it; the self-test flushes each line by itself."
    import inspect
    from importlib import import_module
    from recon_nb.command import COMMANDS
    for word, (place, _) in COMMANDS.items():
        module, function = place.split(':')
        source = inspect.getsource(getattr(import_module(f'recon_nb.{module}'), function))
        assert '_run(' in source or source.count('flush=True') >= 2, word
