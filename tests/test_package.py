"The package as a whole: what an import costs, which version it claims to be, what its commands point at, and that tests are offline."
import importlib, socket, subprocess, sys, urllib.request
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest
import recon_nb
from recon_nb.state import toy_state
from recon_nb.trainer import save
from versions import OLD_TORCH

ROOT = Path(__file__).parents[1]
INI = ConfigParser(delimiters=['='])
INI.read(ROOT/'settings.ini', encoding='utf-8')
SCRIPTS = dict(s.split('=') for s in INI['DEFAULT']['console_scripts'].split())
HEAVY = {'torch', 'torchvision', 'torchmetrics', 'accelerate', 'matplotlib', 'ipywidgets', 'sklearn'}


def loaded_by(code):
    "The names in `HEAVY` that a fresh interpreter has imported after `code`."
    out = subprocess.run([sys.executable, '-c', f'import sys; {code}; print(*sys.modules)'], capture_output=True, text=True, check=True).stdout
    return HEAVY & set(out.split())


def test_import_is_lazy(): assert not loaded_by('import recon_nb')

def test_lazy_check_can_fail(): assert loaded_by('import torch') >= {'torch'}

def test_shell_answers_without_torch():
    "What the commands read before they know whether there is anything to do."
    for mod in ('core', 'config'):
        if (ROOT/f'recon_nb/{mod}.py').exists(): assert not loaded_by(f'import recon_nb.{mod}'), mod


# What a run needs neither to be opened nor to give its features; the largest, torchmetrics, costs three seconds.
NOT_TO_OPEN = {'torchmetrics', 'torchvision', 'scipy', 'pandas', 'matplotlib', 'sklearn', 'IPython', 'ipywidgets'}

def test_opening_a_run_loads_little(tmp_path):
    "Counts of modules hold on a busy machine, where seconds do not."
    save(toy_state(run_dir=tmp_path))
    opened = f"""import sys, numpy, torch
before = len(sys.modules)
import recon_nb
photo = numpy.zeros((1,32,32,3), 'uint8')
recon_nb.GANRun.load({str(tmp_path)!r}).transform(photo)
p = recon_nb.load_pretrained({str(tmp_path)!r})
p.encoder.features(p.preprocess(photo))
print(len(sys.modules) - before, *sys.modules)"""
    n, *names = subprocess.run([sys.executable, '-c', opened], capture_output=True, text=True, check=True).stdout.split()
    assert 'recon_nb.run' in names and not NOT_TO_OPEN & {m.split('.')[0] for m in names}
    assert int(n) < (1000 if OLD_TORCH else 400), f'{n} modules beyond torch; it was 130, and 800 with the oldest PyTorch and accelerate'


def test_one_version():
    assert recon_nb.__version__ == INI['DEFAULT']['version'] == version('recon_nb')

def test_public_names_resolve():
    for name in getattr(recon_nb, '__all__', []): assert getattr(recon_nb, name) is not None, name

def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError): recon_nb.no_such_name

def test_typed_marker(): assert Path(recon_nb.__file__).with_name('py.typed').exists()

@pytest.mark.parametrize('command', SCRIPTS)
def test_command_exists(command):
    mod, func = SCRIPTS[command].split(':')
    if not (ROOT/(mod.replace('.', '/')+'.py')).exists(): pytest.skip(f'{mod} is not written yet')
    assert callable(getattr(importlib.import_module(mod), func))


def test_network_is_blocked():
    with pytest.raises(RuntimeError, match='look up'): urllib.request.urlopen('http://example.com', timeout=1)
    with socket.socket() as s, pytest.raises(RuntimeError, match='reach'): s.connect(('192.0.2.1', 80))

def test_this_machine_is_not_blocked():
    "Where the network is off altogether, the loopback device may be down: then the system says so, not the guard."
    with socket.create_server(('127.0.0.1', 0)) as server:
        try: client = socket.create_connection(server.getsockname(), timeout=5)
        except OSError: return
        with client: assert client.getpeername() == server.getsockname()
