"""What every test runs under: checked types, no network, a cache of its own, one thread.

The order matters: thread counts are read when torch is imported, and the type checks are woven in when recon_nb is."""
import ipaddress, os, signal, socket, tempfile

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['MPLBACKEND'] = 'Agg'
_cache = tempfile.TemporaryDirectory(prefix='recon_nb_cache_')
os.environ['RECON_NB_CACHE'] = _cache.name

import jaxtyping

# without the checks only where a test starts pytest once more, to see what people see (generated.py)
if os.environ.get('RECON_NB_TYPES') != '0': jaxtyping.install_import_hook('recon_nb', 'beartype.beartype')

import pytest
import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
signal.signal(signal.SIGINT, signal.default_int_handler)      # whoever starts the tests in the background may have Ctrl-C ignored


class NetworkBlocked(RuntimeError):
    "Not an OSError: code that retries or looks away on those must not hide the attempt."


def is_local(host):
    "Does `host` name this machine, without asking anybody?"
    if isinstance(host, bytes): host = host.decode()
    if host in (None, '', 'localhost', socket.gethostname()): return True
    try: return ipaddress.ip_address(host.split('%')[0]).is_loopback
    except ValueError: return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Sockets reach this machine and nothing else."
    def guard(name):
        real = getattr(socket.socket, name)
        def call(self, *args):
            address = args[-1]
            if self.family != socket.AF_UNIX and not is_local(address[0]): raise NetworkBlocked(f'a test wanted to reach {address}')
            return real(self, *args)
        monkeypatch.setattr(socket.socket, name, call)
    for name in ('connect', 'connect_ex', 'sendto'): guard(name)

    lookup = socket.getaddrinfo
    def getaddrinfo(host, *args, **kwargs):
        if not is_local(host): raise NetworkBlocked(f'a test wanted to look up {host!r}')
        return lookup(host, *args, **kwargs)
    monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)


def pytest_configure(config): config.addinivalue_line('markers', 'slow: minutes long; runs with RECON_NB_SLOW=1')


def pytest_collection_modifyitems(config, items):
    if os.environ.get('RECON_NB_SLOW'): return
    slow = [i for i in items if i.get_closest_marker('slow')]
    if slow: config.hook.pytest_deselected(items=slow); items[:] = [i for i in items if i not in slow]
